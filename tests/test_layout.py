"""The demo's token layout as tables, and its inverse."""

import pytest
import torch

from sheen_demo.layout import BLANK, BOOKS, END, IGNORE, delay, targets, undelay
from sheen_demo.pace import Pace, fit


def test_delay_table() -> None:
    codes = torch.tensor([[11, 12, 13, 14], [21, 22, 23, 24]])
    b, e = BLANK, END
    assert delay(codes).tolist() == [
        [11, b, b, b],
        [21, 12, b, b],
        [e, 22, 13, b],
        [b, b, 23, 14],
        [b, b, b, 24],
    ]


def test_targets_ask_for_codes_and_the_end_and_nothing_else() -> None:
    wanted = targets(delay(torch.tensor([[11, 12, 13, 14]])))
    i = IGNORE
    assert wanted.tolist() == [[11, i, i, i], [END, 12, i, i], [i, i, 13, i], [i, i, i, 14]]


@pytest.mark.parametrize("frames", [0, 1, 2, 3, 4, 5, 17])
def test_undelay_inverts_delay(frames: int) -> None:
    codes = torch.randint(128, (frames, BOOKS), generator=torch.Generator().manual_seed(frames))
    assert torch.equal(undelay(delay(codes)), codes)


@pytest.mark.parametrize("steps", range(1, 9))
def test_a_cut_stream_gives_the_frames_that_are_whole(steps: int) -> None:
    codes = torch.arange(24).view(6, 4)
    assert torch.equal(undelay(delay(codes)[:steps]), codes[: max(0, min(6, steps - 3))])


def test_words_are_placed_by_the_frames_before_them() -> None:
    pace = Pace(["a", "bb"], [4.0, 6.5], 3.0)
    assert pace.positions([1, 0, 0, 1]) == [0.0, 6.5, 10.5, 14.5]
    assert pace.expected([1, 0]) == 13.5


def test_pace_is_found_from_whole_utterances() -> None:
    true = {"one": 9, "eleven": 14, "to": 5}
    spoken = [
        ["one", "to"], ["eleven"], ["to", "eleven", "one"], ["one"], ["one", "one", "to"], ["to"],
        ["eleven", "to"], ["to", "to", "one", "eleven"],
    ] * 40  # fmt: skip
    pace = fit((words, 3 + sum(true[word] for word in words)) for words in spoken)
    assert pace.words == ["eleven", "one", "to"]
    assert pace.frames == pytest.approx([14, 9, 5], abs=0.4)
    assert pace.rest == pytest.approx(3, abs=0.6)


def test_pace_without_evidence_follows_the_letters() -> None:
    pace = fit([(["aaa", "a"], 12)])
    assert pace.frames[1] > pace.frames[0]
