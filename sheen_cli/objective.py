"""The objective over an accumulation window: per term, sum over count, whatever batches and ranks.

A backbone returns sums; the counts of the whole window are known before the first backward pass. So
every target weighs the same, in training, in validation and in the log.
"""

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from sheen_cli.types import Batch, Loss

# term -> (sum, scale); "part NAME" -> (sum, count). Sums stay tensors: reading one would wait
# for the device after every batch.
Sums = dict[str, tuple[Tensor, float]]


def total_loss(loss: Loss, counts: Mapping[str, float]) -> Tensor:
    """The micro-batch's share of the window's objective: scale * sum / count, over the terms."""
    terms = [term.scale * term.sum / max(counts[name], 1.0) for name, term in loss.terms.items()]
    return torch.stack(terms).sum()


def window_counts(
    batches: Sequence[Batch], terms: Sequence[str], parallel: Accelerator
) -> dict[str, float]:
    """Targets of each term over the batches and all ranks."""
    own = torch.tensor(
        [sum(batch.counts[name] for batch in batches) for name in terms], dtype=torch.float64
    )
    return dict(zip(terms, reduced(own, parallel), strict=True))


def add(sums: Sums, loss: Loss, weight: int) -> None:
    """Collect a batch's sums for the log: each term's with its scale, each part's with its
    count.
    """
    for name, term in loss.terms.items():
        value = term.sum.detach().float() * weight
        sums[name] = (sums[name][0] + value if name in sums else value, term.scale)
    for name, (value, count) in loss.parts.items():
        key, value = f"part {name}", value.detach().float() * weight
        total, seen = sums.get(key, (torch.zeros_like(value), 0.0))
        sums[key] = (total + value, seen + weight * count)


def averages(sums: Sums, counts: Mapping[str, float], parallel: Accelerator) -> dict[str, float]:
    """loss, loss_TERM and the parts, averaged over all ranks."""
    names = list(sums)
    own = torch.stack([sums[name][0] for name in names]).double().cpu()
    weights = torch.tensor([sums[name][1] for name in names], dtype=torch.float64)
    totals = reduced(torch.stack([own, weights]), parallel)
    values = torch.tensor(totals, dtype=torch.float64).view(2, -1)
    record = {"loss": 0.0}
    for name, value, weight in zip(names, values[0].tolist(), values[1].tolist(), strict=True):
        if name.startswith("part "):
            record[name.removeprefix("part ")] = value / max(weight, 1.0)
        else:
            record[f"loss_{name}"] = value / max(counts[name], 1.0)
            record["loss"] += sums[name][1] * record[f"loss_{name}"]
    return record


def reduced(own: Tensor, parallel: Accelerator) -> list[float]:
    """Element-wise sum over the ranks, flattened."""
    if parallel.num_processes > 1:
        own = parallel.reduce(own.to(parallel.device), "sum")
    return [float(value) for value in own.flatten().tolist()]
