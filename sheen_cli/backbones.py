"""Backbones: found through entry points without importing them, loaded one a process, checked
against the contract, and named where they fail.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import EntryPoint
from typing import Any

import pluggy

from sheen_cli import console, hookspecs, plugins
from sheen_cli.errors import DISK, SheenError
from sheen_cli.hookspecs import GROUP
from sheen_cli.plugins import points as points
from sheen_cli.recipe import Recipe, did_you_mean, find, override, read, validate
from sheen_cli.types import API, BackboneSpec

HOOKS = ("describe", "prepare", "collate", "load", "loss", "train", "synth")
OPTIONAL = ("export",)
LAZY = ("prepare", "synth")  # hooks whose work is done while their result is iterated
HOT = ("collate", "loss")  # called at every step, maybe by several threads at once


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


class Hooks:
    """A backbone's functions, called by keyword as `hooks.NAME(...)`.

    An exception from inside one gets a note that names hook, backbone, package and remedy, and
    keeps its traceback; so does one raised while the result of a lazy hook is iterated. What a
    hook prints goes to stderr: stdout is for the command's answer.
    """

    def __init__(self, relay: Any, point: EntryPoint) -> None:
        self._relay, self._point = relay, point

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self._relay, name)

        def guarded(**arguments: Any) -> Any:
            with self._blamed(name):
                result = call(**arguments)
            return self._iterated(name, result) if name in LAZY else result

        return guarded

    def _iterated(self, name: str, results: Iterable[Any]) -> Iterator[Any]:
        with self._blamed(name):
            iterator = iter(results)
        end = object()
        while True:
            with self._blamed(name):
                result = next(iterator, end)
            if result is end:
                return
            yield result

    @contextmanager
    def _blamed(self, name: str) -> Iterator[None]:
        try:
            with nullcontext() if name in HOT else redirect_stdout(sys.stderr):
                yield
        except SheenError:  # says all that the user needs
            raise
        except SystemExit as error:  # would end the command without a word
            failure = RuntimeError(f"hook {name}() ended the program: SystemExit({error.code!r})")
            failure.add_note(self._note(name))
            raise failure from error
        except Exception as error:
            # the innermost hook is at fault: `loss` runs inside `train`
            if not any(note.startswith(NOTE) for note in getattr(error, "__notes__", ())):
                error.add_note(self._note(name))
                if isinstance(error, OSError) and error.errno not in DISK:
                    console.error(self._note(name))  # the command shows such errors as one line
            raise

    def _note(self, name: str) -> str:
        package = plugins.package(self._point)
        return (
            f"{NOTE} {name}() of backbone '{self._point.name}', package {package} "
            f"{plugins.version(self._point)}. If it is at fault: {plugins.remedy(package)}"
        )


NOTE = "sheen: this happened in hook"


@cache
def load(name: str) -> Backbone:
    """Import one backbone and register it. Raises SheenError that names the package at fault and
    the remedy; with SHEEN_STRICT_PLUGINS=1 the original error.
    """
    points, broken = plugins.scan()
    matches = [point for point in points if point.name == name]
    if not matches:
        names = [point.name for point in points]
        raise SheenError(
            f"no backbone named '{name}'{did_you_mean(name, names)}; installed: "
            + "; ".join([", ".join(names) or "none", *map(str, broken)])
        )
    if len(matches) > 1:
        rivals = sorted({plugins.package(point) for point in matches})
        raise SheenError(
            f"backbone '{name}' is offered by {' and '.join(rivals)}; uninstall one of them, as "
            f"with `pip uninstall {rivals[0]}`"
        )
    point = matches[0]
    try:
        with plugins.watching(point), redirect_stdout(sys.stderr):
            return _register(point)
    except (Exception, SystemExit) as error:
        cause = " ".join(str(error).split()) or "no message"
        text = plugins.unusable(point, f"{type(error).__name__}: {cause}")
        if not plugins.strict():
            raise SheenError(text) from error
        if isinstance(error, (SystemExit, OSError, SheenError)):  # shown as less than a traceback
            raise RuntimeError(text) from error
        error.add_note(f"sheen: {text}")
        raise


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
    if bool(spec.exports) != bool(manager.hook.export.get_hookimpls()):
        raise TypeError("the hook export and BackboneSpec.exports go together: it has only one")
    return Backbone(point.name, plugins.package(point), Hooks(manager.hook, point), spec)


def resolve(recipe: str, settings: list[str]) -> tuple[Recipe[Any], Backbone]:
    """A recipe by name or path with overrides applied, and its backbone."""
    path = find(recipe)
    where = f"recipe '{recipe}'" + (" with the command line's settings" if settings else "")
    return described(override(read(path), settings), where)


def described(values: dict[str, Any], where: str) -> tuple[Recipe[Any], Backbone]:
    """A recipe, which lies at `where`, and its backbone as it is by this recipe: what it heeds and
    its rates may depend on it.
    """
    backbone = load(str(values["backbone"]))
    recipe: Recipe[Any] = validate(values, backbone.spec.options, where)
    return recipe, replace(backbone, spec=backbone.hook.describe(recipe=recipe))
