"""What several commands take, said once, and options as the recipe settings that they stand for."""

import json
from typing import Annotated, Any

import typer

DEFAULT = "qwen3tts-lora"  # the recipe where none is named


def switch(name: str, about: str) -> Any:
    """A boolean option, `--name` and `--no-name`."""
    return typer.Option(f"--{name}/--no-{name}", help=about)


RecipeName = Annotated[str | None, typer.Option("--recipe", help="A recipe's name or YAML file.")]
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Recipe settings, as train.max_steps=100."),
]
Speaker = Annotated[str | None, typer.Option(metavar="NAME", help="Of rows that name none.")]
Json = Annotated[bool, switch("json", "Print the result as JSON.")]
Overwrite = Annotated[bool, switch("overwrite", "Replace what is there.")]


def flagged(values: dict[str, Any]) -> list[str]:
    """Flags that were given, as recipe settings."""
    return [
        f"{key}={json.dumps(value, ensure_ascii=False)}"
        for key, value in values.items()
        if value is not None
    ]
