"""What is optimised and how fast: parameter groups, AdamW, the schedule, the progress made."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from sheen_cli.errors import SheenError
from sheen_cli.recipe import Train
from sheen_cli.split_adamw import SplitAdamW


@dataclass(frozen=True)
class Group:
    """Parameters with a learning rate and weight decay of their own; None means the recipe's."""

    parameters: Sequence[nn.Parameter]
    learning_rate: float | None = None
    weight_decay: float | None = None


@dataclass
class Progress:
    """Where a training stands; saved with every checkpoint."""

    step: int = 0  # optimizer steps done
    epoch: int = 0
    window: int = 0  # of the epoch, the next to be done
    seconds: float = 0.0  # of training, over all resumes
    threads: int = 0
    ranks: int = 1
    best: float | None = None
    best_step: int | None = None


def default_groups(model: nn.Module) -> list[Group]:
    """All trainable parameters; weight decay for matrices alone, not for norms, biases and
    embeddings.
    """
    tables = {
        id(p)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for p in module.parameters()
    }
    trainable = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trainable if p.ndim >= 2 and id(p) not in tables]
    chosen = {id(p) for p in decayed}
    return [Group(decayed), Group([p for p in trainable if id(p) not in chosen], weight_decay=0.0)]


def ordered(model: nn.Module, groups: Sequence[Group]) -> tuple[list[Group], list[list[str]]]:
    """The groups with their parameters in the model's order, and their names. An optimizer's saved
    state knows parameters by position alone, and a plugin may collect them in a set.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    place = {number: at for at, number in enumerate(names)}
    sorted_groups = [
        replace(group, parameters=sorted(group.parameters, key=lambda p: place.get(id(p), -1)))
        for group in groups
    ]
    return sorted_groups, [[names.get(id(p), "?") for p in g.parameters] for g in sorted_groups]


def adamw(groups: Sequence[Group], train: Train) -> torch.optim.Optimizer:
    """AdamW over the groups; each keeps its learning rate as a factor of the recipe's, which the
    schedule moves. With `train.weights=bf16` it changes the parameters' dtype.
    """
    settings = [
        {
            "params": list(group.parameters),
            "factor": 1.0
            if group.learning_rate is None
            else group.learning_rate / train.learning_rate,
            "weight_decay": train.weight_decay
            if group.weight_decay is None
            else group.weight_decay,
        }
        for group in groups
        if len(group.parameters)
    ]
    if not settings:
        raise SheenError("the model has no trainable parameter; nothing would be learnt")
    betas = train.beta1, train.beta2
    if train.weights == "bf16":
        return SplitAdamW(settings, train.learning_rate, betas)
    return torch.optim.AdamW(settings, train.learning_rate, betas, fused=True)


def total_steps(train: Train, steps_per_epoch: int) -> int | None:
    """Optimizer steps to be done, None where only the clock decides."""
    by_epochs = None if train.epochs is None else train.epochs * steps_per_epoch
    known = [steps for steps in (train.max_steps, by_epochs) if steps is not None]
    return min(known) if known else None


def finished(train: Train, total: int | None, progress: Progress) -> bool:
    late = train.max_minutes is not None and progress.seconds >= train.max_minutes * 60
    return late or (total is not None and progress.step >= total)


def learning_rate(train: Train, total: int | None, progress: Progress) -> float:
    """Linear warm-up, then the schedule over the share of steps or of time that is used up,
    whichever is larger.
    """
    warmup = train.warmup_steps if total is None else min(train.warmup_steps, total // 10)
    if progress.step < warmup:
        return train.learning_rate * (progress.step + 1) / warmup
    used = 0.0 if total is None else progress.step / total
    if train.max_minutes is not None:
        used = max(used, progress.seconds / (train.max_minutes * 60))
    used = min(used, 1.0)
    shape = {"constant": 1.0, "linear": 1 - used, "cosine": (1 + math.cos(math.pi * used)) / 2}[
        train.schedule
    ]
    return train.learning_rate * (train.floor + (1 - train.floor) * shape)
