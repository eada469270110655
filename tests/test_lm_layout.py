"""Sequences of codec language models by hand: tokens and targets of each family against the ids
that its checkpoints have, and token streams that are none.
"""

import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_bases import llama, qwen
from pydantic import ValidationError

from sheen_cli import SheenError
from sheen_lm.convention import Convention
from sheen_lm.families import FAMILIES, books, family
from sheen_lm.layout import (
    IGNORE,
    Ids,
    Prompt,
    allowed,
    build,
    check_codec,
    dedup,
    flatten,
    head,
    read,
    resolve,
)  # fmt: skip
from sheen_lm.vocabulary import extend

HI = [39, 72]
X = IGNORE
FRAME = np.array([[1, 2, 3, 4, 5, 6, 7]])  # L1, L2a, L2b, L3a, L3b, L3c, L3d
TREE = [1, 2, 4, 5, 3, 6, 7]  # the same frame as Orpheus writes it
SPEECH = np.array([[5], [65_535]])  # of a codec with one codebook
QWEN_BASED = ("sheen", "vyvo", "books")


@cache
def usual(name: str) -> Ids:
    """A family resolved through the tokenizer of its usual base, extended."""
    base = qwen() if name in QWEN_BASED else llama()
    extend(base, family(name))
    return resolve(family(name), base)


def ids(name: str, **changed: Any) -> Ids:
    found = usual(name)
    return replace(found, convention=found.convention.model_copy(update=changed))


def random_codes(name: str, frames: int, seed: int = 0) -> np.ndarray:
    sizes = ids(name).convention.codes.sizes
    return np.random.default_rng(seed).integers(0, sizes, (frames, len(sizes)))


ALL = [*FAMILIES]


def orpheus_codes(first: int) -> list[int]:
    return [first + place * 4096 + code for place, code in enumerate(TREE)]


def test_sheen_writes_text_and_codes_without_spaces() -> None:
    tokens, targets = build(Prompt(" Hi "), FRAME, ids("sheen"))
    first = [151_671, 151_671 + 4096, 151_671 + 8192]  # of layers 1, 2 and 3
    codes = [first[0] + 1, first[1] + 2, first[1] + 3, *(first[2] + code for code in (4, 5, 6, 7))]
    assert tokens.tolist() == [*HI, 151_669, *codes, 151_670]
    assert targets.tolist() == [X, X, *codes, 151_670, X]
    assert ids("sheen").tokenizer.convert_ids_to_tokens(first[2] + 7) == "<snac_l3_7>"
    assert len(ids("sheen").tokenizer) == 163_959


def test_orpheus_puts_turns_around_and_scores_all() -> None:
    tokens, targets = build(Prompt("Hi", speaker="Hi"), FRAME, ids("orpheus"))
    voice = [*HI, 25, 220]  # "Hi: "
    lead = [128_259, 128_000, *voice, *HI, 128_009, 128_260, 128_261, 128_257]
    assert tokens.tolist() == [*lead, *orpheus_codes(128_266), 128_258, 128_262]
    assert targets.tolist() == [*tokens[1:], X]
    assert (ids("orpheus").stop, ids("orpheus").pad) == (128_258, 128_263)
    assert int(ids("orpheus").codes.max()) == 156_937
    spoken = tokens[len(lead) : -2] - 128_256  # as its own decoder has it
    assert [n - 10 - (at % 7) * 4096 for at, n in enumerate(spoken)] == TREE


def test_vyvo_has_other_ids_and_no_beginning() -> None:
    tokens, targets = build(Prompt("Hi"), FRAME, ids("vyvo"))
    lead = [151_672, *HI, 151_645, 151_673, 151_674, 151_670]
    codes = orpheus_codes(151_679)
    assert tokens.tolist() == [*lead, *codes, 151_671, 151_675]
    assert targets.tolist() == [*[X] * (len(lead) - 1), *codes, 151_671, X, X]
    assert (ids("vyvo").stop, ids("vyvo").pad) == (151_671, 151_676)


def test_maya_describes_the_voice_before_the_text() -> None:
    tokens, targets = build(Prompt("Hi", instruct="low"), FRAME, ids("maya1"))
    words = ids("maya1").tokenizer('<description="low"> Hi', add_special_tokens=False)["input_ids"]
    assert tokens[:2].tolist() == [128_259, 128_000]
    assert tokens[2:-13].tolist() == words
    assert tokens[-13:-9].tolist() == [128_009, 128_260, 128_261, 128_257]
    assert tokens[-9:].tolist() == [*orpheus_codes(128_266), 128_258, 128_262]
    assert targets[-10:].tolist() == [*orpheus_codes(128_266), 128_258, X, X]
    assert (targets[:-10] == X).all()


def test_llasa_speaks_in_a_chat_and_scores_the_start_of_speech() -> None:
    found = ids("llasa")
    tokens, targets = build(Prompt("Hi"), SPEECH, found)
    assert len(found.tokenizer) == 193_800
    spoken = [128_260, 128_264 + 5, 128_264 + 65_535, 128_261]
    assert tokens[-5:].tolist() == [*spoken, 128_009]
    assert targets[-6:].tolist() == [*spoken, X, X]
    assert (targets[:-6] == X).all()
    text = found.tokenizer.decode(tokens, spaces_between_special_tokens=False)
    assert text.startswith(
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: "
    )
    assert (
        "<|start_header_id|>user<|end_header_id|>\n\nConvert the text to speech:"
        "<|TEXT_UNDERSTANDING_START|>Hi<|TEXT_UNDERSTANDING_END|><|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n<|SPEECH_GENERATION_START|><|s_5|>"
    ) in text
    at = tokens.tolist().index(128_258)
    assert tokens[at : at + 4].tolist() == [128_258, *HI, 128_259]


def test_inworld_sorts_its_tokens_as_strings() -> None:
    found = ids("inworld")
    names = sorted(
        [f"<|s_{code}|>" for code in range(65_536)]
        + [f"<|{what}_{end}|>" for what in ("text_prompt", "speech", "voice_description",
                                            "sound_effect") for end in ("start", "end")]
    )  # fmt: skip
    own = {name: 128_256 + place for place, name in enumerate(names)}
    tokens, targets = build(Prompt("Hi"), SPEECH, found)
    spoken = [own[f"<|{name}|>"] for name in ("speech_start", "s_5", "s_65535", "speech_end")]
    assert own["<|s_10|>"] != own["<|s_0|>"] + 10
    line_feed = found.tokenizer("\n")["input_ids"][0]
    start = found.tokenizer("Convert the text to speech:")["input_ids"]
    text = [own["<|text_prompt_start|>"], *HI, own["<|text_prompt_end|>"], line_feed]
    assert tokens.tolist() == [128_000, *start, *text, *spoken]
    assert targets.tolist() == [*[X] * (len(tokens) - 5), *spoken, X]
    assert found.pad == 128_009  # the end of a text, since Llama has no token for padding


def test_books_are_written_frame_by_frame() -> None:
    codes = np.arange(16).reshape(2, 8)
    codes[1, 7] = 2047
    tokens, targets = build(Prompt("Hi"), codes, ids("books"))
    first = 151_671
    expected = [first + book * 2048 + code for frame in codes for book, code in enumerate(frame)]
    assert tokens.tolist() == [*HI, 151_669, *expected, 151_670]
    assert targets.tolist() == [X, X, *expected, 151_670, X]


def test_texts_are_normalized_the_same_way_in_training_and_speaking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spelling.py").write_text("def out(text):\n    return text.replace('2', 'two')\n")
    monkeypatch.syspath_prepend(tmp_path)
    plain = build(Prompt("hi two"), FRAME, ids("sheen"))[0].tolist()
    low = ids("sheen", normalizer="lower")
    assert build(Prompt("HI Two"), FRAME, low)[0].tolist() == plain
    assert head(Prompt("HI Two"), low).tolist() == plain[: len(plain) - 8]
    spelt = ids("sheen", normalizer="spelling:out")
    assert build(Prompt("hi 2"), FRAME, spelt)[0].tolist() == plain
    with pytest.raises(ValidationError, match="neither none, lower nor module:function"):
        Convention.model_validate({**family("sheen").model_dump(), "normalizer": "spelling:no"})


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("llasa", "<|start_header_id|>"),  # the base's own
        ("llasa", "<|TEXT_GENERATION_START|>"),  # added, of no role
        ("orpheus", "<custom_token_0>"),  # numbered below the codes
        ("orpheus", "<|end_of_text|>"),
        ("sheen", "<|im_start|>"),
    ],
)
def test_text_with_a_token_that_means_something_else_is_refused(name: str, token: str) -> None:
    with pytest.raises(SheenError, match=f"the text holds {re.escape(token)}, which is a token"):
        build(Prompt(f"Hi {token} you"), random_codes(name, 2), ids(name))


@pytest.mark.parametrize("name", ALL)
def test_codes_come_back_from_their_ids(name: str) -> None:
    found, codes = ids(name), random_codes(name, 9)
    tokens, targets = build(Prompt("Hi"), codes, found)
    start = head(Prompt("Hi"), found)
    assert tokens[: len(start)].tolist() == start.tolist()
    back = read(tokens[len(start) :], found)
    assert back.codes.tolist() == codes.tolist()
    assert (back.partial, back.misplaced, back.ended) == (0, 0, True)
    spoken = targets[len(start) - 1 :]
    assert spoken[: codes.size + 1].tolist() == [*flatten(codes, found), found.stop]


@pytest.mark.parametrize("name", ALL)
def test_the_end_counts_and_is_not_the_padding(name: str) -> None:
    for loss in ("all", "codes", "marker"):
        found = ids(name, loss=loss)
        _, targets = build(Prompt("Hi"), random_codes(name, 2), found)
        assert (targets == found.stop).sum() == 1
    assert found.pad != found.stop


def test_what_counts_by_loss() -> None:
    tokens, codes = build(Prompt("Hi"), FRAME, ids("vyvo", loss="codes"))
    _, marker = build(Prompt("Hi"), FRAME, ids("vyvo", loss="marker"))
    _, everything = build(Prompt("Hi"), FRAME, ids("vyvo", loss="all"))
    assert (marker != codes).nonzero()[0].tolist() == [5] and marker[5] == 151_670
    assert everything.tolist() == [*tokens[1:], X]


@pytest.mark.parametrize("loss", ["all", "codes", "marker"])
def test_a_reference_runs_into_the_target_and_its_codes_do_not_count(loss: str) -> None:
    found = ids("sheen", loss=loss)
    heard = FRAME + 100
    prompt = Prompt("Hi", reference=("iH ", heard))
    tokens, targets = build(prompt, FRAME, found)
    before, codes = flatten(heard, found).tolist(), flatten(FRAME, found).tolist()
    words = [72, 39, 220, *HI, 151_669]  # "iH Hi"
    assert tokens.tolist() == [*words, *before, *codes, 151_670]
    assert head(prompt, found).tolist() == [*words, *before]
    assert targets.tolist() == [*[X] * 12, *codes, 151_670, X]  # nothing of what is gone on from


def test_no_frames_are_an_end_alone() -> None:
    tokens, targets = build(Prompt("Hi"), np.zeros((0, 7), int), ids("sheen"))
    assert tokens.tolist() == [*HI, 151_669, 151_670] and targets.tolist() == [X, X, 151_670, X]


def test_dedup_is_off_unless_asked_for() -> None:
    codes = np.array([[1, 2], [1, 2], [1, 3], [4, 3], [1, 2]])
    convention = books(2, 8)
    off, first, frame = (
        dedup(codes, convention.model_copy(update={"dedup": mode})).tolist()
        for mode in ("off", "first", "frame")
    )
    assert off == codes.tolist()
    assert first == [[1, 2], [4, 3], [1, 2]]
    assert frame == [[1, 2], [1, 3], [4, 3], [1, 2]]
    repeated = np.repeat(FRAME, 3, 0)
    tokens, _ = build(Prompt("Hi"), repeated, ids("sheen", dedup="frame"))
    assert len(tokens) == 2 + 1 + 7 + 1
    assert len(build(Prompt("Hi"), repeated, ids("sheen"))[0]) == 2 + 1 + 21 + 1


def test_what_may_stand_at_each_place() -> None:
    places = allowed(ids("orpheus"))
    assert [len(place) for place in places] == [4097, *[4096] * 6]
    assert places[0][-1] == 128_258 and places[0][5] == 128_271
    assert places[3].tolist() == list(range(128_266 + 3 * 4096, 128_266 + 4 * 4096))


def test_smaller_codebooks_are_padded_and_never_allowed_beyond_their_end() -> None:
    codes = {"token": "<{codebook} {code}>", "offset": "none", "sizes": (2, 4), "layers": (1, 2),
             "frame": (1, 0)}  # fmt: skip
    convention = Convention.model_validate({**FAMILIES["sheen"], "codes": codes})
    base = qwen(256)
    extend(base, convention)
    found = resolve(convention, base)
    assert (found.codes[1] == -1).tolist() == [False, False, True, True]
    assert [len(place) for place in allowed(found)] == [5, 2]
    back = read(build(Prompt("Hi"), np.array([[1, 3]]), found)[0][3:], found)
    assert back.codes.tolist() == [[1, 3]]


def stream(*parts: list[int]) -> list[int]:
    return [token for part in parts for token in part]


A, B = orpheus_codes(128_266), [token + 100 for token in orpheus_codes(128_266)]
STOP = [128_258]
ONE, TWO = [FRAME[0].tolist()], [FRAME[0].tolist(), (FRAME[0] + 100).tolist()]


@pytest.mark.parametrize(
    ("tokens", "codes", "partial", "misplaced", "ended"),
    [
        (stream(A, B, STOP), TWO, 0, 0, True),
        (stream(A, B), TWO, 0, 0, False),
        ([], [], 0, 0, False),
        (STOP, [], 0, 0, True),
        (stream(A, B[:3], STOP), ONE, 3, 0, True),
        (stream(A, B[:6]), ONE, 6, 0, False),
        (stream(A[:3], B, STOP), [TWO[1]], 0, 3, True),  # a frame broken off, the next one whole
        (stream(A[::-1], B, STOP), [TWO[1]], 0, 7, True),  # out of order
        (stream([A[0], A[2], A[1]], A[3:], B), [TWO[1]], 0, 7, False),  # layers changed about
        (stream(A[:4], [39], A[4:], B), [TWO[1]], 0, 8, False),  # a letter inside a frame
        (stream([39, 128_257, -5, 10**9], A), ONE, 0, 4, False),
        (stream([156_938, 128_265], A), ONE, 0, 2, False),  # beside the codes' range
        (stream(A, STOP, B, STOP), ONE, 0, 0, True),  # read up to the end
    ],
)
def test_streams_that_are_none_are_counted(
    tokens: list[int], codes: list[Any], partial: int, misplaced: int, ended: bool
) -> None:
    found = read(tokens, ids("orpheus"))
    assert found.codes.tolist() == codes and found.codes.shape[1] == 7
    assert (found.partial, found.misplaced, found.ended) == (partial, misplaced, ended)


@pytest.mark.parametrize("name", ["sheen", "llasa", "books"])
def test_every_token_of_any_stream_is_accounted_for(name: str) -> None:
    found, random = ids(name), np.random.default_rng(0)
    some = np.concatenate([found.codes[:, :3].reshape(-1), [39, -1, 10**7]])
    for _ in range(200):
        tokens = random.choice(some, 40)
        back = read(tokens, found)
        assert back.codes.size + back.partial + back.misplaced == 40
        assert not back.ended and read([*tokens, found.stop], found).ended


def test_layers_in_the_wrong_order_are_refused() -> None:
    codes = FAMILIES["sheen"]["codes"] | {"frame": (0, 1, 2, 3, 4, 5, 5)}
    with pytest.raises(ValidationError, match="frame must name each of the 7 codebooks once"):
        Convention.model_validate({**FAMILIES["sheen"], "codes": codes})
    check_codec(family("sheen"), "snac", (4096,) * 7, (1, 2, 2, 3, 3, 3, 3))
    with pytest.raises(SheenError, match=r"with layers .* the codec snac has \[1, 2, 3, 3,"):
        check_codec(family("sheen"), "snac", (4096,) * 7, (1, 2, 3, 3, 2, 3, 3))
    with pytest.raises(SheenError, match=r"with sizes .* choose another codec"):
        check_codec(family("sheen"), "mimi", (2048,) * 7, (1, 2, 2, 3, 3, 3, 3))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[1, 2, 3, 4, 5, 6, 4096]], r"codebook 6 \(layer 3\) holds 4096 in frame 0, .* 0 to 4095"),
        ([[0] * 7, [0, -1, 0, 0, 0, 0, 0]], r"codebook 1 \(layer 2\) holds -1 in frame 1"),
        ([[1, 2, 3]], "7 codebooks are needed, frames x codebooks, but the codes are 1 x 3;"),
        ([1, 2, 3, 4, 5, 6, 7], "the codes are 7;"),
        ([[1, 2, 3, 4, 5, 6, 7.5]], "whole numbers, not float64"),
        ([[1, 2, 3, 4, 5, 6, 7], [1]], "not all frames have 7 codes"),
    ],
)
def test_codes_that_do_not_fit_are_named(codes: Any, message: str) -> None:
    with pytest.raises(SheenError, match=message) as caught:
        build(Prompt("Hi"), codes, ids("sheen"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt(""), "the row's text is empty"),
        (Prompt(" \n"), "the row's text is empty"),
        (Prompt("Hi", reference=(" ", FRAME)), "the reference's text is empty"),
        (Prompt("Hi<audio_end>"), "the text holds <audio_end>, .* take it out"),
        (Prompt("<snac_l1_7>"), "the text holds <snac_l1_7>"),
        (Prompt("Hi", speaker="<audio_start>"), "the text holds <audio_start>"),
        (Prompt("Hi", reference=("Hi", FRAME + 9999)), "10000 in frame 0"),
    ],
)
def test_text_that_cannot_be_spoken_is_refused(prompt: Prompt, message: str) -> None:
    with pytest.raises(SheenError, match=message):
        head(prompt, ids("sheen"))


def test_white_space_stays_where_the_convention_keeps_it() -> None:
    found = ids("sheen", strip=False)
    assert head(Prompt(" Hi"), found).tolist() == [220, *HI, 151_669]


def test_braces_in_a_name_are_letters() -> None:
    found = ids("sheen")
    assert head(Prompt("Hi", speaker="{x}"), found).tolist()[:3] == [90, 87, 92]


def test_missing_tokens_are_named() -> None:
    with pytest.raises(SheenError, match=r"no <audio_start> \(speech_start\); add it"):
        resolve(family("sheen"), qwen(256))
    base = qwen(256)
    base.add_tokens(["<audio_start>", "<audio_end>", "<snac_l1_0>"])
    with pytest.raises(SheenError, match="no <snac_l1_1>, nor 12286 more of the codes' tokens"):
        resolve(family("sheen"), base)
    with pytest.raises(SheenError, match=r"{bos} is used, but the tokenizer has no bos token"):
        resolve(family("inworld").model_copy(update={"specials": {"speech_end": 5}}), qwen(256))


def changed(**values: Any) -> Convention:
    """Sheen's grammar over codes that have ids alone."""
    codes = {"first": 300, "stride": 8, "sizes": (8, 8), "layers": (1, 2), "frame": (0, 1)}
    specials = {"speech_start": 290, "speech_end": 291}
    return Convention.model_validate(
        {**FAMILIES["sheen"], "codes": codes, "specials": specials, **values}
    )


@pytest.mark.parametrize(
    ("convention", "message"),
    [
        (changed(specials={"speech_start": 301, "speech_end": 291}), "speech_start has id 301, "),
        (changed(specials={"speech_start": 290, "speech_end": 315}), "speech_end has id 315, "),
        (changed(specials={"speech_start": 290, "speech_end": 290}), "the same id, 290"),
        (changed(specials={"pad": 291, "speech_start": 290, "speech_end": 291}), "pad and speech"),
        (changed(codes={**changed().codes.model_dump(), "first": 200}), "the tokenizer's text"),
    ],
)
def test_ids_that_mean_two_things_are_refused(convention: Convention, message: str) -> None:
    with pytest.raises(SheenError, match=message):
        resolve(convention, qwen(256))


def test_a_base_that_pads_with_the_end_of_speech_needs_another_padding() -> None:
    base = qwen(256)
    base.add_special_tokens({"pad_token": "<|other_9|>", "eos_token": "<|other_9|>"})
    stop = base.pad_token_id
    with pytest.raises(SheenError, match="no pad token but the end of speech"):
        resolve(changed(specials={"speech_start": 290, "speech_end": stop}), base)
    own = {"speech_start": 290, "speech_end": stop, "pad": "<|other_8|>"}
    assert resolve(changed(specials=own), base).pad == stop - 1


def test_ids_alone_need_no_tokens() -> None:
    found = resolve(changed(), qwen(256))
    assert found.codes.tolist() == [list(range(300, 308)), list(range(308, 316))]


@pytest.mark.parametrize(
    ("offset", "firsts"),
    [
        ("none", [300, 300, 300, 300]),
        ("layer", [300, 316, 308, 308]),  # of layers 1, 3, 2 and 2
        ("place", [300, 308, 316, 324]),
    ],
)
def test_ids_are_counted_by_layer_or_by_place(offset: str, firsts: list[int]) -> None:
    codes = {"first": 300, "stride": 8, "sizes": (8,) * 4, "layers": (1, 2, 2, 3)}
    found = resolve(changed(codes={**codes, "frame": (0, 3, 1, 2), "offset": offset}), qwen(256))
    assert found.codes[:, 0].tolist() == firsts


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"speaker": "{name}: "}, r"speaker: \{name\} stands for nothing; write \{speaker\}"),
        ({"sequence": "{codes}{speech_end}{text}"}, "comes before"),
        ({"sequence": "{text}{codes}"}, r"\{speech_end\} must be in it once"),
        ({"sequence": "{text}{pad}{codes}{speech_end}"}, "specials has no such role"),
        ({"colour": 1}, "colour"),
    ],
)
def test_conventions_that_make_no_sense_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        changed(**values)


def test_an_unknown_family_is_named() -> None:
    with pytest.raises(SheenError, match="no family kani; known are sheen, orpheus"):
        family("kani")
