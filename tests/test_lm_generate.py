"""Codec language models speaking: what transformers says under the same mask, what the loss says of
it, each sentence alone and among others, always something that can be decoded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import tiny_codecs
import torch
from lm_bases import llama, llama_model, qwen, qwen_model
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
)

from sheen_cli import Audio, Reference, Request, SheenError
from sheen_lm import adapters, codecs, layout, vocabulary, voice
from sheen_lm.convention import Convention
from sheen_lm.families import FAMILIES
from sheen_lm.generate import Choice, Spoken, Wish, generate, wish
from sheen_lm.layers import BLOCK
from sheen_lm.layout import Ids, Prompt
from sheen_lm.model import CodesLM
from sheen_lm.sampling import Sampling
from sheen_lm.stack import Own, decoder

Speak = Callable[..., list[Audio]]
TEXTS = ("hello there", "a", "something that is longer than those", "x y")
SAMPLINGS = {
    "temperature": Sampling(1.2, 0, 1.0, 0.0, 1.0),
    "top_k": Sampling(1.5, 5, 1.0, 0.0, 1.0),
    "top_p": Sampling(0.9, 0, 0.8, 0.0, 1.0),
    "min_p": Sampling(2.0, 0, 1.0, 0.1, 1.0),
    "all": Sampling(1.3, 9, 0.9, 0.02, 1.4),
}


def gpt2_model(rows: int) -> Any:
    """Learnt positions, few of them, and biases: nothing like Llama."""
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=rows, n_positions=512, n_embd=64, n_layer=2, n_head=4,
                   bos_token_id=None, eos_token_id=None)
    )  # fmt: skip


def scaled_model(kind: str) -> Callable[[int], Any]:
    """A Llama with another rotation."""

    def made(rows: int) -> Any:
        found = llama_model(rows, tied=False, width=64)
        own = {"rope_type": kind, "factor": 4.0, "original_max_position_embeddings": 64}
        if kind == "llama3":
            own |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
        found.config.rope_scaling = own
        return type(found)(found.config)

    return made


KINDS: dict[str, tuple[Callable[[int], Any], Callable[[int], Any], str]] = {
    "qwen": (qwen, lambda rows: qwen_model(rows, width=64), "sheen"),
    "llama": (llama, lambda rows: llama_model(rows, width=64), "orpheus"),
    "llama3 rotation": (llama, scaled_model("llama3"), "llasa"),
    "dynamic rotation": (llama, scaled_model("dynamic"), "inworld"),
    "gpt2": (qwen, gpt2_model, "sheen"),
}


def convention(family: str, size: int = 8) -> Convention:
    """A family's, with small codebooks."""
    values = FAMILIES[family]
    books = len(values["codes"]["sizes"])
    codes = {**values["codes"], "sizes": (size if books > 1 else 2 * size,) * books}
    codes |= {"stride": size} if books > 1 else {}
    return Convention.model_validate({**values, "codes": codes, "rows": 0})


def tiny(kind: str, **changes: Any) -> CodesLM:
    """Of a kind in KINDS, with weights so large that it is sure of what it says."""
    words, made, family = KINDS[kind]
    own = convention(family)
    own = own.model_copy(update=changes)
    tokenizer = words(300)
    vocabulary.extend(tokenizer, own)
    torch.manual_seed(0)
    lm = made(len(tokenizer))
    for parameter in lm.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return CodesLM(lm.eval(), layout.resolve(own, tokenizer))


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> CodesLM:
    return tiny(request.param)


@pytest.fixture(scope="module")
def sheen() -> CodesLM:
    return tiny("qwen")


def wishes(ids: Ids, greedy: bool, limits: Sequence[int] = (6, 3, 9, 5)) -> list[Wish]:
    return [
        wish(Prompt(text), ids, limit, number, greedy)
        for number, (text, limit) in enumerate(zip(TEXTS, limits, strict=True))
    ]


# --- against transformers -------------------------------------------------------------------------


class Mask(LogitsProcessor):
    """What `layout.allowed` says, as transformers has masks."""

    def __init__(self, ids: Ids, start: int) -> None:
        self.allowed, self.start, self.stop = layout.allowed(ids), start, ids.stop

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        step = tokens.shape[1] - self.start
        some = torch.from_numpy(self.allowed[step % len(self.allowed)])
        if step == 0:
            some = some[some != self.stop]
        masked = torch.full_like(scores, float("-inf"))
        masked[:, some] = scores[:, some]
        return masked


class Windowed(RepetitionPenaltyLogitsProcessor):
    """transformers' penalty of the last `window` ids that were said."""

    def __init__(self, penalty: float, start: int, window: int) -> None:
        super().__init__(penalty)
        self.start, self.window = start, window

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        return super().__call__(tokens[:, self.start :][:, -self.window :], scores)  # type: ignore[no-any-return]


def theirs(model: CodesLM, wished: Sequence[Wish], sampling: Sampling) -> list[np.ndarray]:
    """Codes that transformers' `generate` says under the same mask, prompts padded at the left."""
    width = max(len(each.prompt) for each in wished)
    prompts = torch.full((len(wished), width), model.ids.pad)
    seen = torch.zeros_like(prompts)
    for row, each in enumerate(wished):
        prompts[row, width - len(each.prompt) :] = torch.from_numpy(each.prompt)
        seen[row, width - len(each.prompt) :] = 1
    rules = [Windowed(float(sampling.repetition_penalty), width, sampling.window)]
    drawn: dict[str, Any] = {"do_sample": False}
    if not wished[0].greedy:
        drawn = {
            "do_sample": True, "temperature": sampling.temperature, "top_k": sampling.top_k,
            "top_p": sampling.top_p, "min_p": sampling.min_p or None,
        }  # fmt: skip
    torch.manual_seed(wished[0].seed)
    said = model.lm.generate(
        input_ids=prompts, attention_mask=seen, eos_token_id=model.ids.stop,
        pad_token_id=model.ids.pad, max_new_tokens=max(e.limit for e in wished) * model.ids.places,
        logits_processor=LogitsProcessorList([*rules, Mask(model.ids, width)]), **drawn,
    )  # fmt: skip
    return [
        layout.read(row[width:], model.ids).codes[: each.limit]
        for row, each in zip(said.tolist(), wished, strict=True)
    ]


def same_seed(model: CodesLM, sampling: Sampling) -> None:
    for each in wishes(model.ids, greedy=False)[:2]:
        (said,) = generate(model, [each], sampling)
        (expected,) = theirs(model, [each], sampling)
        assert np.array_equal(said.codes, expected)


def test_a_seed_says_what_it_says_in_transformers(model: CodesLM) -> None:
    same_seed(model, SAMPLINGS["all"])


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_every_way_to_sample_is_that_of_transformers(sheen: CodesLM, sampling: str) -> None:
    same_seed(sheen, SAMPLINGS[sampling])


@pytest.mark.parametrize(("penalty", "window"), [(1.0, 0), (1.3, 0), (1.3, 5)])
def test_a_greedy_batch_says_what_it_says_in_transformers(
    model: CodesLM, penalty: float, window: int
) -> None:
    sampling = Sampling(repetition_penalty=penalty, window=window)
    asked = wishes(model.ids, greedy=True)
    said = generate(model, asked, sampling)
    for mine, expected in zip(said, theirs(model, asked, sampling), strict=True):
        assert np.array_equal(mine.codes, expected)


def test_the_penalty_and_its_window_change_what_is_said(sheen: CodesLM) -> None:
    asked = [replace(wishes(sheen.ids, greedy=True)[0], limit=20)]
    ways = Sampling(repetition_penalty=1.0), Sampling(window=3), Sampling(repetition_penalty=2.0)
    said = [generate(sheen, asked, way)[0].codes.tolist() for way in ways]
    assert said[0] != said[1] != said[2] != said[0]


def test_buffers_grow_with_a_long_speech(sheen: CodesLM) -> None:
    asked = [replace(wishes(sheen.ids, greedy=True)[0], limit=40)]
    sampling = Sampling(repetition_penalty=1.0)
    (said,), (expected,) = generate(sheen, asked, sampling), theirs(sheen, asked, sampling)
    assert len(said.codes) * sheen.ids.places > BLOCK + 20
    assert np.array_equal(said.codes, expected)


def test_llama_and_qwen_run_on_our_layers(model: CodesLM) -> None:
    ours = isinstance(decoder(model.lm.base_model, 1, 8), Own)
    rotation = getattr(model.lm.config, "rope_scaling", None) or {"rope_type": "default"}
    assert ours == (model.lm.config.model_type != "gpt2" and rotation["rope_type"] != "dynamic")


# --- alone and together ---------------------------------------------------------------------------


def test_each_sentence_says_the_same_alone_and_among_others(model: CodesLM) -> None:
    asked = wishes(model.ids, greedy=False)
    asked[1] = replace(asked[1], greedy=True)
    together = generate(model, asked, SAMPLINGS["all"])
    for one, said in zip(asked, together, strict=True):
        (alone,) = generate(model, [one], SAMPLINGS["all"])
        assert np.array_equal(said.codes, alone.codes) and said.stop == alone.stop
        assert said.nll == pytest.approx(alone.nll, abs=1e-3)
    other, same = generate(model, [replace(asked[0], seed=9), asked[0]], SAMPLINGS["temperature"])
    assert not np.array_equal(other.codes, same.codes)


def test_what_is_over_leaves_the_batch(sheen: CodesLM) -> None:
    fed: list[int] = []
    table = sheen.lm.get_input_embeddings()
    hook = table.register_forward_hook(lambda _, given, __: fed.append(len(given[0])))
    said = generate(sheen, wishes(sheen.ids, greedy=True, limits=(6, 3, 9, 5)), Sampling())
    hook.remove()
    lengths = [len(each.codes) * sheen.ids.places for each in said]
    assert len(set(lengths)) > 2
    assert fed[1:] == [sum(length > step for length in lengths) for step in range(max(lengths))]


# --- what it cost ---------------------------------------------------------------------------------


def forced(model: CodesLM, prompt: Prompt, codes: np.ndarray) -> tuple[float, Tensor]:
    """The loss of a row with these codes, and the logits behind it."""
    tokens, targets = (
        torch.from_numpy(each)[None] for each in layout.build(prompt, codes, model.ids)
    )
    with torch.no_grad():
        scored = model(tokens, targets, trace=True)
    return float(scored.total), scored.logits


def like_the_loss(model: CodesLM, prompts: Sequence[Prompt]) -> None:
    asked = [
        wish(prompt, model.ids, 5 + number, number, greedy=number == 1)
        for number, prompt in enumerate(prompts)
    ]
    plain = generate(model, asked, SAMPLINGS["all"])
    for prompt, said, traced in zip(
        prompts, plain, generate(model, asked, SAMPLINGS["all"], trace=True), strict=True
    ):
        total, logits = forced(model, prompt, said.codes)
        assert said.logits is None and traced.logits is not None
        assert traced.logits.shape == logits.shape
        assert torch.allclose(traced.logits, logits, atol=2e-4)
        assert said.nll == pytest.approx(total, abs=1e-3)
        assert traced.nll == pytest.approx(total, abs=1e-3)


@pytest.mark.parametrize("loss", ["codes", "marker", "all"])
def test_the_nll_is_the_loss_of_a_row_with_these_codes(loss: str) -> None:
    model = tiny("llama", loss=loss)
    heard = np.random.default_rng(0).integers(0, 8, (4, 7))
    like_the_loss(
        model,
        [
            Prompt("one"),
            Prompt("two and more", "Ann"),
            Prompt("go on", None, None, ("heard", heard)),
        ],
    )


def test_the_nll_is_the_loss_whatever_the_model(model: CodesLM) -> None:
    like_the_loss(model, [Prompt(text) for text in TEXTS[:2]])


@pytest.mark.parametrize("kind", ["qwen", "dynamic rotation"])
def test_adapters_and_new_rows_speak(kind: str) -> None:
    model = tiny(kind)
    fresh = np.unique(np.concatenate(layout.allowed(model.ids)))
    adapters.attach(model, 4, 8, 0.0, adapters.linear(model.lm), fresh)
    before = generate(model, wishes(model.ids, greedy=True), Sampling())
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    after = generate(model, wishes(model.ids, greedy=True), Sampling())
    assert any(not np.array_equal(a.codes, b.codes) for a, b in zip(before, after, strict=True))
    like_the_loss(model, [Prompt(text) for text in TEXTS[:2]])


def test_the_nll_chooses_as_the_loss_does(sheen: CodesLM) -> None:
    audio = np.unique(np.concatenate(layout.allowed(sheen.ids)))
    some = CodesLM(sheen.lm, sheen.ids, audio)
    like_the_loss(some, [Prompt(text) for text in TEXTS[:2]])
    (whole,), (part,) = (
        generate(each, wishes(sheen.ids, True)[:1], Sampling()) for each in (sheen, some)
    )
    assert np.array_equal(whole.codes, part.codes) and part.nll < whole.nll


# --- always speech --------------------------------------------------------------------------------


def test_whatever_is_said_can_be_decoded(model: CodesLM) -> None:
    hot = Sampling(50.0, 0, 1.0, 0.0, 1.0)  # close to drawing lots
    asked = [wish(Prompt("lots"), model.ids, 12, seed, False) for seed in range(8)]
    said = generate(model, asked, hot)
    for each in said:
        assert each.trimmed == 0 and 1 <= len(each.codes) <= 12
        assert each.stop == "end" or len(each.codes) == 12
        codes = model.ids.convention.codes
        layout.verified(each.codes, codes.sizes, codes.layers)
    assert len({len(each.codes) for each in said}) > 1  # some drew the end
    assert all((np.ptp(np.concatenate([e.codes for e in said]), 0) > 3).tolist())


def test_ids_far_from_one_another_are_chosen_as_well() -> None:
    """An end that is an old token, before 400 rows of others."""
    model = tiny("qwen", specials={"speech_start": "<audio_start>", "speech_end": "<|im_start|>"})
    assert np.ptp(layout.allowed(model.ids)[0]) > 2 * 9
    asked = wishes(model.ids, greedy=True)
    sampling = Sampling(repetition_penalty=1.3)
    for mine, expected in zip(
        generate(model, asked, sampling), theirs(model, asked, sampling), strict=True
    ):
        assert np.array_equal(mine.codes, expected)
    one = [replace(asked[0], greedy=False, seed=3)]
    (mine,), (expected,) = generate(model, one, sampling), theirs(model, one, sampling)
    assert np.array_equal(mine.codes, expected)


def test_no_row_of_the_head_is_computed_or_copied_for_nothing(sheen: CodesLM) -> None:
    for allowed in layout.allowed(sheen.ids):
        rows = Choice.of(sheen, allowed, torch.float32).rows
        assert len(rows) == len(allowed)
        assert rows.untyped_storage().data_ptr() == sheen.output_table.untyped_storage().data_ptr()


def test_nothing_to_say_is_nothing(sheen: CodesLM) -> None:
    assert generate(sheen, [], Sampling()) == []
    none, some = generate(sheen, wishes(sheen.ids, True, limits=(0, 2, 1, 1))[:2], Sampling())
    assert none.codes.shape == (0, 7) and none.stop == "length" and none.trimmed == 0
    total, _ = forced(sheen, Prompt(TEXTS[0]), none.codes)
    assert none.nll == pytest.approx(total, abs=1e-3)
    assert len(some.codes) == 2


# --- voices ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def snac(tmp_path_factory: pytest.TempPathFactory) -> codecs.Codec:
    """SNAC with codebooks of eight codes."""
    folder = tiny_codecs.write("snac", tmp_path_factory.mktemp("snac"), codebook_size=8)
    return codecs.load(str(folder))


@dataclass
class Options:
    """As a recipe's `model:` has them."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_window: int = 0


@pytest.fixture
def speak(snac: codecs.Codec) -> Speak:
    def spoken(model: CodesLM, *asked: Request, trace: bool = False, **options: Any) -> list[Audio]:
        return voice.speak(Options(**options), model, snac, asked, trace)

    return spoken


def reference(text: str | None = "heard", in_context: bool = True) -> Reference:
    """Four frames of noise, the last of them not whole."""
    noise = np.random.default_rng(0).normal(0, 0.1, 7000).astype(np.float32)
    return Reference(noise, text, in_context)


def test_each_request_is_spoken_as_it_asks(
    sheen: CodesLM, snac: codecs.Codec, speak: Speak
) -> None:
    asked = [Request("one", 3, max_seconds=0.52), Request("two", greedy=True, max_seconds=1)]
    said = speak(sheen, *asked, trace=True, repetition_penalty=1.2, repetition_window=9)
    by_hand = generate(
        sheen,
        [wish(Prompt("one"), sheen.ids, 6, 3, False), wish(Prompt("two"), sheen.ids, 11, 0, True)],
        Sampling(1.0, 0, 1.0, 0.0, 1.2, 9),
        trace=True,
    )
    for audio, spoken in zip(said, by_hand, strict=True):
        assert audio.codes is not None and np.array_equal(audio.codes, spoken.codes)
        assert audio.nll == {"tokens": spoken.nll} and audio.stop == spoken.stop
        assert spoken.logits is not None and torch.equal(audio.logits["tokens"], spoken.logits)
        assert np.array_equal(audio.samples, snac.decode(spoken.codes)) and audio.rate == 24_000
    assert speak(sheen, asked[0])[0].logits == {}


def test_a_voice_goes_on_from_its_recording_and_is_returned_alone(
    sheen: CodesLM, snac: codecs.Codec, speak: Speak
) -> None:
    heard = reference()
    codes = snac.encode(heard.audio)
    (said,) = speak(sheen, Request("go on", greedy=True, max_seconds=1, reference=heard))
    prompt = Prompt("go on", reference=("heard", codes))
    (without,) = speak(sheen, Request("go on", greedy=True, max_seconds=1))
    assert said.codes is not None and without.codes is not None
    (expected,) = generate(
        sheen, [wish(prompt, sheen.ids, 11, 0, True)], Sampling(repetition_penalty=1.0)
    )
    assert np.array_equal(said.codes, expected.codes)
    assert not np.array_equal(said.codes, without.codes)
    whole = snac.decode(np.concatenate([codes, said.codes]))
    assert np.array_equal(said.samples, whole[4 * 2048 :])
    assert not np.array_equal(said.samples, snac.decode(said.codes))  # SNAC hears its neighbours


def test_what_was_learnt_is_said_with_its_end_and_goes_on_from_its_recording(
    snac: codecs.Codec, speak: Speak
) -> None:
    model, heard = tiny("qwen"), reference()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.05)
    learnt = np.random.default_rng(5).integers(0, 8, (2, 5, 7))
    prompts = Prompt("one"), Prompt("two", reference=("heard", snac.encode(heard.audio)))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(60):
        for prompt, codes in zip(prompts, learnt, strict=True):
            tokens, targets = layout.build(prompt, codes, model.ids)
            scored = model(torch.from_numpy(tokens)[None], torch.from_numpy(targets)[None])
            (scored.total / len(codes)).backward()
        optimizer.step()
        optimizer.zero_grad()
    said = speak(
        model, Request("one", greedy=True), Request("two", greedy=True, reference=heard),
        repetition_penalty=1.1,
    )  # fmt: skip
    for audio, codes in zip(said, learnt, strict=True):
        assert audio.stop == "end" and np.array_equal(np.asarray(audio.codes), codes)
        assert len(audio.samples) == len(codes) * 2048


def test_a_text_has_a_length_that_ends_a_model_that_does_not(speak: Speak) -> None:
    endless = tiny("qwen")
    endless.output_table.data[endless.ids.stop] = 0
    (said,) = speak(endless, Request("ten letters" * 2, greedy=True))
    assert said.stop == "length" and np.shape(said.codes) == (
        int((4 + 0.2 * 22) * 24_000 / 2048),
        7,
    )


def test_the_longest_speech_follows_from_the_text_and_the_pace() -> None:
    heard = "x" * 20, np.zeros((24, 7), np.int64)  # a tenth of a second a letter
    assert voice.longest("y" * 50, None, 12.0) == pytest.approx(4 + 10)
    assert voice.longest("y" * 50, heard, 12.0) == pytest.approx(4 + 15)
    assert voice.longest("\u4e2d" * 50, None, 12.0) == pytest.approx(4 + 30)
    assert voice.longest("y" * 50, ("x", heard[1]), 12.0) == pytest.approx(4 + 50)


def refused(speak: Speak, model: CodesLM, request: Request) -> str:
    with pytest.raises(SheenError) as error:
        speak(model, request)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_spoken_is_refused_in_a_line(sheen: CodesLM, speak: Speak) -> None:
    alone = reference(text=None, in_context=False)
    assert "--icl and --ref-text" in refused(speak, sheen, Request("x", reference=alone))
    assert "nothing to say" in refused(speak, sheen, Request("  "))
    assert "no instruction" in refused(speak, sheen, Request("x", instruct="gently"))
    assert "<audio_end>" in refused(speak, sheen, Request("x<audio_end>"))
    full = refused(speak, tiny("gpt2"), Request("long " * 101))
    assert "takes 505 tokens of the 512" in full and "make it shorter" in full
    broken = tiny("qwen")
    broken.lm.base_model.norm.weight.data[0] = float("nan")
    assert "no numbers" in refused(speak, broken, Request("x", max_seconds=0.2))


def test_a_model_speaks_no_further_than_its_positions(speak: Speak) -> None:
    model = tiny("gpt2")
    model.output_table.data[model.ids.stop] = 0
    (said,) = speak(model, Request("long " * 90))
    assert said.stop == "length" and said.codes is not None and len(said.codes) == 60 // 7


def test_what_is_left_out_is_said(
    sheen: CodesLM, speak: Speak, capsys: pytest.CaptureFixture[str]
) -> None:
    voice.judge(Request("x"), Spoken(np.zeros((2, 7), np.int64), "end", 1.0, None, 3, False))
    assert "3 tokens made no whole frame" in capsys.readouterr().err
    named, other = (
        speak(sheen, Request("x", greedy=True, speaker=name, max_seconds=0.5))[0]
        for name in ("Ann", None)
    )
    assert not np.array_equal(named.codes, other.codes) and not capsys.readouterr().err


def test_s0_4_a_model_that_would_say_nothing_is_reported(
    sheen: CodesLM, speak: Speak, capsys: pytest.CaptureFixture[str]
) -> None:
    hasty = tiny("qwen")
    wish = Wish(layout.head(Prompt("x"), hasty.ids), 5, 0, True)
    with torch.no_grad():
        state = hasty.states(torch.from_numpy(wish.prompt)[None])[0, -1]
    sampling = Sampling(1.0, 0, 1.0, 0.0, 1.0)
    for sign, mute in ((1, True), (-1, False)):  # the end is the likeliest of all, or the last
        hasty.output_table.data[hasty.ids.stop] = sign * 100 * state
        (said,) = generate(hasty, [wish], sampling)
        assert said.mute == mute and len(said.codes)
        speak(hasty, Request("x", greedy=True, max_seconds=0.5))
        warned = "would have ended the speech before it began" in capsys.readouterr().err
        assert warned == mute
