"""The demo's generation loop: greedy, cached, many sentences at once. Training never calls it,
the tests compare them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from sheen_demo.batches import Prompt, left_padded
from sheen_demo.layout import BLANK, BOOKS, END, undelay
from sheen_demo.model import AcousticModel


@dataclass(frozen=True)
class Speech:
    """Codes (T, 4); `logits` (steps, 4, 129) that chose them; whether END was reached."""

    codes: Tensor
    steps: Tensor
    logits: Tensor
    ended: bool


@torch.inference_mode()
def generate(model: AcousticModel, prompts: Sequence[Prompt]) -> list[Speech]:
    """Speak all prompts together. A sentence ends at END or at its limit of frames; the last
    codes that are under way by then are finished, so no frame is half there.
    """
    device = model.start.device
    words, positions, mask = (tensor.to(device) for tensor in left_padded(prompts))
    limits = torch.tensor([prompt.frames for prompt in prompts], device=device)
    ends = torch.full_like(
        limits, 1 << 30
    )  # the step at which each sentence's frames are complete in book 0
    rows = torch.cat([model.word(words), model.start.expand(len(prompts), 1, -1)], 1)
    cache = DynamicCache()
    steps: list[Tensor] = []
    logits: list[Tensor] = []
    while len(steps) < int(limits.max()) + BOOKS:
        step = len(steps)
        chosen = model.logits(model.trunk_states(rows, positions, mask, cache)[:, -1:])[:, 0]
        codes = chosen.argmax(-1)
        codes[:, 0] = codes[:, 0].where(step < limits, END)
        ends = torch.where((codes[:, 0] == END) & (step < ends), step, ends)
        for book in range(BOOKS):  # book k of frame t is due at step t + k, END alone at its own
            frame = step - book
            due = (frame >= 0) & (frame < ends) | ((book == 0) & (frame == ends))
            codes[:, book] = codes[:, book].where(due, BLANK)
        steps.append(codes)
        logits.append(chosen)
        if bool((step >= ends + BOOKS - 2).all()):
            break
        rows = model.embed_steps(codes[:, None])
        positions = torch.full((len(prompts), 1), float(step + 1), device=device)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return [
        cut(torch.stack(steps, 1)[i], torch.stack(logits, 1)[i], int(ends[i]), prompts[i].frames)
        for i in range(len(prompts))
    ]


def cut(steps: Tensor, logits: Tensor, end: int, limit: int) -> Speech:
    """One sentence out of the batch: its own steps only."""
    length = end + BOOKS - 1
    return Speech(
        undelay(steps[:length]).cpu(), steps[:length].cpu(), logits[:length].cpu(), end < limit
    )
