"""Against the stock package: the same hidden states, the same tokens, the same vectors, and each of
the official trainer's four errors caught by the test that names it.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from sheen_cli import Batch, Clip, Loss
from sheen_cli.babble import speech as babble
from sheen_cli.backbones import load, resolve
from sheen_qwen3_tts import base, codec, inner, miniature, model, stock
from sheen_qwen3_tts.generate import Wish, generate
from sheen_qwen3_tts.layout import IGNORE, NONE, VECTOR, Prompt, Rows, build
from sheen_qwen3_tts.model import Speech
from sheen_qwen3_tts.sampling import Sampling

TEXT, SAID = "Good morning to you all.", "A reference it is."
NAME, ROW = "serena", miniature.CODES + 100  # a voice that the base has by name, and its row
KINDS = [
    *product(("x-vector", "icl"), (None, "english"), (None,)),
    ("design", None, "Speak slowly."), ("x-vector", "german", "Speak slowly."),
    ("named", "english", "Speak slowly."),
]  # fmt: skip
CASES = [(*kind, streaming) for kind in KINDS for streaming in (False, True)]
PLAIN = [("named", None, None, streaming) for streaming in (False, True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that has a voice by name, too."""
    folder = miniature.build(tmp_path_factory.mktemp("base"))
    config = json.loads((folder / "config.json").read_text())
    config["talker_config"] |= {"spk_id": {NAME: ROW}, "spk_is_dialect": {NAME: False}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return stock.load().Qwen3TTSModel.from_pretrained(str(folder))


@pytest.fixture(scope="module")
def ours(folder: Path) -> Speech:
    return model.load(folder, {}).eval()


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    return babble("a reference it is", codec.RATE)


class Asked:
    """One prompt, as the stock wrapper is asked and as our layout has it."""

    def __init__(self, theirs: Any, ours: Speech, sound: np.ndarray, case: Any, text: str) -> None:
        kind, self.language, instruct, self.streaming = case
        self.theirs, self.text = theirs, text
        self.items = theirs.create_voice_clone_prompt((sound, 24_000), ref_text=SAID)
        icl, self.spoken = kind == "icl", kind in ("x-vector", "icl")
        self.name = NAME if kind == "named" else None
        heard = self.items[0].ref_code if icl else None
        item = replace(self.items[0], icl_mode=icl, x_vector_only_mode=not icl, ref_code=heard)
        self.voice = theirs._prompt_items_to_voice_clone_prompt([item]) if self.spoken else None
        self.vector = self.items[0].ref_spk_embedding
        tokens = theirs._tokenize_texts
        self.instruct = [tokens([theirs._build_instruct_text(instruct)])[0]] if instruct else None
        reference = (ours.base.said(SAID), tuple(map(tuple, heard.tolist()))) if icl else None
        self.prompt = Prompt(
            ours.base.words(text),
            VECTOR if self.spoken else ours.base.voices[self.name] if self.name else None,
            ours.base.language(self.language),
            ours.base.instruction(instruct) if instruct else (), reference, self.streaming,
        )  # fmt: skip

    def generate(self, frames: int, **sampling: Any) -> tuple[Tensor, Tensor]:
        """Codes (t, 16), and the hidden states (t, hidden) of the rows that predicted them."""
        tokens, wrapper = self.theirs._tokenize_texts, self.theirs
        codes, hidden = wrapper.model.generate(
            input_ids=tokens([wrapper._build_assistant_text(self.text)]),
            ref_ids=tokens([wrapper._build_ref_text(SAID)]), voice_clone_prompt=self.voice,
            languages=[self.language or "auto"], instruct_ids=self.instruct,
            speakers=[self.name], non_streaming_mode=not self.streaming, max_new_tokens=frames,
            **sampling,
        )  # fmt: skip
        return codes[0], hidden[0]


def greedy(asked: Asked, frames: int = 10) -> tuple[Tensor, Tensor]:
    return asked.generate(frames, do_sample=False, subtalker_dosample=False, repetition_penalty=1.0)


def teacher_forced(ours: Speech, asked: Asked, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Our forward pass over rows built from their codes: logits of code 0 and of the others."""
    rows, targets = build(asked.prompt, codes.numpy(), ours.base.ids)
    with torch.no_grad():
        first, found = ours(
            torch.from_numpy(rows.text)[None], torch.from_numpy(rows.codec)[None],
            asked.vector[None], torch.from_numpy(targets)[None], trace=True,
        )  # fmt: skip
    return first, found.logits


@pytest.mark.parametrize("case", [*CASES, *PLAIN], ids=str)
def test_teacher_forced_logits_are_those_of_the_stock_generate(
    theirs: Any, ours: Speech, sound: np.ndarray, case: Any
) -> None:
    """All 16 heads, for every kind of prompt: what is trained is what is generated."""
    asked = Asked(theirs, ours, sound, case, TEXT)
    codes, hidden = greedy(asked)
    assert len(codes) >= 3
    first, others = teacher_forced(ours, asked, codes)
    talker = theirs.model.talker
    with torch.no_grad():
        torch.testing.assert_close(
            first[: len(codes)], talker.codec_head(hidden), rtol=0, atol=1e-4
        )
        states, _ = talker.forward_sub_talker_finetune(codes, hidden)
    torch.testing.assert_close(others, states, rtol=0, atol=1e-4)
    assert torch.equal(others.argmax(-1), codes[:, 1:])  # and each was the likeliest


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
def test_our_loop_says_the_tokens_of_the_stock_generate_alone_and_in_a_batch(
    theirs: Any, ours: Speech, sound: np.ndarray, sampled: bool
) -> None:
    wishes, expected = [], []
    for number, case in enumerate(CASES):  # a long text where the other kind has a short one
        text = (TEXT, "Yes.")[(number // 2 + sampled) % 2]
        asked = Asked(theirs, ours, sound, case, text)
        torch.manual_seed(len(wishes))
        expected.append(asked.generate(13, do_sample=sampled, subtalker_dosample=sampled)[0])
        wishes.append(Wish(asked.prompt, asked.vector, 12, len(wishes), greedy=not sampled))
    assert not sampled or len({len(codes) for codes in expected}) > 2
    together = generate(ours, wishes, Sampling())
    for wish, codes, spoken in zip(wishes, expected, together, strict=True):
        assert torch.equal(spoken.codes, codes)
        (alone,) = generate(ours, [wish], Sampling())
        assert torch.equal(alone.codes, codes)


def test_codes_vectors_and_tokens_are_those_of_the_stock_package(
    folder: Path, theirs: Any, sound: np.ndarray
) -> None:
    whole = np.pad(sound, (0, -len(sound) % codec.FRAME))
    codes = theirs.model.speech_tokenizer.encode(whole, sr=24_000).audio_codes[0]
    assert torch.equal(codec.encode(codec.load(folder), sound), codes)
    mine = codec.vector(codec.speaker_encoder(folder), sound)
    stocks = theirs.model.extract_speaker_embedding(sound, 24_000)
    torch.testing.assert_close(mine, stocks, rtol=0, atol=1e-6)
    opened = base.read(folder)
    for text in ("Good morning.", "  McDonald says: iPhone!\n", "ทดสอบ हिन्दी مُدَرِّس", "你好。"):
        (tokens,) = theirs._tokenize_texts([theirs._build_assistant_text(text.strip())])
        assert opened.words(text) == tuple(tokens[0, 3:-5].tolist())
        (tokens,) = theirs._tokenize_texts([theirs._build_ref_text(text.strip())])
        assert opened.said(text) == tuple(tokens[0, 3:-2].tolist())


# --- the four errors of the official trainer ------------------------------------------------------
#
# Each has a check of our own code, which the test that names the error calls, and an injection of
# it into our code, under which the check must fail.


@pytest.fixture(scope="module")
def taught(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """What the plugin's hooks make of two clips of different lengths."""
    hook = load("qwen3-tts").hook
    recipe = resolve("qwen3tts-lora", [f"model.base={folder}"])[0]
    artifacts = tmp_path_factory.mktemp("taught")
    clips = [
        Clip(text, text, babble(text, codec.RATE), codec.RATE, "anna", "en")
        for text in ("one two three", "four")
    ]
    rows = list(hook.prepare(recipe=recipe, clips=clips, artifacts=artifacts))
    rows = [
        {**row, "text": clip.text, "language": "en"} for row, clip in zip(rows, clips, strict=True)
    ]
    batch = hook.collate(recipe=recipe, rows=rows, seed=None, artifacts=artifacts)

    def scored(speech: Speech, trace: bool) -> tuple[list[Any], Batch, Loss]:
        """The rows, the batch of them, and its loss."""
        return rows, batch, hook.loss(recipe=recipe, model=speech, batch=batch, trace=trace)

    return scored


@pytest.fixture(scope="module")
def planted(theirs: Any, ours: Speech, sound: np.ndarray, taught: Any) -> "Planted":
    return Planted(theirs, ours, sound, taught)


class Planted:
    """A speech of theirs, and all that the checks compare."""

    def __init__(self, theirs: Any, ours: Speech, sound: np.ndarray, taught: Any) -> None:
        self.theirs, self.ours, self.taught = theirs, ours, taught
        self.asked = Asked(theirs, ours, sound, ("x-vector", "english", None, False), TEXT)
        self.codes, self.hidden = greedy(self.asked)


def embedded(talker: Any, rows: Rows, vector: Tensor) -> Tensor:
    """The inputs (n, hidden) of rows, a row and a module of the stock talker at a time."""
    tables = [talker.get_input_embeddings(), *talker.code_predictor.get_input_embeddings()]
    inputs = []
    for word, sound in zip(rows.text.tolist(), rows.codec.tolist(), strict=True):
        parts = []
        if word != NONE:
            parts.append(talker.text_projection(talker.get_text_embeddings()(torch.tensor(word))))
        for table, code in zip(tables, sound, strict=True):
            if code == VECTOR:
                parts.append(vector)
            elif code != NONE:
                parts.append(table(torch.tensor(code)))
        inputs.append(torch.stack(parts).sum(0))
    return torch.stack(inputs)


def forced(talker: Any, inputs: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Teacher forcing on the stock modules: logits of code 0 and the end (t + 1, vocabulary), and
    of the other codes (t, groups - 1, codes), from a sequence whose last t rows are the frames.
    """
    hidden = talker.model(inputs_embeds=inputs[None], use_cache=False).last_hidden_state[0]
    before = hidden[-len(codes) - 1 :]  # the row before each frame, and before the end
    return talker.codec_head(before), talker.forward_sub_talker_finetune(codes, before[:-1])[0]


def stock_sums(planted: Planted) -> dict[str, tuple[float, float]]:
    """Per term what the taught rows cost the stock model: aligned, and shifted once more."""
    rows, batch, _ = planted.taught(planted.ours, True)
    talker, eos = planted.theirs.model.talker, planted.ours.base.ids.eos
    sums = torch.zeros(2, 2)
    for number, row in enumerate(rows):
        codes = torch.tensor(row["audio_codes"])
        text, sound, vector = (batch.inputs[name][number] for name in ("text", "codec", "vectors"))
        full = (text != NONE) | (sound[:, 0] != NONE)
        with torch.no_grad():
            laid = Rows(text[full].numpy(), sound[full].numpy(), ())
            first, others = forced(talker, embedded(talker, laid, vector), codes)
        wanted = torch.cat([codes[:, 0], torch.tensor([eos])])
        sums[0, 0] += cross_entropy(first, wanted, reduction="sum")
        sums[0, 1] += cross_entropy(first[:-1], wanted[1:], reduction="sum")
        sums[1, 0] += cross_entropy(others.flatten(0, 1), codes[:, 1:].flatten(), reduction="sum")
        sums[1, 1] += cross_entropy(
            others[:, :-1].flatten(0, 1), codes[:, 2:].flatten(), reduction="sum"
        )
    counts = torch.tensor([[batch.counts[name]] * 2 for name in ("talker", "subtalker")])
    counts[:, 1] -= torch.tensor([len(rows), counts[1, 1] // 15])  # each shift loses some
    aligned, shifted = (sums / counts).unbind(1)
    assert ((aligned - shifted).abs() > 1e-3).all() and len(rows) == 2
    return {
        name: (float(sums[number, 0]), float(sums[number, 1]))
        for number, name in enumerate(("talker", "subtalker"))
    }


def check_loss(planted: Planted, term: str) -> None:
    """A term of our loss is that of labels in place, with and without a gradient or a trace."""
    aligned, shifted = stock_sums(planted)[term]
    assert abs(aligned - shifted) > 1e-2
    for trace, learning in ((True, True), (False, True), (False, False)):
        with torch.set_grad_enabled(learning):
            _, _, loss = planted.taught(planted.ours, trace)
        assert float(loss.terms[term].sum.detach()) == pytest.approx(aligned, rel=1e-5)


def check_text(planted: Planted) -> None:
    """Our inputs are the stock modules' projected text plus their codec vectors."""
    asked, ours, talker = planted.asked, planted.ours, planted.theirs.model.talker
    rows, _ = build(asked.prompt, planted.codes.numpy(), ours.base.ids)
    text, sound = torch.from_numpy(rows.text)[None], torch.from_numpy(rows.codec)[None]
    with torch.no_grad():
        mine = ours.embed(text, sound, asked.vector[None])[0]
        stocks = embedded(talker, rows, asked.vector)
    assert len(mine) > 20 and torch.allclose(mine, stocks, rtol=0, atol=1e-5)


def check_talker(planted: Planted) -> None:
    check_loss(planted, "talker")


def check_sub_talker(planted: Planted) -> None:
    check_loss(planted, "subtalker")


def check_states(planted: Planted) -> None:
    """The sub-talker is given the state of the row that predicts a frame, as in generation."""
    _, mine = teacher_forced(planted.ours, planted.asked, planted.codes)
    talker, codes, hidden = planted.theirs.model.talker, planted.codes, planted.hidden
    with torch.no_grad():
        right, _ = talker.forward_sub_talker_finetune(codes, hidden)
        wrong, _ = talker.forward_sub_talker_finetune(codes[:-1], hidden[1:])
    assert torch.allclose(mine, right, rtol=0, atol=1e-4)
    assert not torch.allclose(wrong, right[:-1], rtol=0, atol=1e-3)


def skip_projection(planted: Planted, patch: pytest.MonkeyPatch) -> None:
    """Where text and talker are as wide, as in the released 1.7B, nothing else would tell."""
    width = planted.ours.base.talker["hidden_size"]
    patch.setattr(planted.ours.talker.text_projection, "forward", lambda words: words[..., :width])


def shift_talker(planted: Planted, patch: pytest.MonkeyPatch) -> None:
    """In the `loss` hook, which imports the function when it is called; the stock model, which has
    a loss on the way, wants no cross-entropy of each target.
    """

    def shifted(logits: Tensor, wanted: Tensor, **how: Any) -> Tensor:
        if how.get("reduction") != "none":
            return cross_entropy(logits, wanted, **how)
        return pad(cross_entropy(logits[:-1], wanted[1:], **how), (0, 1))

    patch.setattr("torch.nn.functional.cross_entropy", shifted)


def shift_sub_talker(planted: Planted, patch: pytest.MonkeyPatch) -> None:
    nats = inner.nats
    patch.setattr(
        inner, "nats", lambda logits, codes: pad(nats(logits[:, :-1], codes[:, 1:]), (0, 1))
    )


def shift_states(planted: Planted, patch: pytest.MonkeyPatch) -> None:
    steps = planted.ours.steps
    patch.setattr(
        planted.ours, "steps",
        lambda hidden, *rest: steps(torch.cat([hidden[1:], hidden[-1:]]), *rest),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("check", "inject"),
    [
        (check_text, skip_projection), (check_talker, shift_talker),
        (check_sub_talker, shift_sub_talker), (check_states, shift_states),
    ],
    ids=["error_1", "error_2", "error_3", "error_4"],
)  # fmt: skip
def test_each_error_put_into_our_code_fails_the_check_that_names_it(
    planted: Planted, check: Any, inject: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(planted)
    inject(planted, monkeypatch)
    with pytest.raises(AssertionError):
        check(planted)
    monkeypatch.undo()
    check(planted)


def test_error_1_text_is_projected(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours is; and text that is not does not fit."""
    check_text(planted)
    monkeypatch.setattr(planted.ours.talker.text_projection, "forward", lambda words: words)
    with pytest.raises(RuntimeError, match="size"):
        teacher_forced(planted.ours, planted.asked, planted.codes)


def test_error_2_the_stock_loss_shifts_labels_that_lie_in_place(planted: Planted) -> None:
    """Given aligned labels it scores the code two frames on; ours scores the next one."""
    check_talker(planted)
    codes, ours = planted.codes, planted.ours
    first, _ = teacher_forced(ours, planted.asked, codes)
    wanted = torch.cat([codes[:, 0], torch.tensor([ours.base.ids.eos])])
    aligned = cross_entropy(first, wanted)
    two_on = cross_entropy(first[:-1], wanted[1:])
    talker = planted.theirs.model.talker
    returned = talker.loss_function(
        logits=first[None], labels=wanted[None], vocab_size=talker.config.vocab_size
    )
    assert returned == pytest.approx(float(two_on), rel=1e-5)
    assert abs(float(returned) - float(aligned)) > 1e-3


def test_error_3_the_stock_sub_talker_loss_skips_a_codebook(planted: Planted) -> None:
    """Ours does not."""
    check_sub_talker(planted)
    codes = planted.codes
    _, others = teacher_forced(planted.ours, planted.asked, codes)
    with torch.no_grad():
        _, returned = planted.theirs.model.talker.forward_sub_talker_finetune(codes, planted.hidden)
    aligned = cross_entropy(others.flatten(0, 1), codes[:, 1:].flatten())
    skipping = cross_entropy(others[:, :-1].flatten(0, 1), codes[:, 2:].flatten())
    assert returned == pytest.approx(float(skipping), rel=1e-5)
    assert abs(float(returned) - float(aligned)) > 1e-3


def test_error_4_the_row_of_the_frame_itself_is_not_the_row_that_predicts_it(
    planted: Planted,
) -> None:
    check_states(planted)
    ours, codes, hidden = planted.ours, planted.codes, planted.hidden
    _, right = teacher_forced(ours, planted.asked, codes)
    with torch.no_grad():
        wrong = ours.scores(
            ours.steps(hidden[1:], codes[:-1])
        )  # as since the official commit 022e286
    assert not torch.allclose(wrong, right[:-1], atol=1e-3)


def test_every_head_learns_from_its_own_codebook(planted: Planted) -> None:
    """All 15 heads get a gradient, and head k from nothing but codebook k."""
    ours, asked, codes = planted.ours, planted.asked, planted.codes
    rows, targets = build(asked.prompt, codes.numpy(), ours.base.ids)
    inputs = [torch.from_numpy(rows.text)[None], torch.from_numpy(rows.codec)[None]]
    inputs += [asked.vector[None]]
    _, found = ours(*inputs, torch.from_numpy(targets)[None], trace=True)
    heads = ours.talker.code_predictor.lm_head
    for number, head in enumerate(heads):
        part = cross_entropy(found.logits[:, number], codes[:, number + 1])
        grads = torch.autograd.grad(
            part, [each.weight for each in heads], retain_graph=True, allow_unused=True
        )
        assert [grad is not None and bool(grad.any()) for grad in grads] == [
            each is head for each in heads
        ]


def test_targets_of_padding_are_ignored(planted: Planted) -> None:
    codes, ours = planted.codes, planted.ours
    _, targets = build(planted.asked.prompt, codes.numpy(), ours.base.ids)
    assert (targets[: -len(codes) - 1] == IGNORE).all()
