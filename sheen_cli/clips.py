"""A source's entries as clips: decoded, checked and, where the recipe says so, kept as files."""

import hashlib
import re
import unicodedata
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sheen_cli import audio, console
from sheen_cli.audio import Rejected
from sheen_cli.recipe import Recipe
from sheen_cli.sources import Source
from sheen_cli.types import Clip, Entry, Row

LONGEST_NAME = 60  # characters of a kept file's name; a character takes up to 4 of 255 bytes


@dataclass(frozen=True)
class Pending:
    """A clip that was handed to the backbone and has no row yet, without its samples."""

    clip: Clip
    seconds: float
    position: int
    entry: Entry


class Clips:
    """The source's good clips; each pass decodes anew, unless they are kept in `folder`. Remembers
    what a pass handed out, and what it refused.
    """

    def __init__(self, source: Source, recipe: Recipe[Any], rate: int) -> None:
        self.source, self.data, self.rate = source, recipe.data, rate
        self.folder: Path | None = None  # of kept recordings, once it is ours to write to
        self.written: dict[str, Path] = {}  # recordings there: a name -> the file
        self.used: set[Path] = set()  # those of them that rows name
        self.tick: console.Tick = lambda done, note: None  # told of every clip handed out
        self.pending: deque[Pending] = deque()
        self.rejected: dict[
            int, Row
        ] = {}  # by position in the source, so that a second pass counts nothing twice
        self._all: list[Pending] | None = None  # once a pass has kept everything

    def __iter__(self) -> Iterator[Clip]:
        self.pending.clear()
        passed: list[Pending] = []
        found = self._read() if self._all is None else self._read_again(self._all)
        for count, (clip, pending) in enumerate(found, 1):
            if self.folder is not None:
                passed.append(pending)
            self.pending.append(pending)
            self.tick(count, clip.id)
            yield clip
        if self.folder is not None:
            self._all = passed

    def _read(self) -> Iterator[tuple[Clip, Pending]]:
        seen, total = set[str](), 0.0
        for position, entry in enumerate(self.source):
            try:
                clip = self.clip(entry)
                if clip.id[-12:] in seen:
                    raise Rejected("duplicate", "same audio and text as an earlier one")
            except Rejected as rejected:
                name = entry.name if isinstance(entry, Entry) else None
                self.reject(position, name, rejected.reason, rejected.detail)
                continue
            assert isinstance(entry, Entry)
            seen.add(clip.id[-12:])
            seconds = self._seconds(clip.audio, clip.codes)
            total += seconds
            # samples and bytes would pile up here
            bare, entry = replace(clip, audio=clip.audio[:0].copy()), replace(entry, audio=None)
            yield clip, Pending(bare, seconds, position, replace(entry, codes=None, ref_audio=None))
            if self._enough(len(seen), total):
                return

    def _read_again(self, everything: list[Pending]) -> Iterator[tuple[Clip, Pending]]:
        for pending in everything:
            clip = pending.clip
            if (path := self.written.get(f"{clip.id}.wav")) is not None:
                samples, _ = audio.decode(path, self.data.max_seconds + 1)
                clip = replace(clip, audio=audio.mono(samples))
            yield clip, pending

    def _enough(self, count: int, seconds: float) -> bool:
        samples, hours = self.data.max_samples, self.data.max_hours
        return (samples is not None and count >= samples) or (
            hours is not None and seconds >= hours * 3600
        )

    def clip(self, entry: Entry | Rejected) -> Clip:
        if isinstance(entry, Rejected):
            raise entry
        text = clean(entry.text)
        samples = self._samples(entry)
        sound = samples if entry.codes is None or len(samples) else entry.codes
        digest = hashlib.sha256(text.encode() + b"\0" + sound.tobytes()).hexdigest()
        name = f"{entry.name}-{digest[:12]}"
        path = entry.audio if isinstance(entry.audio, Path) else None
        reference = self._reference(entry)
        if self.folder is not None and len(samples):
            path = self._keep(f"{name}.wav", samples)
        return Clip(
            id=name,
            text=text,
            audio=samples,
            rate=self.rate,
            speaker=entry.speaker,
            language=entry.language,
            split=entry.split,
            path=path,
            codes=entry.codes,
            ref_audio=reference,
            ref_text=entry.ref_text,
            extra=entry.extra,
        )

    def _samples(self, entry: Entry) -> np.ndarray:
        """The sound at the backbone's rate; none where there are codes alone. Raises Rejected."""
        shortest, longest = self.data.min_seconds, self.data.max_seconds
        if entry.audio is None:
            nothing = np.zeros(0, np.float32)
            audio.check_length(self._seconds(nothing, entry.codes), shortest, longest)
            return nothing
        samples = audio.load(entry.audio, self.rate, shortest, longest)
        if self.data.keep_audio:  # what is trained on is what the file holds
            samples = np.asarray(audio.quantized(samples) / 32768, np.float32)
        frame_rate = self.source.spec.frame_rate
        if entry.codes is not None and frame_rate is not None:
            frames, due = len(entry.codes), -int(-len(samples) // (self.rate / frame_rate))
            if abs(frames - due) > 1:
                raise Rejected(
                    "codes-mismatch",
                    f"{entry.where}: audio_codes has {frames} frames, the sound is {due} long: "
                    f"they are of other audio or of another codec",
                )
        return samples

    def _seconds(self, samples: np.ndarray, codes: np.ndarray | None) -> float:
        frame_rate = self.source.spec.frame_rate
        if not len(samples) and codes is not None and frame_rate is not None:
            return len(codes) / frame_rate
        return len(samples) / self.rate

    def _reference(self, entry: Entry) -> Path | None:
        """The file of the reference that the source gives. Raises Rejected."""
        given = entry.ref_audio
        if given is None or (isinstance(given, Path) and not self.data.keep_audio):
            return given
        if not self.data.keep_audio:
            raise Rejected(
                "missing-ref-audio",
                f"{entry.where}: ref_audio lies inside the data set; add --keep-audio, which "
                f"writes files",
            )
        if self.folder is None:
            return None
        content = str(given).encode() if isinstance(given, Path) else given
        stem = given.stem if isinstance(given, Path) else "audio"
        name = f"ref-{stem}-{hashlib.sha256(content).hexdigest()[:12]}.wav"
        if name in self.written:
            return self.written[name]
        try:
            return self._keep(name, audio.load(given, self.rate, 0, self.data.max_seconds))
        except Rejected as rejected:
            raise Rejected(
                rejected.reason, f"{entry.where}: ref_audio: {rejected.detail}"
            ) from None

    def _keep(self, name: str, samples: np.ndarray) -> Path:
        """Write a recording under a name that any disk takes; its end, the digest, tells it from
        others.
        """
        assert self.folder is not None
        path = self.folder / re.sub(r"[^\w.-]", "_", name)[-LONGEST_NAME:].lstrip(".-")
        audio.write_exact(path, audio.quantized(samples), self.rate)
        self.written[name] = path
        return path

    def reject(self, position: int, name: str | None, reason: str, detail: str) -> None:
        self.rejected[position] = {
            "name": name,
            "position": position,
            "reason": reason,
            "detail": detail,
        }


def clean(text: str) -> str:
    """NFC, without white space around. Raises Rejected for text that is empty or cannot be
    written as UTF-8.
    """
    text = unicodedata.normalize("NFC", text).strip()
    if not text:
        raise Rejected("empty-text", "nothing to say")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Rejected("bad-text", "it holds a lone surrogate") from None
    if any(
        unicodedata.category(character) == "Cc" and character not in "\t\n\r" for character in text
    ):
        raise Rejected("bad-text", "it holds control characters")
    return text
