"""From scores to ids, as transformers' `generate` samples them, number for number."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How sharp the scores are taken and which ids count: the `top_k` likeliest (0: all), the
    likeliest that together have `top_p`, those at least `min_p` as likely as the likeliest.

    Codes that were said among the last `window` tokens (0: all of this speech; a prompt's never
    count) are less likely by `repetition_penalty`.
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.1
    window: int = 0


class Seeded(Protocol):
    @property
    def seed(self) -> int: ...
    @property
    def greedy(self) -> bool: ...


class Dice:
    """Random numbers of each speech from a generator of its own, so that neighbours change nothing.

    They are drawn on the CPU, so that a seed says the same on every device, and for the whole
    vocabulary, as transformers draws them: those of ids that are not asked for are skipped, which
    takes a sixth of the time.
    """

    def __init__(self, speeches: Sequence[Seeded], vocabulary: int) -> None:
        self.skipped = torch.empty(vocabulary, dtype=torch.int64)
        self.generators = [
            None if speech.greedy else torch.Generator().manual_seed(speech.seed)
            for speech in speeches
        ]

    def throw(self, alive: Sequence[int], first: int, count: int) -> Tensor | None:
        """Exponential noise (alive, count) of the ids from `first` on, infinite where a speech is
        greedy; None where all are.
        """
        if all(self.generators[row] is None for row in alive):
            return None
        noise = torch.full((len(alive), count), float("inf"))
        for mine, row in zip(noise, alive, strict=True):
            if (generator := self.generators[row]) is not None:
                self.skipped[:first].random_(generator=generator)  # 64 bits each, as below
                mine.exponential_(generator=generator)
                self.skipped[first + count :].random_(generator=generator)
        return noise


def weaker(scores: Tensor, said: Tensor, penalty: float) -> Tensor:
    """Scores (B, n), less of what was `said` (B, m): columns, n for none of them."""
    marks = scores.new_zeros(len(scores), scores.shape[1] + 1, dtype=torch.bool)
    marks = marks.scatter_(1, said, True)[:, :-1]
    return torch.where(marks, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def choose(scores: Tensor, sampling: Sampling, noise: Tensor | None) -> Tensor:
    """One column a row (B,) of scores (B, n): drawn with exponential noise (B, n), or the likeliest
    where it is infinite or None.
    """
    if noise is None:
        return scores.argmax(-1)
    never = float("-inf")
    warped = scores / sampling.temperature
    if sampling.top_k:
        least = warped.topk(min(sampling.top_k, warped.shape[-1]), -1).values[:, -1:]
        warped = warped.masked_fill(warped < least, never)
    if sampling.top_p < 1:
        ordered, order = warped.sort(-1)
        drop = ordered.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        drop[:, -1] = False
        warped = warped.masked_fill(drop.scatter(1, order, drop), never)
    if sampling.min_p > 0:
        likely = warped.softmax(-1)
        warped = warped.masked_fill(likely < sampling.min_p * likely.amax(-1, keepdim=True), never)
    drawn = (warped.softmax(-1) / noise).argmax(-1)  # as torch.multinomial draws
    return drawn.where(noise[:, 0].isfinite(), scores.argmax(-1))
