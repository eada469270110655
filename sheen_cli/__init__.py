"""sheen: fine-tune speech language models. The names below are the public interface; they load on
first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sheen_cli import audio
    from sheen_cli.audio import Rejected as Rejected
    from sheen_cli.console import say as say
    from sheen_cli.console import warn as warn
    from sheen_cli.errors import SheenError as SheenError
    from sheen_cli.files import remove as remove
    from sheen_cli.files import replacing as replacing
    from sheen_cli.hookspecs import hookimpl as hookimpl
    from sheen_cli.optimization import Group as Group
    from sheen_cli.recipe import Recipe as Recipe
    from sheen_cli.recipe import Section as Section
    from sheen_cli.sources.hub import HubSet as HubSet
    from sheen_cli.training import Run as Run
    from sheen_cli.types import Audio as Audio
    from sheen_cli.types import BackboneSpec as BackboneSpec
    from sheen_cli.types import Batch as Batch
    from sheen_cli.types import Clip as Clip
    from sheen_cli.types import Corpus as Corpus
    from sheen_cli.types import Entry as Entry
    from sheen_cli.types import Filled as Filled
    from sheen_cli.types import Loss as Loss
    from sheen_cli.types import Measured as Measured
    from sheen_cli.types import Reference as Reference
    from sheen_cli.types import Request as Request
    from sheen_cli.types import Row as Row
    from sheen_cli.types import Skip as Skip
    from sheen_cli.types import Term as Term

    load_audio = audio.load

__version__ = "0.1.0"

_HOME = {
    "SheenError": "errors",
    "say": "console",
    "warn": "console",
    "load_audio": "audio:load",
    "Rejected": "audio",
    "hookimpl": "hookspecs",
    "remove": "files",
    "replacing": "files",
    "HubSet": "sources.hub",
    "Recipe": "recipe",
    "Section": "recipe",
    "Group": "optimization",
    "Run": "training",
    **dict.fromkeys(
        (
            "Audio",
            "BackboneSpec",
            "Batch",
            "Clip",
            "Corpus",
            "Entry",
            "Filled",
            "Loss",
            "Measured",
            "Reference",
            "Request",
            "Row",
            "Skip",
            "Term",
        ),
        "types",
    ),
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'sheen_cli' has no attribute {name!r}")
    module, _, attribute = _HOME[name].partition(":")
    return getattr(import_module(f"sheen_cli.{module}"), attribute or name)
