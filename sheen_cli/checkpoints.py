"""Checkpoints: folders that are whole or absent, that describe themselves, and that `best` and
`last` point to.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sheen_cli import console
from sheen_cli.errors import SheenError
from sheen_cli.files import FORMAT, building, digests, point, remove, write_json
from sheen_cli.recipe import Recipe, save

MANIFEST = "manifest.json"
STATE = "training"  # what only a resumed training reads


def write(folder: Path, recipe: Recipe[Any], artifacts: Path, fill: Callable[[Path], None]) -> None:
    """Publish one checkpoint: `fill` writes weights and state, then recipe, artifacts and, last,
    the manifest.
    """
    with building(folder) as part:
        fill(part)
        if artifacts.is_dir():
            shutil.copytree(artifacts, part / "artifacts")
        save(recipe, part / "recipe.yaml")
        write_json(
            part / MANIFEST, {"format": FORMAT, "backbone": recipe.backbone, "files": digests(part)}
        )


def check(folder: Path, contents: bool = True) -> str | None:
    """What is wrong with a checkpoint, or None; with `contents` every file is hashed, else only
    measured.
    """
    try:
        files = json.loads((folder / MANIFEST).read_text("utf-8"))["files"]
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} is damaged"
    for name, promised in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != promised["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, not {promised['bytes']}"
    if (
        contents
        and (found := digests(folder))
        and any(found[name] != promised for name, promised in files.items())
    ):
        return (
            f"{next(name for name in files if found[name] != files[name])} has other "
            f"contents than were written"
        )
    return None


def step(folder: Path) -> int:
    return int(folder.name.removeprefix("checkpoint-"))


def listed(run: Path) -> list[Path]:
    """The run's checkpoint folders, oldest first."""
    return sorted((path for path in run.glob("checkpoint-*") if path.name[11:].isdigit()), key=step)


def newest(run: Path) -> Path | None:
    """The newest checkpoint that is whole; a damaged one is passed over aloud."""
    for folder in reversed(listed(run)):
        problem = check(folder)
        if problem is None:
            return folder
        console.warn(f"{folder} is passed over: {problem}")
    return None


def rewind(run: Path, to: int) -> None:
    """Before a run goes on from step `to`: remove later checkpoints, which are damaged, and what a
    crash left half written.
    """
    for folder in listed(run):
        if step(folder) > to:
            remove(folder)
    for folder in [*run.glob(".checkpoint-*.part"), *run.glob(".checkpoint-*.old")]:
        shutil.rmtree(folder)


def rotate(run: Path, keep: int, best: Path | None) -> None:
    """Point `last` and `best`, then delete all but the `keep` newest checkpoints and the best
    one.
    """
    folders = listed(run)
    point(run / "last", folders[-1].name)
    point(run / "best", (best or folders[-1]).name)
    for folder in folders[:-keep]:
        if best is None or folder.name != best.name:
            remove(folder)


def resolve(path: Path) -> Path:
    """The checkpoint folder that a user means: itself, or a run's best. Raises SheenError for
    anything else.
    """
    if not path.exists():
        raise SheenError(f"no checkpoint at {path}")
    if not (path / MANIFEST).is_file() and (path / "best").exists():
        path = path / "best"
    if problem := check(path, contents=False):
        raise SheenError(f"{path} is not a usable checkpoint: {problem}")
    return path.resolve()
