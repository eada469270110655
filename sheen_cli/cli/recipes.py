"""`sheen recipes list` and `show`."""

import json

import typer

from sheen_cli import console
from sheen_cli.cli.options import Json, Settings

app = typer.Typer(
    help="The recipes that --recipe can name.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("list")
def overview(as_json: Json = False) -> None:
    """Name every recipe, with its backbone and purpose."""
    from sheen_cli.recipe import shipped

    found = [(recipe.name, recipe.backbone, recipe.about) for recipe in shipped()]
    if as_json:
        keys = ("name", "backbone", "about")
        return console.result(json.dumps([dict(zip(keys, row, strict=True)) for row in found]))
    console.result("\n".join(console.columns(found)))


@app.command()
def show(name: str, settings: Settings = None, as_json: Json = False) -> None:
    """Print a recipe with all its defaults and settings resolved, as YAML that --recipe reads."""
    from sheen_cli.backbones import resolve
    from sheen_cli.recipe import dump, find

    recipe, _ = resolve(name, settings or [])
    if as_json:
        return console.result(recipe.model_dump_json())
    header = [line for line in find(name).read_text("utf-8").splitlines() if line.startswith("#")]
    console.result("\n".join([*header, dump(recipe).rstrip()]))
