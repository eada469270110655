"""The demo's batches: prompts left-padded, delayed steps right-padded, targets beside them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sheen_cli import Batch, Row
from sheen_demo.layout import BLANK, BOOKS, CODES, IGNORE, delay, targets


@dataclass(frozen=True)
class Prompt:
    """What one sentence starts from: word ids, their paced positions, and the most frames that it
    may take.
    """

    words: Sequence[int]
    positions: Sequence[float]
    frames: int


def left_padded(prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor, Tensor]:
    """Word ids (B, L), positions and mask (B, L + 1), the start's column included."""
    width = max(len(prompt.words) for prompt in prompts)
    words = torch.zeros(len(prompts), width, dtype=torch.long)
    positions = torch.zeros(len(prompts), width + 1)
    mask = torch.zeros(len(prompts), width + 1, dtype=torch.long)
    mask[:, -1] = 1
    for row, prompt in enumerate(prompts):
        at = width - len(prompt.words)
        words[row, at:] = torch.tensor(prompt.words)
        positions[row, at:width] = torch.tensor(prompt.positions)
        mask[row, at:] = 1
    return words, positions, mask


def collate(rows: Sequence[Row], faults: Callable[[Tensor], Tensor] | None) -> Batch:
    """Rows as one batch; `faults` corrupts the history (B, S, 4), never the targets."""
    prompts = [Prompt(row["words"], row["positions"], 0) for row in rows]
    delayed = [delay(torch.tensor(row["audio_codes"])) for row in rows]
    words, positions, mask = left_padded(prompts)
    length = max(len(steps) for steps in delayed)
    steps = torch.full((len(rows), length, BOOKS), BLANK)
    wanted = torch.full_like(steps, IGNORE)
    for row, mine in enumerate(delayed):
        steps[row, : len(mine)] = mine
        wanted[row, : len(mine)] = targets(mine)
    positions = torch.cat([positions, torch.arange(1.0, length).expand(len(rows), -1)], 1)
    known = torch.stack([torch.arange(1, length) < len(mine) for mine in delayed]).long()
    if faults is not None:
        steps = faults(steps)
    return Batch(
        {
            "words": words,
            "steps": steps[:, :-1],
            "positions": positions,
            "mask": torch.cat([mask, known], 1),
            "targets": wanted,
        },
        {
            "coarse": int((wanted[..., 0] != IGNORE).sum()),
            "fine": int((wanted[..., 1:] != IGNORE).sum()),
        },
    )


def corrupt(steps: Tensor, seed: int, random_codes: float, blank_frames: float) -> Tensor:
    """A history with faults, so that the model leans on the text and recovers from its own
    mistakes.
    """
    generator = torch.Generator().manual_seed(seed)
    code = steps < CODES
    random = torch.rand(steps.shape, generator=generator) < random_codes
    steps = torch.where(
        code & random, torch.randint(CODES, steps.shape, generator=generator), steps
    )
    blank = torch.rand(steps.shape[:2], generator=generator) < blank_frames
    return torch.where(code & blank[..., None], BLANK, steps)
