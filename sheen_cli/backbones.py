"""Backbones: found through entry points without importing them, loaded one a process, checked
against the contract.
"""

from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from sheen_cli import hookspecs
from sheen_cli.errors import SheenError
from sheen_cli.hookspecs import GROUP
from sheen_cli.recipe import Recipe, did_you_mean, find, override, read, validate
from sheen_cli.types import API, BackboneSpec

HOOKS = ("describe", "prepare", "collate", "load", "loss", "train", "synth")


@dataclass(frozen=True)
class Backbone:
    """A loaded backbone: `hook.NAME(...)` calls its functions by keyword, `spec` is what it says
    of itself.
    """

    name: str
    distribution: str
    hook: Any
    spec: BackboneSpec

    def __reduce__(self) -> tuple[Any, ...]:
        return load, (self.name,)  # a worker process loads its own


@dataclass(frozen=True)
class Listing:
    """One installed entry point; `error` says why it cannot be used."""

    name: str
    distribution: str
    version: str
    error: str | None = None


def points() -> list[EntryPoint]:
    return sorted(entry_points(group=GROUP), key=lambda point: point.name)


@cache
def load(name: str) -> Backbone:
    """Import one backbone and register it. Raises SheenError that names the package at fault and
    the remedy.
    """
    matches = [point for point in points() if point.name == name]
    if not matches:
        names = [point.name for point in points()]
        raise SheenError(
            f"no backbone named '{name}'{did_you_mean(name, names)}; installed: "
            f"{', '.join(names) or 'none'}"
        )
    if len(matches) > 1:
        rivals = " and ".join(sorted(distribution(point) for point in matches))
        raise SheenError(f"backbone '{name}' is offered by {rivals}; uninstall one of them")
    try:
        return _register(matches[0])
    except (Exception, SystemExit) as error:
        package = distribution(matches[0])
        cause = " ".join(str(error).split()) or "no message"
        raise SheenError(
            f"backbone '{name}' of package {package} cannot be used: "
            f"{type(error).__name__}: {cause}; "
            f"mend it with `pip install --upgrade {package}` or remove it with `pip "
            f"uninstall {package}`"
        ) from error


def _register(point: EntryPoint) -> Backbone:
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    manager.register(point.load(), name=point.name)
    manager.check_pending()
    missing = [hook for hook in HOOKS if not getattr(manager.hook, hook).get_hookimpls()]
    if missing:
        raise TypeError(f"it lacks the hooks {', '.join(missing)}")
    spec = manager.hook.describe(recipe=None)
    if not isinstance(spec, BackboneSpec):
        raise TypeError(f"describe() returned {type(spec).__name__}, not a BackboneSpec")
    if spec.api != API:
        raise TypeError(f"it is written for hook API {spec.api}, this sheen has {API}")
    return Backbone(point.name, distribution(point), manager.hook, spec)


def distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "unknown"


def listing() -> list[Listing]:
    """Every installed backbone, loaded to see whether it works; a broken one costs only its own
    line.
    """
    rows = []
    for point in points():
        version = point.dist.version if point.dist else "?"
        try:
            load(point.name)
            rows.append(Listing(point.name, distribution(point), version))
        except SheenError as error:
            rows.append(Listing(point.name, distribution(point), version, str(error)))
    return rows


def resolve(recipe: str, settings: list[str]) -> tuple[Recipe[Any], Backbone]:
    """A recipe by name or path with overrides applied, and its backbone."""
    path = find(recipe)
    values = override(read(path), settings)
    backbone = load(str(values["backbone"]))
    where = f"recipe '{recipe}'" + (" with the command line's settings" if settings else "")
    resolved = validate(values, backbone.spec.options, where)
    return resolved, replace(backbone, spec=backbone.hook.describe(recipe=resolved))
