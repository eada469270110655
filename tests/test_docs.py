"""The documents say what is so: every recipe key, every command that the README shows."""

import re
import warnings
from pathlib import Path
from typing import Any, get_args

import pytest
import typer.core
import typer.main

from sheen_cli import errors
from sheen_cli.backbones import load, points
from sheen_cli.cli import app
from sheen_cli.recipe import Data, Hub, Log, Section, Synth, Train, shipped

ROOT = Path(__file__).parent.parent
TEXTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


def fields(section: Any, prefix: str) -> dict[str, Any]:
    """The default of every key of a section, and of the sections in it."""
    found = {}
    for name, field in section.model_fields.items():
        found[f"{prefix}.{name}"] = field.default
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, Section):
                found |= fields(inner, f"{prefix}.{name}")
    return found


def test_every_recipe_key_is_documented_with_its_default() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text("utf-8")
    parts = re.split(r"^## `model` of the backbone `(.+)`$", text, flags=re.MULTILINE)
    assert set(parts[1::2]) == {point.name for point in points()}
    shared = {"data": Data, "train": Train, "synth": Synth, "log": Log, "hub": Hub}
    known = [{"backbone": None}]
    for name, section in shared.items():
        known[0] |= fields(section, name)
    known += [fields(load(name).spec.options, "model") for name in parts[1::2]]
    tables = [dict(re.findall(r"^\| (`[^|]+`) \|([^|]*)\|", part, re.MULTILINE))
              for part in parts[::2]]  # fmt: skip
    for part, rows, defaults in zip(parts[::2], tables, known, strict=True):
        for other in re.findall(r"^All other keys are those of `(.+)`", part, re.MULTILINE):
            rows = tables[parts[1::2].index(other) + 1] | rows
        assert {key for cell in rows for key in re.findall(r"`([^`]+)`", cell)} == set(defaults)
        for key, default in defaults.items():
            cell = rows.get(f"`{key}`", "").strip().strip("`")
            if isinstance(default, bool):
                assert cell == str(default).lower(), key
            elif isinstance(default, (int, float)) and cell:
                assert float(cell) == default, key
            elif isinstance(default, str):
                assert cell == default, key


def commands() -> dict[str, str]:
    """docs/commands.md: each command's section."""
    text = (ROOT / "docs" / "commands.md").read_text("utf-8")
    parts = re.split(r"^## `sheen ([a-z ]+)`$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def keys(section: str) -> list[dict[str, str]]:
    """The tables of JSON keys in a section of docs/commands.md: key -> type."""
    tables = []
    for table in section.split("| key | type | meaning |")[1:]:
        rows = re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|", table.partition("\n\n")[0], re.MULTILINE)
        tables.append({key: kind for cell, kind in rows for key in re.findall(r"`(.+?)`", cell)})
    return tables


def leaves(group: typer.core.TyperGroup, path: str = "") -> dict[str, Any]:
    """Every command of the program by its words."""
    found = {}
    for name, command in group.commands.items():
        inner = getattr(command, "commands", None)
        found |= leaves(command, f"{path}{name} ") if inner else {f"{path}{name}": command}
    return found


def test_every_command_is_documented_with_its_arguments_and_no_others() -> None:
    sections = commands()
    program = leaves(typer.main.get_command(app))
    assert list(sections) == list(program)  # in the order of --help, too
    for name, command in program.items():
        table = sections[name].partition("| argument |")[2].partition("\n\n")[0]
        cells = re.findall(r"^\| (`[^|]+`) \|", table, re.MULTILINE)
        documented = [word for cell in cells for word in re.findall(r"`([^`]+)`", cell)]
        options = [each for each in command.params if each.name != "help"]
        flags = [flag for each in options if each.opts[0].startswith("-") for flag in each.opts]
        assert [word for word in documented if word.startswith("-")] == flags, name
        words = [
            each.metavar or each.name.upper()
            for each in options
            if not each.opts[0].startswith("-")
        ]
        assert [word for word in documented if not word.startswith("-")] == words, name


def test_every_exit_code_is_documented() -> None:
    text = (ROOT / "docs" / "commands.md").read_text("utf-8")
    table = text.partition("| code |")[2].partition("\n\n")[0]
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    kinds = [each for each in vars(errors).values() if isinstance(each, type)]
    assert documented == {0, 1, 130} | {kind.code for kind in kinds}


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
