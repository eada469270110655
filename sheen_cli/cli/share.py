"""`sheen export` and `sheen push`: checkpoints as others use them."""

import json
from pathlib import Path
from typing import Annotated

import typer

from sheen_cli import console
from sheen_cli.cli.options import Json, Settings, switch


def export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a run for its best.")],
    kind: Annotated[str, typer.Option("--as", help="What to make of it; backbones differ.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write.")],
    settings: Settings = None,
    overwrite: Annotated[bool, switch("overwrite", "Replace an earlier export.")] = False,
    as_json: Json = False,
) -> None:
    """Write a checkpoint as other tools load it.

    An unknown --as is answered with the kinds that the checkpoint's backbone has.
    """
    from sheen_cli import exporting

    facts = exporting.export(checkpoint, kind, out, overwrite, settings or [])
    console.result(json.dumps(facts) if as_json else "\n".join(exporting.lines(facts)))


def push(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a run: its best.")],
    repository: Annotated[str, typer.Argument(help="On the Hub, as USER/NAME.")],
    private: Annotated[
        bool | None, switch("private", "Whether a new repository is private.")
    ] = None,
    license: Annotated[str | None, typer.Option(help="For the card, as cc-by-4.0.")] = None,
    dry_run: Annotated[bool, switch("dry-run", "Show files and card; send nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Upload a checkpoint to the Hub, with a model card.

    One commit, private unless asked. Repeating it sends only what differs.
    """
    from sheen_cli import bundle, checkpoints, hub
    from sheen_cli.recipe import read

    folder = checkpoints.resolve(checkpoint)
    packed = hub.prepare(folder, repository, license)
    if private is None:
        private = read(folder / "recipe.yaml").get("hub", {}).get("private", True)
    done = {"url": None, "commit": None} if dry_run else hub.push(packed, repository, private)
    files = {name: bundle.size(content) for name, content in packed.files.items()}
    if as_json:
        facts = {**done, "repository": repository, "private": private, "files": files}
        return console.result(json.dumps({**facts, "left": packed.left}))
    for name in packed.left:
        console.say(f"left behind: {name}")
    if not dry_run:
        return console.result(hub.told(done, private))
    console.result("\n".join(console.columns((str(size), name) for name, size in files.items())))
    console.result("\n" + bytes(packed.files[bundle.CARD]).decode())
