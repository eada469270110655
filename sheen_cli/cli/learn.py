"""`sheen demo` and `sheen train`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from sheen_cli import console
from sheen_cli.cli.options import (
    DEFAULT,
    Json,
    Overwrite,
    RecipeName,
    Settings,
    Speaker,
    flagged,
    switch,
)


def demo(
    settings: Settings = None,
    out: Annotated[Path, typer.Option(help="The run's folder.")] = Path("runs/demo"),
    data: Annotated[Path, typer.Option(help="The prepared data's folder.")] = Path("data/demo"),
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Train so many steps instead of some minutes.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Learn to speak in minutes, offline.

    Prepare, info, train and synth on the embedded default, on a CPU.
    """
    from sheen_cli.demo import SENTENCE, run

    report = run(out, data, max_steps, overwrite, settings or [])
    if as_json:
        return console.result(json.dumps(report))
    console.say("\nNow say your own (its words: the demo names them when you use another):")
    console.result(f'  sheen synth {out / "best"} --text "{SENTENCE}" -o hello.wav')


Data = Annotated[
    Path | None,
    typer.Option(
        help="A prepared folder, or a .jsonl to prepare; data, or what a resumed run used."
    ),
]
Dataset = Annotated[
    str | None, typer.Option(help="Prepare this first, unless --data holds it already.")
]
Out = Annotated[Path | None, typer.Option(help="The run's folder; runs/RECIPE by default.")]
MaxSteps = Annotated[int | None, typer.Option(min=1, help="Optimizer steps.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Passes over the data.")]
LearningRate = Annotated[float | None, typer.Option(help="Peak learning rate.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Rows of one forward pass.")]
Resume = Annotated[bool, switch("resume", "Go on from the run's newest checkpoint.")]
Wandb = Annotated[bool | None, switch("wandb", "Send log and samples to W&B.")]
PushToHub = Annotated[
    str | None, typer.Option(help="A Hub repository USER/NAME to upload the model to.")
]


def train(
    settings: Settings = None,
    recipe: RecipeName = None,
    data: Data = None,
    dataset: Dataset = None,
    speaker: Speaker = None,
    out: Out = None,
    max_steps: MaxSteps = None,
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    batch_size: BatchSize = None,
    resume: Resume = False,
    wandb: Wandb = None,
    push_to_hub: PushToHub = None,
    as_json: Json = False,
) -> None:
    """Train by a recipe on prepared data, or on a data set that it prepares first.

    Leaves checkpoints, and `best` and `last`, in the run's folder.
    """
    from sheen_cli import hub, jobs, mirror
    from sheen_cli.backbones import resolve
    from sheen_cli.info import describe

    resumed = out if resume else None
    data = data or (resumed and jobs.data_of(resumed)) or Path("data")
    data, dataset = jobs.data_for(data, dataset)
    if recipe is None and resumed and (resumed / "recipe.yaml").is_file():
        recipe = str(resumed / "recipe.yaml")
    recipe = recipe or jobs.fitting(data) or DEFAULT
    given = {
        "data.dataset": dataset,
        "data.speaker": speaker,
        "train.learning_rate": learning_rate,
        "train.batch_size": batch_size,
        "log.wandb": wandb,
        "hub.push_to": push_to_hub,
    }
    flags = flagged(given) + end(max_steps, epochs)
    resolved, backbone = resolve(recipe, flags + (settings or []))
    mirror.check(resolved.log.wandb)
    hub.look_ahead(resolved)
    asked = flagged({"data.speaker": speaker}) + (settings or [])
    jobs.prepared(resolved, backbone, data, dataset, asked)
    out = out or Path("runs") / Path(recipe).stem
    best = jobs.train(resolved, backbone, data, out, resume)
    facts = describe(out)
    console.result(
        json.dumps(facts) if as_json else f"{best} -> {facts['best']}, last is {facts['last']}"
    )


def end(max_steps: int | None, epochs: int | None) -> list[str]:
    """`--max-steps` and `--epochs` as recipe settings: where one is given, they alone are the
    end.
    """
    if max_steps is None and epochs is None:
        return []
    ends = {"max_steps": max_steps, "epochs": epochs, "max_minutes": None}
    return [f"train.{key}={json.dumps(value)}" for key, value in ends.items()]
