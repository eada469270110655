"""The recording of a voice to clone: read, and looked over for what makes a poor clone."""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sheen_cli import audio, console
from sheen_cli.errors import SheenError
from sheen_cli.types import Reference

SHORTEST, LONGEST = 0.5, 60.0  # seconds, beyond which nothing is made of it
GOOD = 3.0, 15.0  # seconds
HEAVY = 30.0  # seconds from which a speech that goes on from them costs memory and time
FULL, CLIPPED = 0.999, 1e-3  # full scale, and the share of samples there that can be heard
QUIET, DROP, SILENCE = 3e-3, 1e-2, 0.6  # RMS; level against the loudest; share of such pieces
PACE = 4.0, 30.0  # characters a second that people speak
PIECE = 0.025  # seconds of sound whose level is taken


@dataclass(frozen=True)
class Recording:
    """A reference as it was found: `sound` (n,) at the file's own rate."""

    sound: np.ndarray
    native: int
    text: str | None
    in_context: bool

    def at(self, rate: int) -> Reference:
        sound = audio.load((self.sound, self.native), rate, SHORTEST, LONGEST)
        return Reference(sound, self.text, self.in_context)


def read(file: Path | None, text: str | None, in_context: bool | None) -> Recording | None:
    """The recording to clone, mono. Without `--icl` it lends its voice alone; a poor one is warned
    of. Raises SheenError where it cannot be used, or in-context cloning lacks the words.
    """
    if file is None:
        if text is not None or in_context is not None:
            raise SheenError(
                "--ref-text, --icl and --x-vector belong to a recording: give it with --ref"
            )
        return None
    if not file.is_file():
        raise SheenError(f"--ref {file}: no such file")
    if text is not None and in_context is False:
        raise SheenError("--ref-text is for --icl; --x-vector takes the voice alone: give one")
    beside = file.with_suffix(".txt")
    if text is None and beside.is_file():
        text = words(beside)
    text = unicodedata.normalize("NFC", text or "").strip() or None  # as rows have it
    if in_context and text is None:
        raise SheenError(
            f"--icl needs the words of {file}: give --ref-text, or write them to {beside}"
        )
    try:
        samples, native = audio.decode(file, LONGEST)
        sound = audio.load((samples, native), native, SHORTEST, LONGEST)
    except audio.Rejected as rejected:
        raise SheenError(f"--ref {file}: {rejected.reason}: {rejected.detail}") from None
    if in_context is None:
        console.say("taking the voice of --ref (x-vector); --icl would also go on from its speech")
    for complaint in complaints(samples, native, text if in_context else None):
        console.warn(f"--ref {file}: {complaint}")
    return Recording(sound, native, text, bool(in_context))


def in_context(icl: bool | None, x_vector: bool | None) -> bool | None:
    """What `--icl` and `--x-vector` say together; None where neither was given. Raises SheenError
    where they contradict one another.
    """
    if icl and x_vector:
        raise SheenError("--icl goes on from the reference, --x-vector does not: give one of them")
    if icl is False and x_vector is False:
        raise SheenError("--no-icl and --no-x-vector leave no way to clone: give one of them")
    return (None if x_vector is None else not x_vector) if icl is None else icl


def complaints(samples: np.ndarray, rate: int, text: str | None) -> Iterator[str]:
    """What is poor about a recording (n, channels) as it was decoded, said as the way out; `text`
    is what is said in it, if that matters.
    """
    seconds = len(samples) / rate
    if seconds < GOOD[0]:
        yield f"{seconds:.1f} s tell little of a voice; {GOOD[0]:g} to {GOOD[1]:g} s are good"
    elif text and seconds > HEAVY:
        yield f"every sentence goes on from {seconds:.0f} s, which takes memory and time; cut it"
    elif seconds > GOOD[1]:
        yield f"{seconds:.0f} s are more than helps; {GOOD[0]:g} to {GOOD[1]:g} s are good"
    clipped = float((np.abs(samples) >= FULL).any(-1).mean())
    if clipped > CLIPPED:
        yield f"{clipped:.1%} of it is clipped, and the voice will be, too; record it more softly"
    sound = audio.mono(samples)
    pieces = sound[: len(sound) // round(rate * PIECE) * round(rate * PIECE)]
    levels = np.sqrt(np.mean(np.square(pieces.reshape(-1, round(rate * PIECE))), -1))
    if (level := float(np.sqrt(np.mean(np.square(sound))))) < QUIET:
        yield f"it is very quiet ({20 * np.log10(max(level, 1e-9)):.0f} dB); record it louder"
    if (silent := float((levels < DROP * levels.max()).mean())) > SILENCE:
        yield f"{silent:.0%} of it is silence; cut it to the speech"
    if text and not PACE[0] <= (pace := letters(text) / seconds) <= PACE[1]:
        yield f"its text has {pace:.1f} characters a second of sound: are these its words?"


def letters(text: str) -> int:
    """Characters without spaces; an ideograph is spoken as long as two letters or more."""
    plain = [each for each in text if not each.isspace()]
    return sum(2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in plain)


def words(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SheenError(f"{file} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
