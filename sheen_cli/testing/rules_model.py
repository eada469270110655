"""Rules of `loss` and `train`: every term, every target and every parameter, and no other."""

import math

import torch

from sheen_cli.testing.lab import Lab
from sheen_cli.testing.report import Broken, rule
from sheen_cli.testing.rules_data import end, targets, text

CLOSE = 2e-5  # of sums of float32 losses, relative


@rule(
    "loss",
    "a term's sum is detached or multiplied by nothing (a hidden state that is None, a loss "
    "skipped in silence), or the terms are not those that describe() declares",
    "pure",
)
def terms(lab: Lab) -> None:
    """the declared terms, each counted, finite, and moving some parameter"""
    model, groups = lab.young
    batch = lab.collate(lab.rows)
    loss = lab.loss(model, batch)
    declared = set(lab.backbone.spec.terms)
    for who, found in (("loss returns", set(loss.terms)), ("collate counts", set(batch.counts))):
        if found != declared:
            raise Broken(f"describe() declares {sorted(declared)}, {who} {sorted(found)}")
    trained = [p for group in groups for p in group.parameters]
    for name, term in loss.terms.items():
        if not isinstance(batch.counts[name], int) or batch.counts[name] < 1:
            raise Broken(f"the count of '{name}' is {batch.counts[name]!r} over all rows")
        value = term.sum.detach()
        if value.ndim or not math.isfinite(value) or not math.isfinite(term.scale):
            raise Broken(f"the sum of '{name}' is {value}, its scale {term.scale}")
        moved = term.sum.requires_grad and any(
            g is not None and g.any()
            for g in torch.autograd.grad(term.sum, trained, retain_graph=True, allow_unused=True)
        )
        if not moved:
            raise Broken(f"'{name}' gives no trained parameter a gradient")


@rule(
    "loss",
    "dropout, or something else random, does not follow model.eval()",
    "terms",
)
def steady(lab: Lab) -> None:
    """in eval mode the same batch has the same loss twice"""
    torch.manual_seed(1)
    first = lab.sums(lab.rows)
    torch.manual_seed(2)
    compare(first, lab.sums(lab.rows), "at first", "the second time")


@rule(
    "collate or loss",
    "something of the batch's first row (a speaker, a length, a prompt) is used for all rows",
    "steady",
)
def order(lab: Lab) -> None:
    """the order of a batch's rows changes no loss"""
    forth, back = lab.sums(lab.rows), lab.sums(lab.rows[::-1])
    compare(forth, back, "in one order", "in the other")


@rule(
    "collate or loss",
    "padding is among the targets, is attended to, or moves the positions; or loss averages "
    "instead of summing",
    "order",
)
def padding(lab: Lab) -> None:
    """a batch's sums and counts are those of its rows alone, whatever their lengths"""
    alone = [lab.sums([row]) for row in lab.rows]
    sums = {name: sum(each[0][name] for each in alone) for name in alone[0][0]}
    counts = {name: sum(each[1][name] for each in alone) for name in alone[0][1]}
    compare(lab.sums(lab.rows), (sums, counts), "as one batch", "one by one")


def compare(
    first: tuple[dict[str, float], dict[str, int]],
    second: tuple[dict[str, float], dict[str, int]],
    one: str,
    other: str,
) -> None:
    for name, value in first[0].items():
        if first[1][name] != second[1][name]:
            raise Broken(f"'{name}' has {first[1][name]} targets {one}, {second[1][name]} {other}")
        if not abs(value - second[0][name]) <= CLOSE * max(1.0, abs(value)):  # nor NaN
            raise Broken(f"the sum of '{name}' is {value:.4f} {one}, {second[0][name]:.4f} {other}")


@rule(
    "train and loss",
    "a part is computed without gradient, or never used, or stands in no group that fit() is "
    "given, or is frozen by hand and trained all the same",
    "terms",
)
def gradient(lab: Lab) -> None:
    """what train() gives to fit() learns, every parameter of it, and nothing else does"""
    model, groups = lab.young
    chosen = {id(p) for group in groups for p in group.parameters}
    names = {name: id(p) for name, p in model.named_parameters()}
    if foreign := len(chosen - set(names.values())):
        raise Broken(f"{foreign} parameters in the groups are not the model's")
    idle = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in chosen]
    if idle:
        raise Broken(f"requires a gradient but stands in no group: {some(idle)}")
    _, touched, changed = lab.moved
    trained = {name for name, number in names.items() if number in chosen}
    if silent := trained - touched:
        raise Broken(f"never gets a gradient: {some(silent)}")
    if stray := (touched | changed) - trained:
        raise Broken(f"is learnt although no group holds it: {some(stray)}")


def some(names: "set[str] | list[str]") -> str:
    shown = sorted(names)
    rest = f" and {len(shown) - 4} more" if len(shown) > 4 else ""
    return ", ".join(shown[:4]) + rest


MODEL = (terms, steady, order, padding, text, end, targets, gradient)
