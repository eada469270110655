"""The sub-talker's cross-entropies, some frames at a time, their gradient taken on the way.

Each frame is a sequence of 16 rows that knows nothing of the other frames. All that five layers
compute of them, kept for a backward pass, is most of what a training needs memory for; here no more
of it exists than that of a piece, and nothing is computed twice (Liger kernels treat the head of a
language model so).
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

PIECE = 64  # frames

Scores = Callable[[Tensor], Tensor]


class Inner(NamedTuple):
    """Of codes 1.. of some frames: cross-entropies in nats (frames, groups - 1) and their sum, the
    one of both that gradients flow through; and, where asked for, logits
    (frames, groups - 1, codes).
    """

    total: Tensor
    each: Tensor
    logits: Tensor | None = None


def entropies(
    scores: Scores, parameters: list[nn.Parameter], steps: Tensor, codes: Tensor, trace: bool
) -> Inner:
    """`scores` gives the logits of frames from their inputs `steps` (frames, groups, hidden), by
    means of `parameters`; `codes` (frames, groups - 1) are the right ones.
    """
    if trace:
        logits = scores(steps)
        each = nats(logits, codes)
        return Inner(each.sum(), each.detach(), logits)
    if torch.is_grad_enabled():
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        return Inner(*Piecewise.apply(scores, steps, codes, *trained))  # type: ignore[no-untyped-call]
    each = torch.cat([nats(scores(some), right) for some, right in pieces(steps, codes)])
    return Inner(each.sum(), each)


def nats(logits: Tensor, codes: Tensor) -> Tensor:
    flat = cross_entropy(logits.float().flatten(0, 1), codes.flatten(), reduction="none")
    return flat.view(codes.shape)


def pieces(steps: Tensor, codes: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(torch.split(steps, PIECE), torch.split(codes, PIECE), strict=True)


class Piecewise(torch.autograd.Function):
    """The sum, and each, of the cross-entropies."""

    @staticmethod
    def forward(
        ctx: Any, scores: Scores, steps: Tensor, codes: Tensor, *trained: Tensor
    ) -> tuple[Tensor, Tensor]:
        every, by_steps = [], []
        sums: list[Tensor] = []
        for some, right in pieces(steps, codes):
            with torch.enable_grad():
                leaf = some.detach().requires_grad_()
                each = nats(scores(leaf), right)
                by_step, *grads = torch.autograd.grad(each.sum(), [leaf, *trained])
            every.append(each.detach())
            by_steps.append(by_step)
            if sums:
                torch._foreach_add_(sums, grads)
            sums = sums or grads
        ctx.grads = [torch.cat(by_steps), *sums]
        found = torch.cat(every)
        ctx.mark_non_differentiable(found)
        return found.sum(), found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        by_steps, *sums = (each.mul_(grads[0]) for each in ctx.grads)
        ctx.grads = []
        return None, by_steps, None, *sums
