"""Other recordings of each speaker, for rows that go on from one: speech cloned as `synth` clones.

They lie in the data's artifacts, in `training`, which no upload takes along: they are people's
recordings.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

FILE = "training/references.jsonl"
MOST = 32  # of a speaker


@dataclass(frozen=True)
class Heard:
    """A recording: its row's id, its text, its codes (frames, codebooks)."""

    name: str
    text: str
    codes: np.ndarray


Pool = dict[str, list[Heard]]  # by speaker; who has no name could be anybody, and is not in it


def offer(pool: Pool, speaker: str | None, heard: Heard) -> None:
    """Keep a recording if it is among those of its speaker that chance, by their names, chooses."""
    if not speaker:
        return
    mine = pool.setdefault(speaker, [])
    mine.append(heard)
    mine.sort(key=lambda one: hashlib.sha256(one.name.encode()).digest())
    del mine[MOST:]


def save(pool: Pool, artifacts: Path) -> None:
    path = artifacts / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as stream:
        for speaker, mine in sorted(pool.items()):
            for one in mine:
                facts = {"speaker": speaker, "id": one.name, "text": one.text}
                codes = {"audio_codes": one.codes.tolist()}
                stream.write(f"{json.dumps({**facts, **codes}, ensure_ascii=False)}\n")


@lru_cache(maxsize=2)
def load(artifacts: Path) -> Pool:
    """Those of an artifacts folder; none where it has none."""
    pool: Pool = {}
    if (artifacts / FILE).is_file():
        with (artifacts / FILE).open(encoding="utf-8") as stream:
            for facts in map(json.loads, stream):
                heard = Heard(facts["id"], facts["text"], np.array(facts["audio_codes"], np.int32))
                pool.setdefault(facts["speaker"], []).append(heard)
    return pool
