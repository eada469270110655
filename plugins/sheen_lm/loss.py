"""A language model's cross-entropies where they count, some targets and some of the vocabulary at a
time, their gradient taken on the way.

The logits of a batch over 160 thousand tokens take more memory than the model, and plain training
makes four copies of them, padding and text included. Here the logits of one piece of targets exist
in the dtype that they are computed in, and a few thousand of their columns in float32; nothing is
computed twice (Liger kernels and Cut Cross-Entropy treat the head so).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

TARGETS = 512  # of a piece
CACHED, BLOCK = 1 << 11, 1 << 15  # columns of a piece: on a CPU, and elsewhere


class Run(NamedTuple):
    """Rows `start` to `stop` of weight number `weight`: the tokens from id `first` on."""

    weight: int
    start: int
    stop: int
    first: int


@dataclass(frozen=True)
class Head:
    """Which tokens are to choose from, by rising id: runs of rows of weights (rows, hidden).

    The weights are whole parameters, which may also be the model's embeddings.
    """

    weights: tuple[Tensor, ...]
    runs: tuple[Run, ...]

    @property
    def size(self) -> int:
        return sum(run.stop - run.start for run in self.runs)

    def columns(self, ids: Tensor) -> Tensor:
        """Where ids (n,) stand among the choices; -1 for those that are none."""
        found, before = torch.full_like(ids, -1), 0
        for run in self.runs:
            at, size = ids - run.first, run.stop - run.start
            found = torch.where((at >= 0) & (at < size), at + before, found)
            before += size
        return found


class Scored(NamedTuple):
    """Cross-entropies in nats (targets,) and their sum, the one of both that gradients flow
    through; and, where asked for, logits (targets, choices).
    """

    total: Tensor
    each: Tensor
    logits: Tensor | None = None


def entropies(hidden: Tensor, targets: Tensor, head: Head, trace: bool = False) -> Scored:
    """Of `targets` (n,), which the rows of `hidden` (n, hidden) predict. Raises ValueError for a
    target that is none of the head's choices.
    """
    columns = head.columns(targets)
    if bool((columns < 0).any()):
        wrong = int(targets[columns < 0][0])
        raise ValueError(f"token {wrong} is a target, but none of the {head.size} choices")
    kind = computed_in(hidden)
    if trace:
        parts = [hidden.to(kind) @ head.weights[run.weight][run.start : run.stop].to(kind).T
                 for run in head.runs]  # fmt: skip
        logits = torch.cat(parts, 1)
        each = torch.nn.functional.cross_entropy(logits.float(), columns, reduction="none")
        return Scored(each.sum(), each.detach(), logits)
    learns = torch.is_grad_enabled()  # which `forward` cannot see
    return Scored(*Piecewise.apply(kind, learns, hidden, columns, head.runs, *head.weights))  # type: ignore[no-untyped-call]


def computed_in(hidden: Tensor) -> torch.dtype:
    """The dtype of matrix products, which autocast may set."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


class Piecewise(torch.autograd.Function):
    """The sum, and each, of the cross-entropies."""

    @staticmethod
    def forward(
        ctx: Any, kind: torch.dtype, learns: bool, hidden: Tensor, columns: Tensor,
        runs: Sequence[Run], *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        trained = ctx.needs_input_grad[5:]
        taken = learns and (any(trained) or ctx.needs_input_grad[2])
        by_hidden = torch.empty_like(hidden) if taken else None
        sums = [torch.zeros_like(w) if taken and t else None
                for w, t in zip(weights, trained, strict=True)]  # fmt: skip
        every = []
        for at in range(0, len(hidden), TARGETS):
            here = slice(at, at + TARGETS)
            x, right = hidden[here].to(kind), columns[here]
            scores = [x @ rows.to(kind).T for _, _, _, rows in pieces(runs, weights)]
            whole, own = normalised(scores, right)
            every.append(whole - own)
            if by_hidden is not None:
                by_hidden[here] = gradients(scores, x, right, whole, runs, weights, sums)
            scores.clear()
        each = torch.cat(every) if every else hidden.new_zeros(0, dtype=torch.float32)
        ctx.grads = [by_hidden, *sums]
        ctx.mark_non_differentiable(each)
        return each.sum(), each

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        by_hidden, *sums = (each if each is None else each.mul_(grads[0]) for each in ctx.grads)
        ctx.grads = []
        return None, None, by_hidden, None, None, *sums


def pieces(
    runs: Sequence[Run], weights: Sequence[Tensor]
) -> Iterator[tuple[int, int, int, Tensor]]:
    """Each piece of the choices: its first column, its weight's number, its first row there, and
    its rows (columns, hidden).
    """
    column = 0
    for run in runs:
        size = CACHED if weights[run.weight].device.type == "cpu" else BLOCK
        for row in range(run.start, run.stop, size):
            rows = weights[run.weight][row : min(row + size, run.stop)]
            yield column, run.weight, row, rows
            column += len(rows)


def normalised(scores: Sequence[Tensor], right: Tensor) -> tuple[Tensor, Tensor]:
    """The logarithm of each target's sum over all choices (n,), and the right ones' logits (n,), in
    float32, from the logits' pieces (n, columns).
    """
    whole = torch.full(right.shape, float("-inf"), device=right.device)
    own, before = torch.zeros(right.shape, device=right.device), 0
    for some in scores:
        wide = some.float()
        whole = torch.logaddexp(whole, wide.logsumexp(1))
        at = right - before
        inside = (at >= 0) & (at < wide.shape[1])
        picked = wide.gather(1, at.clamp(0, wide.shape[1] - 1)[:, None])[:, 0]
        own = torch.where(inside, picked, own)
        before += wide.shape[1]
    return whole, own


def gradients(
    scores: list[Tensor], x: Tensor, right: Tensor, whole: Tensor, runs: Sequence[Run],
    weights: Sequence[Tensor], sums: Sequence[Tensor | None],
) -> Tensor:  # fmt: skip
    """By the hidden states (n, hidden), in float32; those by the weights are added to `sums`. The
    pieces of the logits are used up.
    """
    by_hidden = torch.zeros(x.shape, device=x.device)
    every = torch.arange(len(x), device=x.device)
    scores.reverse()
    for column, number, row, rows in pieces(runs, weights):
        wide = scores.pop().float().sub_(whole[:, None]).exp_()
        at = right - column
        inside = (at >= 0) & (at < len(rows))
        wide[every, at.clamp(0, len(rows) - 1)] -= inside.float()
        due = wide.to(x.dtype)
        by_hidden += due @ rows.to(x.dtype)
        total = sums[number]
        if total is not None:
            total[row : row + len(rows)] += due.T @ x
    return by_hidden
