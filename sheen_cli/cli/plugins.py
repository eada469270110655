"""`sheen plugins list` and `check`."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from sheen_cli import console
from sheen_cli.cli.options import Json, Settings
from sheen_cli.errors import SheenError

app = typer.Typer(help="The installed backbones.", no_args_is_help=True, rich_markup_mode=None)

Base = Annotated[
    str | None, typer.Option(help="Measure this base model instead, a folder or a Hub id.")
]
SpokenClip = Annotated[
    Path | None, typer.Option(help="With --base: speech to measure it with; else built in.")
]
ClipText = Annotated[str | None, typer.Option(help="What is said in --clip.")]

Found = TypeVar("Found")


@app.command("list")
def overview(as_json: Json = False) -> None:
    """Name every installed backbone, and what is wrong with those that cannot be loaded."""
    from dataclasses import asdict

    from sheen_cli.plugins import listing

    found = listing()
    if as_json:
        return console.result(json.dumps([asdict(row) for row in found]))
    cells = (
        (row.name or "?", f"{row.distribution} {row.version}", row.error or "ok") for row in found
    )
    console.result("\n".join(console.columns(cells)))


@app.command()
def check(
    name: str,
    settings: Settings = None,
    base: Base = None,
    clip: SpokenClip = None,
    clip_text: ClipText = None,
    as_json: Json = False,
) -> None:
    """Prove that a backbone keeps its contract, rule by rule; exit code 1 if it does not.

    It trains a tiny model on babble, on top of whose settings yours come.
    """
    about: dict[str, Any] = {"backbone": name, "distribution": distribution(name)}
    if base is None and (clip is not None or clip_text is not None):
        raise SheenError("--clip and --clip-text measure a base model: name it with --base")
    passed = (
        contract_check(about, settings or [], as_json)
        if base is None
        else base_check({**about, "base": base}, clip, clip_text, settings or [], as_json)
    )
    if not passed:
        raise typer.Exit(1)


def distribution(name: str) -> Any:
    """The package that brings a backbone. Raises SheenError where none does."""
    from sheen_cli.plugins import package, points
    from sheen_cli.recipe import did_you_mean

    packages = {point.name: package(point) for point in points()}
    if name not in packages:
        known = ", ".join(packages) or "none"
        raise SheenError(
            f"no backbone named '{name}'{did_you_mean(name, packages)}; installed: {known}"
        )
    return packages[name]


def contract_check(about: dict[str, Any], settings: list[str], as_json: bool) -> bool:
    """Print whether the backbone keeps every rule; returns whether it does."""
    from dataclasses import asdict

    from sheen_cli.testing import judged

    rules = told(judged(about["backbone"], settings), lambda f: f"{f.status:<11}  {f}", as_json)
    broken = [rule.rule for rule in rules if rule.status == "failed"]
    if as_json:
        facts = {**about, "passed": not broken, "rules": [asdict(rule) for rule in rules]}
        console.result(json.dumps(facts))
    else:
        kept = sum(rule.status == "ok" for rule in rules)
        verdict = f"breaks {', '.join(broken)}" if broken else f"keeps {kept} rules"
        console.result(f"{about['backbone']} {verdict}")
    return not broken


MARKS = {True: "ok", False: "failed", None: "notice"}


def base_check(
    about: dict[str, Any], clip: Path | None, text: str | None, settings: list[str], as_json: bool
) -> bool:
    """Print whether the base model passes every measurement; returns whether it does."""
    from dataclasses import asdict

    from sheen_cli.testing.base import measured

    found = measured(about["backbone"], about["base"], clip, text, settings)
    checks = told(found, lambda c: f"{MARKS[c.ok]:<6}  {c.name:<19}  {c.text}", as_json)
    failed = [check.name for check in checks if check.ok is False]
    if as_json:
        facts = {**about, "passed": not failed, "checks": [asdict(check) for check in checks]}
        console.result(json.dumps(facts))
    else:
        notices = [check.name for check in checks if check.ok is None]
        aside = f"; see the notices on {', '.join(notices)}" if notices else ""
        verdict = f"fails {', '.join(failed)}" if failed else "passes"
        console.result(f"{about['base']} {verdict}{aside}")
    return not failed


def told(found: Iterable[Found], line: Callable[[Found], str], as_json: bool) -> list[Found]:
    """All that is found, each printed as soon as it is known, unless it is to be JSON."""
    everything = []
    for each in found:
        everything.append(each)
        if not as_json:
            console.result(line(each))
    return everything
