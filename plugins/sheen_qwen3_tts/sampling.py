"""From scores to ids, as the stock package's `generate` samples them, number for number."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Warp:
    """How sharp the scores are taken, and how many of the likeliest ids count (`top_k` 0: all)."""

    temperature: float = 0.9
    top_k: int = 50
    top_p: float = 1.0


@dataclass(frozen=True)
class Sampling:
    """As in generation_config.json."""

    talker: Warp = Warp()
    subtalker: Warp = Warp()
    repetition_penalty: float = 1.05


class Seeded(Protocol):
    @property
    def seed(self) -> int: ...
    @property
    def greedy(self) -> bool: ...


class Dice:
    """Random numbers of each speech from a generator of its own, so that neighbours change nothing.

    They are drawn on the CPU, so that a seed says the same on every device, and a frame's at once,
    so that a GPU waits once a frame.
    """

    def __init__(self, speeches: Sequence[Seeded], sizes: Sequence[int]) -> None:
        self.sizes = list(sizes)
        self.generators = [
            None if speech.greedy else torch.Generator().manual_seed(speech.seed)
            for speech in speeches
        ]

    def throw(self, alive: Sequence[int], device: torch.device) -> list[Tensor | None]:
        """For each size exponential noise (alive, size), infinite where a speech is greedy; None
        where all are.
        """
        if all(self.generators[row] is None for row in alive):
            return [None] * len(self.sizes)
        noise = torch.full((len(alive), sum(self.sizes)), float("inf"))
        for mine, row in zip(noise, alive, strict=True):
            if (generator := self.generators[row]) is not None:
                for part in torch.split(mine, self.sizes):
                    part.exponential_(generator=generator)
        return list(torch.split(noise.to(device, non_blocking=True), self.sizes, -1))


def choose(scores: Tensor, warp: Warp, noise: Tensor | None) -> Tensor:
    """One id a row (B,) of scores (B, n): drawn with exponential noise (B, n), or the likeliest
    where it is infinite or None.
    """
    if noise is None:
        return scores.argmax(-1)
    warped = scores / warp.temperature
    if warp.top_k:
        least = warped.topk(min(warp.top_k, warped.shape[-1]), -1).values[:, -1:]
        warped = warped.masked_fill(warped < least, float("-inf"))
    if warp.top_p < 1:
        ordered, order = warped.sort(-1)
        drop = ordered.softmax(-1).cumsum(-1) <= 1 - warp.top_p
        drop[:, -1] = False
        warped = warped.masked_fill(drop.scatter(1, order, drop), float("-inf"))
    drawn = (warped.softmax(-1) / noise).argmax(-1)  # as torch.multinomial draws
    return drawn.where(noise[:, 0].isfinite(), scores.argmax(-1))
