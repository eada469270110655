"""Train, validation and test: which row goes where. Seeded, stable, no text on two sides."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sheen_cli.recipe import Data

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Kept:
    """Where a row lies in the spool, and what decides its split."""

    offset: int
    size: int
    seconds: float
    split: str | None
    group: str


def assign(data: Data, kept: Sequence[Kept]) -> list[str]:
    """Each row's split: the source's own where it has one. Where no row is for validation, a share
    of the training rows is, by hash of (seed, group), whole groups together.

    A share above zero yields at least one validation row, wherever two groups exist; training
    always keeps one.
    """
    places = [row.split or "train" for row in kept]
    if "validation" in places:
        return places
    free = [row for row, place in zip(kept, places, strict=True) if place == "train"]
    sizes = Counter(row.group for row in free)
    order = sorted(
        sizes, key=lambda group: hashlib.sha256(f"{data.seed}:{group}".encode()).digest()
    )
    chosen, taken = set[str](), 0
    for group in order[:-1]:
        if taken >= data.validation * len(free):
            break
        chosen.add(group)
        taken += sizes[group]
    return [
        "validation" if place == "train" and row.group in chosen else place
        for row, place in zip(kept, places, strict=True)
    ]
