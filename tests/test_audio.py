"""Audio in: what is kept and what is refused, with its reason."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sheen_cli import audio
from sheen_cli.audio import Rejected

RATE = 16_000
TONE = (0.3 * np.sin(np.arange(RATE) * 0.2)).astype(np.float32)  # 1 s


def encoded(samples: np.ndarray, rate: int = RATE, **options: str) -> bytes:
    stream = BytesIO()
    soundfile.write(stream, samples, rate, **({"format": "WAV"} | options))
    return stream.getvalue()


def load(source: bytes | Path | tuple[np.ndarray, int], rate: int = RATE) -> np.ndarray:
    return audio.load(source, rate, shortest=0.1, longest=5.0)


def reason(call: Callable[[], object]) -> str:
    with pytest.raises(Rejected) as caught:
        call()
    return caught.value.reason


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
def test_formats_decode(kind: str) -> None:
    assert np.corrcoef(load(encoded(TONE, format=kind)), TONE)[0, 1] > 0.99


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_s0_13_any_rate_is_resampled_without_aliases(rate: int) -> None:
    seconds = np.arange(rate) / rate
    low, high = 0.3 * np.sin(6.283 * 440 * seconds), 0.3 * np.sin(6.283 * 11_000 * seconds)
    kept = load((low.astype(np.float32), rate))
    assert abs(len(kept) - RATE) <= 1
    assert np.sqrt(np.mean(kept**2)) == pytest.approx(0.3 / 2**0.5, rel=0.02)
    if rate > 24_000:  # 11 kHz is above half of 16 kHz: it must vanish, not fold down
        assert np.abs(load((high.astype(np.float32) + 1e-3, rate)))[1000:-1000].max() < 0.02


def test_stereo_in_either_layout_becomes_mono() -> None:
    """(1, N), (N, 1), (2, N) and (N, 2); down-mixing the wrong axis once left one sample a clip."""
    for samples in (TONE[None], TONE[:, None], np.stack([TONE, TONE]), np.stack([TONE, TONE], 1)):
        assert np.allclose(load((samples, RATE)), TONE)
    assert np.allclose(load(encoded(np.stack([TONE, 0 * TONE], 1))), TONE / 2, atol=1e-4)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_a_cut_file_is_refused(kind: str, share: float) -> None:
    whole = encoded(TONE, format=kind)
    assert reason(lambda: load(whole[: int(len(whole) * share)])) in (
        "truncated",
        "undecodable",
        "too-short",
    )


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 400, b"<html>404</html>", b"RIFF\x24\0\0\0WAVE", b"fLaC" + b"\xff" * 90],
)
def test_what_is_no_audio_is_refused(content: bytes) -> None:
    assert reason(lambda: load(content)) in ("undecodable", "truncated", "too-short")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(value: float) -> None:
    broken = TONE.copy()
    broken[500] = value
    assert reason(lambda: load((broken, RATE))) == "non-finite"
    assert reason(lambda: load(encoded(broken, subtype="FLOAT"))) == "non-finite"


def test_length_and_silence() -> None:
    assert reason(lambda: load((TONE[:0], RATE))) == "too-short"
    assert reason(lambda: load((TONE[:100], RATE))) == "too-short"
    assert reason(lambda: load((np.tile(TONE, 6), RATE))) == "too-long"
    assert reason(lambda: load((0 * TONE, RATE))) == "silent"
    assert reason(lambda: load(Path("/nowhere/x.wav"))) == "missing-audio"


def test_a_small_file_that_unpacks_to_hours_is_refused_by_its_header() -> None:
    bomb = encoded(np.zeros(8_000 * 3600, np.int16), rate=8_000, format="FLAC")
    assert len(bomb) < 200_000
    assert reason(lambda: load(bomb)) == "too-long"


def test_a_written_wav_is_whole_and_clipped(tmp_path: Path) -> None:
    audio.write(tmp_path / "a" / "x.wav", 4 * TONE, RATE)
    samples, rate = soundfile.read(tmp_path / "a" / "x.wav")
    assert rate == RATE and len(samples) == len(TONE) and np.abs(samples).max() <= 1.0
    assert soundfile.info(tmp_path / "a" / "x.wav").subtype == "PCM_16"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.wav"]
