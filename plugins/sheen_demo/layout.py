"""The demo's token layout: a delay pattern over four codebooks.

A row is `words | <audio_start> | step 0 | step 1 | ...`. At audio step s the model predicts book
k of frame s - k, so the books of one frame are spread over four steps and each is predicted with
the coarser ones known. Audio step s sits at position s; where the words sit is the matter of
pace.py. Everything here is pure; `undelay` inverts `delay`.
"""

import torch
from torch import Tensor

BOOKS = 4
CODES = 128  # 0..127 are codes
END = 128  # ends the speech; book 0 only
BLANK = 129  # no code: before the first frame, after the last
IGNORE = -100


def delay(codes: Tensor) -> Tensor:
    """Codes (T, 4) -> steps (T + 3, 4); book k is k steps late, END follows book 0's last code."""
    frames = len(codes)
    steps = torch.full((frames + BOOKS - 1, BOOKS), BLANK)
    for book in range(BOOKS):
        steps[book : book + frames, book] = codes[:, book]
    steps[frames, 0] = END
    return steps


def undelay(steps: Tensor) -> Tensor:
    """Steps (S, 4), complete or cut off, -> the codes (T, 4) of all frames whose four books are
    there.
    """
    ends = (steps[:, 0] == END).nonzero().flatten()
    frames = int(ends[0]) if len(ends) else len(steps)
    frames = max(0, min(frames, len(steps) - BOOKS + 1))
    return torch.stack([steps[book : book + frames, book] for book in range(BOOKS)], 1)


def targets(steps: Tensor) -> Tensor:
    """What each step must predict: the steps themselves, with nothing asked where there is no
    code.
    """
    return steps.masked_fill(steps == BLANK, IGNORE)
