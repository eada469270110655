"""What is meant by the model that `sheen synth` is given: a checkpoint of ours, a run, or a base
model that was not trained here, as a folder or on the Hub.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sheen_cli import checkpoints, console
from sheen_cli.errors import SheenError
from sheen_cli.logins import scrub, values

RECIPE = "recipe.yaml"


@dataclass(frozen=True)
class Base:
    """A folder or Hub id that a backbone reads as its recipe's `model.base`."""

    place: str
    recipe: str


def chosen(
    arguments: Sequence[str], recipe: str | None, default: str
) -> tuple[Path | Base, list[str]]:
    """The model that is named, or the newest run's best, and the recipe settings; a base is read by
    `recipe`, or else by `default`. Raises SheenError for more than one, or for none.
    """
    settings = [each for each in arguments if "=" in each and not Path(each).exists()]
    named = [each for each in arguments if each not in settings]
    if len(named) > 1:
        raise SheenError(f"one checkpoint speaks at a time, not {', '.join(named)}")
    place = found(named[0]) if named else newest_run(Path("runs"))
    if isinstance(place, str):
        return Base(place, recipe or exported(place) or default), settings
    if recipe is not None:
        raise SheenError(f"--recipe is for a base model; {place} holds the recipe it was made by")
    return place, settings


def exported(place: str) -> str | None:
    """The recipe of the backbone that an export of ours is of; None for another folder."""
    from sheen_cli.backbones import load
    from sheen_cli.exporting import MANIFEST
    from sheen_cli.files import read_json

    path = Path(place) / MANIFEST
    if not path.is_file():
        return None
    recipe = load(read_json(path)["backbone"]).spec.recipe
    console.say(f"reading {place} by '{recipe}'; --recipe names another")
    return recipe


def found(name: str) -> Path | str:
    """The path of a checkpoint or run, here or downloaded, or the name of a base model."""
    path = Path(name)
    if path.exists():
        if ours(path):
            return path
        if (path / "config.json").is_file():
            return name
        inner = ", ".join(sorted(str(each.parent) for each in path.glob("*/config.json")))
        raise SheenError(
            f"{name} holds no model: neither a checkpoint ({checkpoints.MANIFEST}), nor a run "
            f"(best), nor a base model (config.json)" + (f"; these do: {inner}" if inner else "")
        )
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) or path.parent.is_dir():
        return path  # whose absence is said along with what lies near it
    if near := checkpoints.nearest(path):
        console.say(f"{name} is no folder here; did you mean {near}? Asking the Hub for it")
    return pulled(name) or name


def ours(path: Path) -> bool:
    """Whether sheen wrote a folder, damaged or not."""
    names = (checkpoints.MANIFEST, RECIPE, "run.json", "best")
    return any((path / name).exists() for name in names) or bool(checkpoints.listed(path))


def pulled(name: str) -> Path | None:
    """The folder of a checkpoint on the Hub, downloaded once; None where the repository is none of
    ours, or nothing can be downloaded now.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        RepositoryNotFoundError,
    )

    try:
        # asks once; `hf_hub_download` asks a Hub that is away for half a minute
        folder = snapshot_download(name, allow_patterns=RECIPE)
        return Path(snapshot_download(name)) if Path(folder, RECIPE).is_file() else None
    except EntryNotFoundError:  # also where it is not on this machine and the Hub is out of reach
        return None
    except RepositoryNotFoundError:
        raise SheenError(
            f"{name} is no folder here, and the Hub shows no such model; for a private one log in "
            f"with `hf auth login`"
        ) from None
    except HfHubHTTPError as error:
        said = scrub(" ".join(str(error).split()), values())
        raise SheenError(f"{name} cannot be downloaded: {said}") from None


def newest_run(runs: Path) -> Path:
    """The best checkpoint of the run that was saved last. Raises SheenError where there is none."""
    best = [path for path in runs.glob("*/best") if not path.parent.name.startswith(".")]
    best.sort(key=lambda path: path.stat().st_mtime)
    if not best:
        raise SheenError(
            f"no checkpoint was named and {runs}/ holds no run; train one, or name a "
            f"checkpoint folder"
        )
    console.say(f"speaking with {best[-1]}, the newest run's best")
    return best[-1]
