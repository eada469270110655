"""The order of training: a pure function of (seed, epoch, position), whatever the workers, ranks
and restarts.

An optimizer step consumes one window of `batch_size * accumulate * ranks` rows, cut into micro-
batches of `batch_size`; windows do not depend on how they are cut, so 2 x 4, one batch of 8 and
two ranks of 4 see the same rows.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from sheen_cli.backbones import Backbone, load
from sheen_cli.errors import SheenError
from sheen_cli.recipe import Recipe, validate
from sheen_cli.rows import Rows
from sheen_cli.types import Batch


@dataclass(frozen=True)
class Place:
    """A micro-batch: number `part` of window `window` in epoch `epoch`."""

    epoch: int
    window: int
    part: int


@dataclass(frozen=True)
class Micro:
    """A collated micro-batch. A `ghost` only keeps ranks in step, in a last window with too few
    rows for all.
    """

    batch: Batch
    ghost: bool
    rows: tuple[int, ...]


@lru_cache(maxsize=2)
def _windows(seconds: bytes, size: int, bucket: int, seed: int, epoch: int) -> list[list[int]]:
    lengths = np.frombuffer(seconds, np.float32)
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    windows = []
    for start in range(0, len(order), size * bucket):
        pool = order[start : start + size * bucket]
        if bucket > 1:
            pool = pool[np.argsort(lengths[pool], kind="stable")]
        windows += [pool[at : at + size].tolist() for at in range(0, len(pool), size)]
    return [windows[i] for i in random.permutation(len(windows))] if bucket > 1 else windows


def windows(seconds: np.ndarray, size: int, bucket: int, seed: int, epoch: int) -> list[list[int]]:
    """Row numbers of each optimizer step of an epoch: every row once, rows of like length
    together.

    `seconds` (n,) are the rows' lengths; within `bucket` windows rows are sorted by length, then
    windows are shuffled.
    """
    return _windows(np.ascontiguousarray(seconds, np.float32).tobytes(), size, bucket, seed, epoch)


def cut(window: Sequence[int], batch_size: int) -> list[tuple[int, ...]]:
    return [tuple(window[at : at + batch_size]) for at in range(0, len(window), batch_size)]


def seed_of(*parts: int) -> int:
    """A seed below 2^63 that depends on every part and on nothing else."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8]) >> 1


class MicroBatches(Dataset[Micro | SheenError]):
    """Collated micro-batches by place; workers read and collate on their own."""

    def __init__(
        self, backbone: Backbone, recipe: Recipe[Any], rows: Rows, artifacts: Path, ranks: int
    ) -> None:
        self.backbone, self.recipe, self.rows = backbone, recipe, rows
        self.artifacts = artifacts
        self.size = recipe.train.batch_size * recipe.train.accumulate * ranks

    def __reduce__(self) -> tuple[Any, ...]:
        values = self.recipe.model_dump(mode="json")
        return _rebuild, (self.backbone.name, values, self.rows, self.artifacts, self.size)

    def windows(self, epoch: int) -> list[list[int]]:
        train = self.recipe.train
        return windows(self.rows.seconds, self.size, train.bucket, train.seed, epoch)

    def __getitem__(self, place: Place) -> Micro | SheenError:
        try:
            return self.micro(place)
        except SheenError as error:  # returned, so that it crosses from a worker as it is
            return error

    def micro(self, place: Place) -> Micro:
        parts = cut(self.windows(place.epoch)[place.window], self.recipe.train.batch_size)
        ghost = place.part >= len(parts)
        rows = parts[0 if ghost else place.part]
        seed = seed_of(self.recipe.train.seed, place.epoch, place.window, place.part)
        batch = self.backbone.hook.collate(
            recipe=self.recipe,
            rows=[self.rows[i] for i in rows],
            seed=seed,
            artifacts=self.artifacts,
        )
        return Micro(batch, ghost, rows)


def _rebuild(
    name: str, values: dict[str, Any], rows: Rows, artifacts: Path, size: int
) -> MicroBatches:
    """In another process. A recipe's class is made on the fly, so it cannot be pickled."""
    backbone = load(name)
    recipe = validate(values, backbone.spec.options, "the recipe")
    data = MicroBatches(backbone, recipe, rows, artifacts, 1)
    data.size = size
    return data


@dataclass(frozen=True)
class Places:
    """The places of one rank from a position on, without end: an epoch follows the other."""

    data: MicroBatches
    epoch: int
    window: int
    rank: int
    ranks: int

    def __iter__(self) -> Iterator[Place]:
        accumulate = self.data.recipe.train.accumulate
        epoch, window = self.epoch, self.window
        while True:
            for at in range(window, len(self.data.windows(epoch))):
                for turn in range(accumulate):
                    yield Place(epoch, at, turn * self.ranks + self.rank)
            epoch, window = epoch + 1, 0


def validation_batches(rows: Rows, batch_size: int) -> list[tuple[int, ...]]:
    """Every row once, rows of like length together."""
    return cut(np.argsort(rows.seconds, kind="stable").tolist(), batch_size)
