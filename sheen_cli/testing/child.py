"""The kit's fresh process: imports the plugin, makes batches, loads the checkpoint, measures."""

import contextlib
import io
import json
import pickle
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import sheen_cli
from sheen_cli import backbones, plugins, recipe, synthesis


def main() -> None:
    task = json.load(sys.stdin)
    found: dict[str, Any] = {}
    answer = Path(task["answer"])

    def tell(**facts: Any) -> None:  # step by step, so that a later failure takes nothing along
        found.update(facts)
        answer.write_bytes(pickle.dumps(found))

    tell(**imported(task["name"]))
    folder = Path(task["checkpoint"])
    backbone = backbones.load(task["name"])
    resolved = recipe.validate(task["recipe"], backbone.spec.options, "the kit's recipe")
    artifacts = Path(task["artifacts"])

    def collate(rows: list[sheen_cli.Row], seed: int | None) -> sheen_cli.Batch:
        batch: sheen_cli.Batch = backbone.hook.collate(
            recipe=resolved, rows=rows, seed=seed, artifacts=artifacts
        )
        return batch

    batches = [(seed, collate(task["rows"], seed)) for seed in (None, 5)]
    tell(batches=[(seed, batch.inputs, batch.counts) for seed, batch in batches])
    voice = synthesis.Voice(folder)
    batch = collate(task["rows"][:2], None)
    device = next(voice.model.parameters()).device
    inputs = {name: tensor.to(device) for name, tensor in batch.inputs.items()}
    with torch.no_grad():
        loss = backbone.hook.loss(
            recipe=resolved,
            model=voice.model,
            batch=sheen_cli.Batch(inputs, batch.counts),
            trace=True,
        )
    asked = [
        sheen_cli.Request(
            row["text"],
            greedy=True,
            max_seconds=task["seconds"],
            **{name: row[name] for name in ("speaker", "language") if name in backbone.spec.reads},
        )
        for row in task["rows"][:2]
    ]
    said = backbone.hook.synth(recipe=resolved, model=voice.model, requests=asked, trace=False)
    tell(said=[(each.codes, each.samples) for each in said])
    tell(
        sums={name: float(term.sum) for name, term in loss.terms.items()},
        logits={name: value.float().cpu() for name, value in loss.logits.items()},
    )


def imported(name: str) -> dict[str, Any]:
    """What importing the plugin's module brings along and prints."""
    for public in sheen_cli.__all__:
        getattr(sheen_cli, public)
    (point,) = [point for point in plugins.points() if point.name == name]
    before, printed = set(sys.modules), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        point.load()
    own = point.module.partition(".")[0]
    new = Counter(module.partition(".")[0] for module in set(sys.modules) - before)
    new.pop(own, None)
    cuda = bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
    return {"modules": dict(new), "printed": printed.getvalue().strip(), "cuda": cuda}


if __name__ == "__main__":
    main()
