"""Installed plugins: found without importing them, tried in a process of their own, and named with
package and remedy where they are broken.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import (
    Distribution,
    EntryPoint,
    MetadataPathFinder,
    PackageNotFoundError,
    distributions,
)
from importlib.metadata import distribution as find
from pathlib import Path
from threading import Timer
from typing import Any

from sheen_cli import console
from sheen_cli.errors import SheenError
from sheen_cli.hookspecs import GROUP
from sheen_cli.probe import Child, Died

SECONDS = 60.0  # that an import may take, where SHEEN_PLUGIN_TIMEOUT does not say otherwise


@dataclass(frozen=True)
class Broken:
    """A package whose metadata cannot be read, so that nobody knows what it offers."""

    distribution: str
    folder: Path
    cause: Exception

    @property
    def problem(self) -> str:
        cause = " ".join(str(self.cause).split())
        return (
            f"metadata of package {self.distribution} cannot be read "
            f"({type(self.cause).__name__}: {cause})"
        )

    @property
    def remedy(self) -> str:
        return (
            f"mend it with `pip install --force-reinstall {self.distribution}` or remove it: `pip "
            f"uninstall {self.distribution}`, or delete the folder {self.folder}"
        )

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}"


@dataclass(frozen=True)
class Listing:
    """One installed entry point; `error` says why it cannot be used. `name` is None where the
    package's metadata cannot be read.
    """

    name: str | None
    distribution: str
    version: str
    error: str | None = None


_hidden: dict[Path, Broken] = {}  # what `_hide` has taken out of importlib.metadata's sight


def scan() -> tuple[list[EntryPoint], list[Broken]]:
    """The entry points of all backbones, sorted by name, and the packages that cannot be read.

    Package by package, for `entry_points()` fails as a whole where one file is damaged. Of two
    copies of a package the first on the path counts, as there. With SHEEN_STRICT_PLUGINS=1 the
    first unreadable package raises its own error.
    """
    found: list[EntryPoint] = []
    broken = dict(_hidden)
    seen = {each.distribution for each in _hidden.values()}
    for package in distributions():
        name = _name(package)
        if name in seen:
            continue
        seen.add(name)
        try:
            found += _points(package)
        except Exception as error:
            folder = _folder(package) or Path(name)
            broken[folder] = Broken(name, folder, error)
    _hide(broken)
    if broken and strict():
        first = next(iter(broken.values()))
        first.cause.add_note(f"sheen: {first}")
        raise first.cause
    return sorted(found, key=lambda point: point.name), list(broken.values())


def _points(package: Distribution) -> list[EntryPoint]:
    points = [point for point in package.entry_points if point.group == GROUP]
    for point in points:
        try:
            _ = point.module
        except AttributeError:  # how importlib.metadata answers a value that is no module
            raise ValueError(f"entry point {point.name!r} names no module") from None
    if points and not (package.metadata["Name"] and package.metadata["Version"]):
        raise ValueError("METADATA is missing, or gives no Name or Version")
    return points


def _folder(package: Distribution) -> Path | None:
    path = getattr(package, "_path", None)  # no public name says where the metadata lies
    return Path(str(path)) if path is not None else None


def _name(package: Distribution) -> str:
    """The normalized name; from the folder where there is one, since METADATA may be damaged."""
    folder = _folder(package)
    name = folder.stem.partition("-")[0] if folder else package.metadata["Name"] or "unknown"
    return re.sub(r"[-_.]+", "-", name).lower()


def _hide(broken: dict[Path, Broken]) -> None:
    """Keep unreadable packages from everybody else in this process: `import torch` and `import
    transformers` read the metadata of all packages, too, and would fail with them.
    """
    if broken.keys() <= _hidden.keys():
        return
    _hidden.update(broken)
    find: Any = MetadataPathFinder.find_distributions

    def readable(*arguments: Any, **keywords: Any) -> Iterator[Distribution]:
        return (each for each in find(*arguments, **keywords) if _folder(each) not in _hidden)

    MetadataPathFinder.find_distributions = readable  # type: ignore[assignment,method-assign]


def points() -> list[EntryPoint]:
    """The entry points of all installed backbones whose metadata can be read, sorted by name."""
    return scan()[0]


def package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "unknown"


def version(point: EntryPoint) -> str:
    return point.dist.version if point.dist else "?"


def strict() -> bool:
    """Whether the user wants a broken plugin to end the command, with its own traceback."""
    return os.environ.get("SHEEN_STRICT_PLUGINS", "0") not in ("", "0")


def patience() -> float | None:
    """Seconds that a plugin may take to import, from SHEEN_PLUGIN_TIMEOUT; None for 0, no limit.

    Raises SheenError for anything but such a number.
    """
    text = os.environ.get("SHEEN_PLUGIN_TIMEOUT") or str(SECONDS)
    if not re.fullmatch(r"\d{1,6}(\.\d*)?", text):
        raise SheenError(f"SHEEN_PLUGIN_TIMEOUT={text}: give seconds, as 60; 0 for no limit")
    return float(text) or None


def remedy(distribution: str) -> str:
    """The way out of a broken package; one under development is mended where it lies."""
    if folder := developed(distribution):
        return f"mend it in {folder}; SHEEN_STRICT_PLUGINS=1 shows where it fails"
    return (
        f"mend it with `pip install --upgrade {distribution}` or remove it with "
        f"`pip uninstall {distribution}`"
    )


def developed(distribution: str) -> str | None:
    """The folder that an editable installation leads to."""
    try:
        facts = json.loads(find(distribution).read_text("direct_url.json") or "{}")
        editable = facts.get("dir_info", {}).get("editable", False)
        return str(facts["url"]).removeprefix("file://") if editable else None
    except (PackageNotFoundError, ValueError, KeyError, OSError):
        return None


def unusable(point: EntryPoint, cause: str) -> str:
    """The sentence that names a broken plugin, what is wrong and what to do."""
    where = f"backbone '{point.name}' of package {package(point)} {version(point)}"
    return f"{where} cannot be used: {cause}; {remedy(package(point))}"


@contextmanager
def watching(point: EntryPoint) -> Iterator[None]:
    """Say on stderr which plugin is at fault if the block takes longer than `patience()`."""
    seconds = patience()
    if seconds is None:
        yield
        return
    text = (
        f"still importing backbone '{point.name}' of package {package(point)} after "
        f"{seconds:g} s (SHEEN_PLUGIN_TIMEOUT); if it never ends, stop with Ctrl-C and "
        f"{remedy(package(point))}"
    )
    timer = Timer(seconds, console.error, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def listing() -> list[Listing]:
    """Every installed backbone, imported on trial in another process, so that a broken one costs
    only its own line. With SHEEN_STRICT_PLUGINS=1 the first broken one raises instead.
    """
    found, broken = scan()
    errors = attempt(found)
    rows = [
        Listing(point.name, package(point), version(point), errors[point.name]) for point in found
    ]
    return rows + [Listing(None, each.distribution, "?", str(each)) for each in broken]


def attempt(points: list[EntryPoint]) -> dict[str, str | None]:
    """Import backbones one after the other in a child process: name -> what is wrong, or None.

    One that hangs or takes the process down is named, and a new child goes on with the rest.
    """
    seconds = patience()
    errors: dict[str, str | None] = {}
    left = {point.name: point for point in points}
    while left:
        with Child("load", *left) as child:
            while left:
                name = next(iter(left))
                point = left.pop(name)
                try:
                    errors[name] = child.answer(seconds)["error"]
                except Died as error:
                    errors[name] = unusable(point, f"its import {error}")
                    if strict():
                        raise RuntimeError(errors[name]) from error
                    break
                if errors[name] and strict():
                    from sheen_cli.backbones import load

                    load(name)  # raises the original error, with its traceback
                    raise RuntimeError(errors[name])
    return errors
