"""Whose voice a row is in: one vector a speaker, the mean over clips, and some recordings of each
speaker as the references that cloning goes by.

It lies in the data's artifacts: the voices, and in `training` the references.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from heapq import heappush, heappushpop
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sheen_cli import Clip, Rejected, Skip, load_audio
from sheen_qwen3_tts import codec
from sheen_qwen3_tts.base import Base
from sheen_qwen3_tts.checkpoint import VOICES, load_voices, save_voices
from sheen_qwen3_tts.languages import spelt_out

# in the artifacts' folder `training`, which no upload takes along: they are people's recordings
TENSORS, TEXTS = "training/references.safetensors", "training/references.jsonl"
MOST = 8  # references of a speaker
GOOD, LONGEST = (3.0, 10.0), 15.0  # seconds: what is taken first, and what is not taken at all
GIVEN = 60.0  # seconds that a given one may last


@dataclass(frozen=True)
class Heard:
    """A recording: the vector of its voice (hidden,), its codes (t, groups), and its words, where
    they are known.
    """

    name: str  # a clip's id, or the file that the source gave
    vector: Tensor
    codes: Tensor
    text: str | None = None
    path: Path | None = None


@dataclass
class Speaker:
    """What has been heard of one speaker: the sum of the clips' vectors, and a heap of the clips
    that serve best as references, the worst of them on top.
    """

    total: Tensor
    count: int = 0
    best: list[tuple[float, str, Heard]] = field(default_factory=list)

    def hear(self, vector: Tensor) -> None:
        self.total, self.count = self.total + vector, self.count + 1

    def offer(self, clip: Clip, vector: Tensor, spoken: Any) -> None:
        """Keep the clip if it is among the best: of a good length, else by chance."""
        seconds = len(clip.audio) / clip.rate
        if seconds > LONGEST:
            return
        off = max(GOOD[0] - seconds, seconds - GOOD[1], 0.0)
        chance = hashlib.sha256(clip.id.encode()).hexdigest()  # the same whenever it is done again
        if len(self.best) == MOST and (-off, chance) < self.best[0][:2]:
            return
        codes = codec.of(spoken, clip)
        if codec.constant(codes):
            return
        entry = (-off, chance, Heard(clip.id, vector, codes, clip.text, clip.path))
        (heappush if len(self.best) < MOST else heappushpop)(self.best, entry)


@dataclass(frozen=True)
class Found:
    """All of a data set: vectors by voice, references by voice, those that the source gave, and
    the voices that each of these serves.
    """

    voices: dict[str, Tensor]
    chosen: dict[str, list[Heard]]
    given: dict[Path, Heard | Skip]
    served: dict[Path, set[str]]

    @property
    def all(self) -> list[Heard]:
        given = [heard for heard in self.given.values() if isinstance(heard, Heard)]
        return [*(heard for some in self.chosen.values() for heard in some), *given]

    def of(self, clip: Clip, codes: Tensor) -> Heard | Skip | None:
        """The reference of a clip: the given one, else another clip of the speaker; never the same
        recording, under whatever name, which would teach to copy.
        """
        given = self.given.get(clip.ref_audio) if clip.ref_audio else None
        if given is not None and not (isinstance(given, Heard) and torch.equal(given.codes, codes)):
            return given
        others = [
            heard
            for heard in self.chosen[voice_of(clip.speaker)]
            if heard.name != clip.id and not torch.equal(heard.codes, codes)
        ]
        digest = hashlib.sha256(clip.id.encode()).digest()
        return others[digest[0] % len(others)] if others else None

    def named(self, clip: Clip) -> tuple[Path | None, str | None]:
        """The file and the words that a row names as its reference: the given one, else the same of
        all of its speaker's rows. The official trainer puts the spectrograms of a batch's
        references together without padding, so it wants one file for all.
        """
        given = self.given.get(clip.ref_audio) if clip.ref_audio else None
        best = next(iter(self.chosen[voice_of(clip.speaker)]), None)
        if isinstance(given, Heard):
            return given.path, given.text
        if best is None or best.path is None or clip.ref_audio:  # a row that names its own file
            return clip.path, clip.text if clip.path else None
        return best.path, best.text


def voice_of(speaker: str | None) -> str:
    """The name of a row's voice; inference looks names up in lower case."""
    return (speaker or "speaker").strip().lower()


def gather(clips: Iterable[Clip], encoder: nn.Module, spoken: Any) -> Found:
    """Listen to all clips once. Only clips that may be trained on make a voice."""
    speakers: dict[str, Speaker] = {}
    given: dict[Path, Heard | Skip] = {}
    served: dict[Path, set[str]] = {}
    said: dict[Path, str] = {}  # where references are given: they are often clips of the set
    for clip in clips:
        if clip.path is not None and clip.ref_audio is not None:
            said[clip.path] = clip.text
        if clip.ref_audio is not None and clip.ref_audio != clip.path:
            served.setdefault(clip.ref_audio, set()).add(voice_of(clip.speaker))
            if clip.ref_audio not in given:
                given[clip.ref_audio] = recording(clip.ref_audio, clip.ref_text, encoder, spoken)
            elif clip.ref_text and isinstance(known := given[clip.ref_audio], Heard):
                given[clip.ref_audio] = replace(known, text=known.text or clip.ref_text)
        if clip.split not in (None, "train"):
            continue
        speaker = speakers.setdefault(voice_of(clip.speaker), Speaker(torch.zeros(())))
        if len(clip.audio) >= codec.SHORTEST:
            vector = codec.vector(encoder, clip.audio)
            speaker.hear(vector)
            speaker.offer(clip, vector, spoken)
        elif clip.ref_audio and isinstance(ref := given.get(clip.ref_audio), Heard):
            speaker.hear(ref.vector)
    for path, known in given.items():
        if isinstance(known, Heard) and not known.text:
            given[path] = replace(known, text=said.get(path))
    heard = {name: each for name, each in sorted(speakers.items()) if each.count}
    return Found(
        {name: each.total / each.count for name, each in heard.items()},
        {name: [entry[-1] for entry in sorted(each.best)] for name, each in heard.items()},
        given,
        served,
    )


def recording(path: Path, text: str | None, encoder: nn.Module, spoken: Any) -> Heard | Skip:
    """A reference that the source gives, as a file; or why it cannot be used."""
    try:
        samples = load_audio(path, codec.RATE, codec.SHORTEST / codec.RATE, GIVEN)
    except Rejected as rejected:
        return Skip("bad-reference", f"{path}: {rejected}")
    return Heard(
        str(path), codec.vector(encoder, samples), codec.encode(spoken, samples), text, path
    )


@dataclass(frozen=True)
class Tables:
    """Found, as it is read back: vectors (n, hidden) of the voices in the order of the rows'
    numbers, and all references.
    """

    names: tuple[str, ...]
    voices: Tensor
    references: Sequence[Heard]


def save(found: Found, artifacts: Path) -> None:
    save_voices(found.voices, artifacts)
    heard = found.all
    if not heard:
        return
    tensors = {
        "vectors": torch.stack([each.vector for each in heard]),
        "codes": torch.cat([each.codes for each in heard]).to(torch.int16).cpu(),
        "frames": torch.tensor([len(each.codes) for each in heard]),
    }
    (artifacts / TENSORS).parent.mkdir()
    save_file(tensors, artifacts / TENSORS)
    names = [each.name if each.path is None else each.path.name for each in heard]
    lines = [
        json.dumps({"name": name, "text": each.text}) + "\n"
        for name, each in zip(names, heard, strict=True)
    ]
    (artifacts / TEXTS).write_text("".join(lines), "utf-8")


def load(artifacts: Path) -> Tables:
    """What `save` wrote; read once a process."""
    return _load(artifacts, (artifacts / VOICES).stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _load(artifacts: Path, _written: int) -> Tables:
    voices = load_voices(artifacts)
    references: list[Heard] = []
    if (artifacts / TENSORS).is_file():
        tensors = load_file(artifacts / TENSORS)
        codes = tensors["codes"].long().split(tensors["frames"].tolist())
        lines = (artifacts / TEXTS).read_text("utf-8").splitlines()
        facts = [json.loads(line) for line in lines]
        references = [
            Heard(fact["name"], vector, mine, fact["text"])
            for fact, vector, mine in zip(facts, tensors["vectors"], codes, strict=True)
        ]
    return Tables(tuple(voices), torch.stack(list(voices.values())), references)


def frames(codes: Tensor | np.ndarray) -> tuple[tuple[int, ...], ...]:
    """Codes (t, groups) as a prompt holds them."""
    return tuple(map(tuple, codes.tolist()))


class Notices:
    """What is worth saying of a data set once it is done."""

    def __init__(self, base: Base, found: Found, new: Iterable[str]) -> None:
        self.base, self.found, self.new = base, found, tuple(map(spelt_out, new))
        self.heard: Counter[str] = Counter()
        self.rows = self.lonely = self.mute = 0
        self.unknown: Counter[str] = Counter()

    def note(self, clip: Clip, heard: Heard | None) -> None:
        self.rows += 1
        self.lonely += heard is None
        self.mute += heard is not None and not heard.text
        self.heard[spelt_out(clip.language or "")] += 1
        if clip.language and not self.base.knows(clip.language):
            self.unknown[clip.language] += 1

    def lines(self) -> Iterator[str]:
        for name in self.new:
            if name not in self.base.added:
                yield f"model.new_languages: the base has '{name}' already; nothing is added"
            elif not self.heard[name]:
                yield f"model.new_languages: no row is of '{name}', so its tag learns nothing"
        for name, count in sorted(self.unknown.items()):
            yield (
                f"{count} of {self.rows} rows are of the language '{name}', which the base lacks: "
                f"they train as auto; model.new_languages gives it a tag of its own"
            )
        if self.lonely:
            yield (
                f"{self.lonely} of {self.rows} rows have no other clip of their speaker of at most "
                f"{LONGEST:g} s: cloning is not trained on them"
            )
        if self.mute:
            yield f"{self.mute} of {self.rows} rows have a reference without words: no icl on them"
        for path, names in self.found.served.items():
            if len(names) > 1:
                yield (
                    f"{path} is the reference of several speakers ({', '.join(sorted(names))}): "
                    f"cloning learns to ignore it"
                )
