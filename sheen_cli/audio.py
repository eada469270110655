"""Audio in and out: decoded with libsndfile, mixed to mono, resampled with soxr, checked before
any codec sees it.
"""

from io import BytesIO
from pathlib import Path

import numpy as np
import soundfile
import soxr

from sheen_cli.files import replacing

SILENT = 1e-4  # peak below which nothing can be heard: -80 dB of full scale


class Rejected(Exception):
    """Audio that must not be trained on: a reason code and what a person needs to know."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def load(
    source: Path | bytes | tuple[np.ndarray, int], rate: int, shortest: float, longest: float
) -> np.ndarray:
    """Decode to mono float32 (n,) at `rate`, of `shortest` to `longest` seconds. Raises
    Rejected.
    """
    samples, native = source if isinstance(source, tuple) else decode(source, longest)
    samples = mono(samples)
    check(samples, len(samples) / native, shortest, longest)
    if native != rate:
        samples = soxr.resample(samples, native, rate)
    return np.asarray(np.clip(samples, -1.0, 1.0), np.float32)


def decode(source: Path | bytes, longest: float) -> tuple[np.ndarray, int]:
    """Decode a file or its bytes; the header is asked first, so that a small file cannot unpack
    to hours.
    """
    if isinstance(source, Path) and not source.is_file():
        raise Rejected("missing-audio", f"no file {source}")
    try:
        data = source.read_bytes() if isinstance(source, Path) else source
    except OSError as error:
        raise Rejected("unreadable", str(error)) from None
    try:
        with soundfile.SoundFile(BytesIO(data)) as file:
            seconds = file.frames / file.samplerate
            if seconds > longest:
                raise Rejected("too-long", f"{seconds:.2f} s, the limit is {longest:g} s")
            samples = file.read(dtype="float32", always_2d=True)
            promised, rate = file.frames, file.samplerate
    except (soundfile.LibsndfileError, RuntimeError, ValueError) as error:
        reason = str(error).rpartition(": ")[2] if data else "the file is empty"
        raise Rejected("undecodable", reason) from None
    if len(samples) < promised or riff_promises(data) > len(data):
        raise Rejected("truncated", "the file ends before the length that its header gives")
    return samples, rate


def riff_promises(data: bytes) -> int:
    """Where a WAV's sound data should end by its header; 0 for other formats. libsndfile reads
    half a WAV silently.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return 0
    at = 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"data":
            return (
                0 if size == 0xFFFFFFFF else at + 8 + size
            )  # all ones: a stream of unknown length
        at += 8 + size + size % 2
    return 0


def mono(samples: np.ndarray) -> np.ndarray:
    """(n,), (n, channels) or (channels, n) -> (n,) float32, the mean of the channels."""
    samples = np.asarray(samples, np.float32)
    if samples.ndim == 1 or not samples.size:
        return samples.reshape(-1)
    channels = 0 if samples.shape[0] < samples.shape[1] else 1  # sound is longer than it is wide
    return np.asarray(samples.mean(channels), np.float32)


def check(samples: np.ndarray, seconds: float, shortest: float, longest: float) -> None:
    """Raise Rejected for what would poison training: no, too little or too much sound, NaN or
    Inf, silence.
    """
    if not len(samples):
        raise Rejected("too-short", "it has no samples")
    if not np.isfinite(samples).all():
        raise Rejected(
            "non-finite", f"{int((~np.isfinite(samples)).sum())} samples are NaN or infinite"
        )
    check_length(seconds, shortest, longest)
    if np.abs(samples).max() < SILENT:
        raise Rejected("silent", "its peak is below -80 dB")


def check_length(seconds: float, shortest: float, longest: float) -> None:
    if seconds < shortest:
        raise Rejected("too-short", f"{seconds:.2f} s, at least {shortest:g} s is needed")
    if seconds > longest:
        raise Rejected("too-long", f"{seconds:.2f} s, the limit is {longest:g} s")


def quantized(samples: np.ndarray) -> np.ndarray:
    """The samples as 16-bit WAV holds them, int16; divided by 32768 they are what is read back."""
    return np.asarray(np.clip(np.rint(samples * 32768.0), -32768, 32767), np.int16)


def write_exact(path: Path, samples: np.ndarray, rate: int) -> None:
    """Write int16 samples as WAV, whole or not at all; they read back as they are."""
    with replacing(path) as stream:
        soundfile.write(stream, samples, rate, format="WAV", subtype="PCM_16")


def write(path: Path, samples: np.ndarray, rate: int) -> None:
    """Write 16-bit WAV, whole or not at all."""
    with replacing(path) as stream:
        soundfile.write(stream, np.clip(samples, -1.0, 1.0), rate, format="WAV", subtype="PCM_16")
