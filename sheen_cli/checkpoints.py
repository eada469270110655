"""Checkpoints: folders that are whole or absent, that describe themselves, and that `best` and
`last` point to.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sheen_cli import console
from sheen_cli.errors import SheenError
from sheen_cli.files import FORMAT, building, copy, digests, point, remove, sha256, write_json
from sheen_cli.recipe import Recipe, save

MANIFEST = "manifest.json"
STATE = "training"  # what only a resumed training reads


def write(folder: Path, recipe: Recipe[Any], artifacts: Path, fill: Callable[[Path], None]) -> None:
    """Publish one checkpoint: `fill` writes weights and state, then recipe, artifacts and, last,
    the manifest.
    """
    with building(folder) as part:
        fill(part)
        share(part)
        copy(artifacts, part / "artifacts")
        save(recipe, part / "recipe.yaml")
        write_json(part / MANIFEST, sealed(recipe.backbone, digests(part)))


def share(folder: Path) -> None:
    """Let others read what the user's umask lets them: safetensors writes for the owner alone. What
    is linked to elsewhere stays as it is.
    """
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_nlink == 1:
            path.chmod(0o666 & ~mask)


def sealed(backbone: str, files: Mapping[str, Mapping[str, int | str]]) -> dict[str, Any]:
    """What manifest.json holds, for files as `digests` tells them."""
    facts = {"format": FORMAT, "backbone": backbone, "files": files}
    return {**facts, "seal": seal(facts)}


def seal(facts: dict[str, Any]) -> str:
    """The manifest's own SHA-256, since nothing else vouches for it."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def check(folder: Path, state: bool = True) -> str | None:
    """What is wrong with a checkpoint, or None. Every file of the manifest is hashed; without
    `state`, those that only a resumed training reads are just measured, and may be missing.

    Files that the manifest does not name are let be: nothing reads them, and people leave notes.
    """
    if not folder.is_dir():
        return "it is no folder"
    try:
        facts = json.loads((folder / MANIFEST).read_text("utf-8"))
        if facts.pop("seal") != seal(facts) or facts["format"] != FORMAT:
            return f"{MANIFEST} is damaged"
        files = dict(facts["files"])
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, LookupError, TypeError, AttributeError, OSError):
        return f"{MANIFEST} is damaged"
    for name, promised in files.items():
        path = folder / name
        if not path.exists() and not state and name.startswith(f"{STATE}/"):
            continue  # left out of what was published
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != promised["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, not {promised['bytes']}"
    for name, promised in files.items():
        read = state or not name.startswith(f"{STATE}/")
        if read and sha256(folder / name) != promised["sha256"]:
            return f"{name} has other contents than were written"
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


def rewind(run: Path, to: Path, best: Path | None) -> None:
    """Before a run goes on from its checkpoint `to`: point the links to what is whole, then remove
    what is later, which `newest` has passed over.
    """
    link(run, to, best)
    for folder in listed(run):
        if step(folder) > step(to):
            remove(folder)
    for each in epochs(run):
        if not each.exists():
            each.unlink()


def rotate(run: Path, keep: int, best: Path | None, epoch: int | None = None) -> None:
    """Point `last` and `best`, and `epoch-N` where the newest checkpoint ends the epoch N; then
    delete all but the `keep` newest checkpoints, the best one and those of epochs.
    """
    folders = listed(run)
    link(run, folders[-1], best)
    if epoch is not None:
        point(run / f"epoch-{epoch}", folders[-1].name)
    stay = {each.readlink().name for each in epochs(run)}
    for folder in folders[:-keep]:
        if folder.name not in stay and (best is None or folder.name != best.name):
            remove(folder)


def epochs(run: Path) -> list[Path]:
    """The links to checkpoints at which an epoch ended."""
    return [path for path in run.glob("epoch-*") if path.is_symlink()]


def link(run: Path, last: Path, best: Path | None) -> None:
    """Without a best one by validation, the last one is the best."""
    point(run / "last", last.name)
    point(run / "best", (best or last).name)


def resolve(path: Path) -> Path:
    """The checkpoint folder that a user means: itself, or a run's best. Raises SheenError for
    anything else, and for one in which as much as a bit of what is about to be read has changed.
    """
    if not path.exists():
        near = nearest(path)
        hint = f"; did you mean {near}?" if near else ""
        if there := ", ".join(each.name for each in listed(path.parent)):
            hint = f"; there are {there}"
        raise SheenError(f"no checkpoint at {path}{hint}")
    if not (path / MANIFEST).is_file() and (path / "best").exists():
        path = path / "best"
    if problem := check(path, state=False):
        raise SheenError(f"{path} is not a usable checkpoint: {problem}{instead(path)}")
    return path.resolve()


def nearest(path: Path) -> Path | None:
    """What there is instead of a missing path: the names most like its own; None where one of them
    is like no other.
    """
    found = Path(path.anchor)
    for part in path.relative_to(path.anchor).parts:
        if not (found / part).exists():
            names = [each.name for each in found.glob("*")]
            part = next(iter(get_close_matches(part, names, 1)), "")
        if not part:
            return None
        found /= part
    return found


def instead(path: Path) -> str:
    """The newest whole checkpoint beside a damaged one, for its message."""
    for other in reversed(listed(path.resolve().parent)):
        if other != path.resolve() and check(other, state=False) is None:
            return f"; {other} is whole"
    return ""
