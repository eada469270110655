"""The documents say what is so: every recipe key, every command that the README shows."""

import re
import warnings
from pathlib import Path

import pytest
import typer.main

from sheen_cli.backbones import resolve
from sheen_cli.cli import app
from sheen_cli.recipe import Data, Log, Synth, Train, shipped

ROOT = Path(__file__).parent.parent
TEXTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


def test_every_recipe_key_is_documented_with_its_default() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| (`[^|]+`) \|([^|]*)\|", text, re.MULTILINE))
    documented = {key for cell in rows for key in re.findall(r"`([^`]+)`", cell)}
    sections = {"data": Data, "train": Train, "synth": Synth, "log": Log}
    known = {f"{name}.{key}" for name, section in sections.items() for key in section.model_fields}
    options = resolve("demo", [])[1].spec.options
    known |= {f"model.{key}" for key in options.model_fields} | {"backbone"}
    assert documented == known
    for name, section in (*sections.items(), ("model", options)):
        for key, field in section.model_fields.items():
            cell = rows.get(f"`{name}.{key}`", "").strip().strip("`")
            if isinstance(field.default, bool):
                assert cell == str(field.default).lower(), key
            elif isinstance(field.default, (int, float)) and cell:
                assert float(cell) == field.default, key


def test_readme_shows_the_two_commands_and_only_commands_that_exist() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert "make demo" in text and "make test" in text and 'pip install ".[all]"' in text
    group = typer.main.get_command(app)
    recipes = {recipe.name for recipe in shipped()}
    shown = re.findall(r"(?:^|`|/)sheen ([a-z]+)((?: [^\n`]*)?)", text, re.MULTILINE)
    assert {"prepare", "info", "train", "synth"} <= {name for name, _ in shown}
    for name, rest in shown:
        command = group.commands[name]
        options = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"(?<= )--?[a-z-]+", rest)) <= options, (name, rest)
        assert set(re.findall(r"--recipe (\S+)", rest)) <= recipes


def test_links_between_the_documents_lead_somewhere() -> None:
    for path in TEXTS:
        for link in re.findall(r"\]\(([^)#]+)\)", path.read_text("utf-8")):
            if not link.startswith("https://"):
                assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_the_makefile_and_ci_do_what_the_readme_says() -> None:
    make = (ROOT / "Makefile").read_text("utf-8")
    assert re.search(r"^demo:", make, re.MULTILINE) and re.search(r"^test:", make, re.MULTILINE)
    assert "make test" in (ROOT / ".ci" / "run").read_text("utf-8")


def test_s0_8_deprecations_are_errors_here() -> None:
    with pytest.raises(DeprecationWarning):
        warnings.warn("old", DeprecationWarning, stacklevel=1)
