"""The demo's codec: lengths, the way back, and that a recording's codes do not depend on where it
stands.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from sheen_cli.rows import Rows
from sheen_demo import codec, words
from sheen_demo.codec import FRAME, Codec


@pytest.fixture(scope="module")
def fitted(data: Path) -> Codec:
    return Codec.load(data / "artifacts" / "codec.safetensors")


@pytest.mark.parametrize("samples, frames", [(1, 1), (799, 1), (800, 1), (801, 2), (8000, 10)])
def test_a_frame_is_800_samples(fitted: Codec, samples: int, frames: int) -> None:
    codes = fitted.encode(np.zeros(samples, np.float32))
    assert codes.shape == (frames, 4)
    assert len(fitted.decode(codes, 2)) == frames * FRAME


def test_no_codes_no_sound(fitted: Codec) -> None:
    assert fitted.decode(torch.zeros(0, 4, dtype=torch.long)).shape == (0,)


def test_round_trip_is_near_in_mels_and_nearest_to_itself(fitted: Codec) -> None:
    clips = [words.recordings()[word][1] for word in ("one", "two", "three", "four")]
    mels = [codec.stacked_mels(clip) for clip in clips]
    for number, clip in enumerate(clips):
        back = codec.stacked_mels(fitted.decode(fitted.encode(clip)))
        near = [float((back[: len(mel)] - mel[: len(back)]).abs().mean()) for mel in mels]
        assert near[number] < 0.5
        assert int(np.argmin(near)) == number


def test_codes_do_not_depend_on_the_place(fitted: Codec) -> None:
    clip = words.recordings()["three"][0]
    alone = fitted.encode(clip)
    later = fitted.encode(np.concatenate([np.zeros(5 * FRAME, np.float32), clip]))[5:]
    assert torch.equal(alone[1:], later[1:])  # the first frame sees the silence before it


def test_saved_and_loaded_is_the_same(fitted: Codec, tmp_path: Path) -> None:
    fitted.save(tmp_path / "c.safetensors")
    again = Codec.load(tmp_path / "c.safetensors")
    clip = words.recordings()["two"][2]
    assert torch.equal(again.encode(clip), fitted.encode(clip))
    assert np.array_equal(again.decode(again.encode(clip)), fitted.decode(fitted.encode(clip)))


def test_fit_repeats_itself() -> None:
    clips = [take for word in ("one", "two") for take in words.recordings()[word]]
    assert torch.equal(codec.fit(clips, seed=3).books, codec.fit(clips, seed=3).books)


def test_every_prepared_row_uses_codes_in_range(rows: Rows) -> None:
    for row in rows:
        codes = np.array(row["audio_codes"])
        assert codes.shape == (-(-round(row["duration"] * 16_000) // FRAME), 4)
        assert codes.min() >= 0 and codes.max() < 128
