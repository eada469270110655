"""Against the stock package: the same hidden states, the same tokens, the same vectors, and each of
the official trainer's four errors caught by the test that names it.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sheen_cli.babble import speech as babble
from sheen_qwen3_tts import base, codec, miniature, model, stock
from sheen_qwen3_tts.generate import Wish, generate
from sheen_qwen3_tts.layout import IGNORE, VECTOR, Prompt, build
from sheen_qwen3_tts.model import Speech
from sheen_qwen3_tts.sampling import Sampling

TEXT, SAID = "Good morning to you all.", "A reference it is."
KINDS = [
    *product(("x-vector", "icl"), (None, "english"), (None,)),
    ("design", None, "Speak slowly."), ("x-vector", "german", "Speak slowly."),
]  # fmt: skip
CASES = [(*kind, streaming) for kind in KINDS for streaming in (False, True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.build(tmp_path_factory.mktemp("base"))


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
        icl, self.spoken = kind == "icl", kind != "design"
        heard = self.items[0].ref_code if icl else None
        item = replace(self.items[0], icl_mode=icl, x_vector_only_mode=not icl, ref_code=heard)
        self.voice = theirs._prompt_items_to_voice_clone_prompt([item]) if self.spoken else None
        self.vector = self.items[0].ref_spk_embedding
        tokens = theirs._tokenize_texts
        self.instruct = [tokens([theirs._build_instruct_text(instruct)])[0]] if instruct else None
        reference = (ours.base.said(SAID), tuple(map(tuple, heard.tolist()))) if icl else None
        self.prompt = Prompt(
            ours.base.words(text), VECTOR if self.spoken else None,
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
            non_streaming_mode=not self.streaming, max_new_tokens=frames, **sampling,
        )  # fmt: skip
        return codes[0], hidden[0]


def greedy(asked: Asked, frames: int = 10) -> tuple[Tensor, Tensor]:
    return asked.generate(frames, do_sample=False, subtalker_dosample=False, repetition_penalty=1.0)


def teacher_forced(ours: Speech, asked: Asked, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Our forward pass over rows built from their codes: logits of code 0 and of the others."""
    rows, targets = build(asked.prompt, codes.numpy(), ours.base.ids)
    with torch.no_grad():
        first, inner = ours(
            torch.from_numpy(rows.text)[None], torch.from_numpy(rows.codec)[None],
            asked.vector[None], torch.from_numpy(targets)[None], trace=True,
        )  # fmt: skip
    return first, inner.logits


@pytest.mark.parametrize("case", CASES, ids=str)
def test_teacher_forced_logits_are_those_of_the_stock_generate(
    theirs: Any, ours: Speech, sound: np.ndarray, case: Any
) -> None:
    """All 16 heads, for every kind of prompt: what is trained is what is generated."""
    asked = Asked(theirs, ours, sound, case, TEXT)
    codes, hidden = greedy(asked)
    assert len(codes) >= 3
    first, inner = teacher_forced(ours, asked, codes)
    talker = theirs.model.talker
    with torch.no_grad():
        torch.testing.assert_close(
            first[: len(codes)], talker.codec_head(hidden), rtol=0, atol=1e-4
        )
        states, _ = talker.forward_sub_talker_finetune(codes, hidden)
    torch.testing.assert_close(inner, states, rtol=0, atol=1e-4)
    assert torch.equal(inner.argmax(-1), codes[:, 1:])  # and each was the likeliest


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
def test_our_loop_says_the_tokens_of_the_stock_generate_alone_and_in_a_batch(
    theirs: Any, ours: Speech, sound: np.ndarray, sampled: bool
) -> None:
    wishes, expected = [], []
    for case, text in product(CASES, (TEXT, "Yes.")):
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


@pytest.fixture
def planted(theirs: Any, ours: Speech, sound: np.ndarray) -> Iterator[tuple[Speech, Asked, Tensor]]:
    asked = Asked(theirs, ours, sound, ("x-vector", None, None, False), TEXT)
    yield ours, asked, greedy(asked)[0]


def test_error_1_text_that_is_not_projected_does_not_fit(
    planted: tuple[Speech, Asked, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, asked, codes = planted
    monkeypatch.setattr(ours.talker.text_projection, "forward", lambda words: words)
    with pytest.raises(RuntimeError, match="size"):
        teacher_forced(ours, asked, codes)


def test_error_2_the_stock_loss_shifts_labels_that_lie_in_place(
    theirs: Any, planted: tuple[Speech, Asked, Tensor]
) -> None:
    """Given aligned labels it scores the code two frames on; ours scores the next one."""
    ours, asked, codes = planted
    first, _ = teacher_forced(ours, asked, codes)
    wanted = torch.cat([codes[:, 0], torch.tensor([ours.base.ids.eos])])
    aligned = cross_entropy(first, wanted)
    two_on = cross_entropy(first[:-1], wanted[1:])
    talker = theirs.model.talker
    returned = talker.loss_function(
        logits=first[None], labels=wanted[None], vocab_size=talker.config.vocab_size
    )
    assert returned == pytest.approx(float(two_on), rel=1e-5)
    assert abs(float(returned) - float(aligned)) > 1e-3


def test_error_3_the_stock_sub_talker_loss_skips_a_codebook(
    theirs: Any, planted: tuple[Speech, Asked, Tensor]
) -> None:
    ours, asked, codes = planted
    _, inner = teacher_forced(ours, asked, codes)
    _, hidden = greedy(asked)
    with torch.no_grad():
        _, returned = theirs.model.talker.forward_sub_talker_finetune(codes, hidden)
    aligned = cross_entropy(inner.flatten(0, 1), codes[:, 1:].flatten())
    skipping = cross_entropy(inner[:, :-1].flatten(0, 1), codes[:, 2:].flatten())
    assert returned == pytest.approx(float(skipping), rel=1e-5)
    assert abs(float(returned) - float(aligned)) > 1e-3


def test_error_4_the_row_of_the_frame_itself_is_not_the_row_that_predicts_it(
    theirs: Any, planted: tuple[Speech, Asked, Tensor]
) -> None:
    ours, asked, codes = planted
    _, right = teacher_forced(ours, asked, codes)
    _, hidden = greedy(asked)
    with torch.no_grad():
        wrong = ours.scores(
            ours.steps(hidden[1:], codes[:-1])
        )  # as since the official commit 022e286
    assert not torch.allclose(wrong, right[:-1], atol=1e-3)


def test_every_head_learns_from_its_own_codebook(planted: tuple[Speech, Asked, Tensor]) -> None:
    """All 15 heads get a gradient, and head k from nothing but codebook k."""
    ours, asked, codes = planted
    rows, targets = build(asked.prompt, codes.numpy(), ours.base.ids)
    inputs = [torch.from_numpy(rows.text)[None], torch.from_numpy(rows.codec)[None]]
    inputs += [asked.vector[None]]
    _, inner = ours(*inputs, torch.from_numpy(targets)[None], trace=True)
    heads = ours.talker.code_predictor.lm_head
    for number, head in enumerate(heads):
        part = cross_entropy(inner.logits[:, number], codes[:, number + 1])
        found = torch.autograd.grad(
            part, [each.weight for each in heads], retain_graph=True, allow_unused=True
        )
        assert [grad is not None and bool(grad.any()) for grad in found] == [
            each is head for each in heads
        ]


def test_targets_of_padding_are_ignored(planted: tuple[Speech, Asked, Tensor]) -> None:
    ours, asked, codes = planted
    _, targets = build(asked.prompt, codes.numpy(), ours.base.ids)
    assert (targets[: -len(codes) - 1] == IGNORE).all()
