"""Which parameters of a PyTorch model are trained, in which precision and at which rates."""

from collections.abc import Callable, Sequence
from fnmatch import fnmatch

from torch import nn

from sheen_cli import Group, SheenError


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze what a pattern names. Raises SheenError for one that names nothing."""
    named: dict[str, nn.Parameter] = dict(model.named_parameters())
    for pattern in patterns:
        found = [name for name in named if fnmatch(name, pattern)]
        if not found:
            raise SheenError(f"model.freeze: no parameter of the model is named '{pattern}'")
        for name in found:
            named[name].requires_grad_(False)


def masters(model: nn.Module) -> list[str]:
    """Put all that is trained into float32, since most of AdamW's steps round to nothing in
    bfloat16; its names.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for _, parameter in trained:
        parameter.data = parameter.data.float()
    return [name for name, _ in trained]


def groups(
    model: nn.Module, settings: Callable[[str, nn.Parameter], tuple[float | None, float | None]]
) -> list[Group]:
    """What is trained, in groups of the same learning rate and weight decay, which `settings`
    gives for a parameter and its name; None is the recipe's.
    """
    alike: dict[tuple[float | None, float | None], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            alike.setdefault(settings(name, parameter), []).append(parameter)
    return [Group(found, rate, decay) for (rate, decay), found in alike.items()]
