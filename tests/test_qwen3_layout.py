"""The two-channel layout by hand: rows and targets, for every prompt that the model has."""

import numpy as np
import pytest

from sheen_qwen3_tts.layout import IGNORE, NONE, VECTOR, Ids, Prompt, build, parse, prefix

IDS = Ids(
    role=(1, 2, 3), tts_pad=4, tts_bos=5, tts_eos=6, pad=40, bos=41, eos=42, think=43, nothink=44,
    think_bos=45, think_eos=46, groups=3,
)  # fmt: skip
FRAMES = np.arange(12).reshape(4, 3)
HEARD = ((20, 21, 22), (23, 24, 25))
PROMPTS = {
    "x-vector": Prompt((7, 8), VECTOR),
    "voice": Prompt((7, 8), 60),
    "language": Prompt((7, 8), VECTOR, language=50),
    "design": Prompt((7, 8), None, instruct=(30, 31)),
    "instruct": Prompt((7, 8), 60, language=50, instruct=(30, 31)),
    "icl": Prompt((7, 8), VECTOR, reference=((9,), HEARD)),
    "long icl": Prompt((7,), VECTOR, language=50, reference=((9,), HEARD * 3)),
}
KINDS = [(name, streaming) for name in PROMPTS for streaming in (False, True)]


def prompt(name: str, streaming: bool) -> Prompt:
    from dataclasses import replace

    return replace(PROMPTS[name], streaming=streaming)


def test_the_rows_of_a_named_voice_by_hand() -> None:
    """auto: role, tag of three, speaker, pad; all words, then all sounds."""
    rows, targets = build(Prompt((7, 8), 60), FRAMES[:2], IDS)
    assert rows.text.tolist() == [1, 2, 3, 4, 4, 4, 4, 5, 7, 8, 6, 4, 4, 4]
    first = [NONE, NONE, NONE, 44, 45, 46, 60, 40, 40, 40, 40, 41, 0, 3]
    assert rows.codec[:, 0].tolist() == first
    assert (rows.codec[:12, 1:] == NONE).all() and rows.codec[12].tolist() == [0, 1, 2]
    assert targets[:11].max() == IGNORE
    assert targets[11:].tolist() == [[0, 1, 2], [3, 4, 5], [42, IGNORE, IGNORE]]


def test_a_named_language_moves_the_speaker_by_one_row() -> None:
    auto, named = (prefix(Prompt((7,), VECTOR, language), IDS) for language in (None, 50))
    assert auto.codec[:, 0].tolist().index(VECTOR) == 6
    assert named.codec[:, 0].tolist().index(VECTOR) == 7
    assert named.codec[3:7, 0].tolist() == [43, 45, 50, 46]


def test_streaming_puts_words_and_frames_side_by_side() -> None:
    rows, targets = build(Prompt((7, 8, 9), VECTOR, streaming=True), FRAMES, IDS)
    assert rows.text[8:].tolist() == [7, 8, 9, 6, 4]
    assert rows.codec[8:, 0].tolist() == [41, 0, 3, 6, 9]
    assert targets[8:, 0].tolist() == [0, 3, 6, 9, 42]


def test_in_icl_the_reference_runs_into_the_target_and_is_no_target() -> None:
    rows, targets = build(PROMPTS["icl"], FRAMES[:1], IDS)
    assert rows.text[8:].tolist() == [9, 7, 8, 6, 4, 4, 4, 4]
    assert rows.codec[12:, 0].tolist() == [41, 20, 23, 0]
    assert (targets != IGNORE).any(1).nonzero()[0].tolist() == [14, 15]


def test_text_longer_than_the_sound_is_never_seen() -> None:
    rows, _ = build(Prompt((7, 8, 9, 10), VECTOR, streaming=True), FRAMES[:1], IDS)
    assert rows.text[8:].tolist() == [7, 8] and rows.later == (9, 10, 6)


@pytest.mark.parametrize("name, streaming", KINDS)
def test_parse_inverts_build(name: str, streaming: bool) -> None:
    wanted = prompt(name, streaming)
    rows, targets = build(wanted, FRAMES, IDS)
    found, frames = parse(rows, IDS, len(FRAMES))
    said, heard = wanted.reference or ((), ())
    assert found.text == (*said, *wanted.text)
    assert (found.reference or ((), ()))[1] == heard
    for field in ("speaker", "language", "instruct", "streaming"):
        assert getattr(found, field) == getattr(wanted, field)
    assert (frames == FRAMES).all()
    start = len(prefix(wanted, IDS).text) - 1
    assert (targets[start : start + len(FRAMES)] == FRAMES).all()
    assert targets[start + len(FRAMES), 0] == IDS.eos and (targets != IGNORE).sum() == 13


@pytest.mark.parametrize("name, streaming", KINDS)
def test_synthesis_starts_from_the_rows_of_training(name: str, streaming: bool) -> None:
    wanted = prompt(name, streaming)
    start, (rows, _) = prefix(wanted, IDS), build(wanted, FRAMES, IDS)
    count = len(start.text)
    assert (rows.text[:count] == start.text).all() and (rows.codec[:count] == start.codec).all()


def test_rows_of_something_else_are_refused() -> None:
    rows = prefix(PROMPTS["voice"], IDS)
    rows.text[2] = 99
    with pytest.raises(ValueError, match="no role"):
        parse(rows, IDS)
