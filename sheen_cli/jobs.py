"""Set-up of a training run: data checked against the recipe, a run folder made or resumed, the
backbone's hook called.
"""

import platform
import time
from pathlib import Path
from typing import Any

from sheen_cli import __version__, checkpoints, console, hub, locks, mirror, rows
from sheen_cli.backbones import Backbone, load
from sheen_cli.errors import SheenError
from sheen_cli.files import (
    FORMAT,
    building,
    copy,
    digests,
    make,
    read_json,
    sha256,
    sweep,
    write_json,
)
from sheen_cli.prepare import differences, ensure, flat, prepared_by
from sheen_cli.recipe import Data, Recipe, read, save, validate
from sheen_cli.rows import Rows
from sheen_cli.splits import SPLITS

# What may change between a run and its resumption: where it ends, and what is only watched.
FREE = {
    "train.max_steps", "train.epochs", "train.max_minutes", "train.workers", "train.validate_every",
    "train.save_every", "train.save_state", "train.keep", "log.every", "log.samples",
    "log.sentences", "log.wandb", "log.project", "log.run_name", "hub.push_to", "hub.private",
    "hub.which", "hub.license",
    "synth.seed", "synth.greedy", "synth.max_seconds",
}  # fmt: skip
# What a folder may hold in which a run was killed before its run.json was there.
BEGUN = {locks.LOCK, "recipe.yaml", ".recipe.yaml.part", ".run.json.part"}
ARTIFACTS = "artifacts"
NAMES = {f"{name}.jsonl" for name in SPLITS}  # of the rows in a prepared folder


def train(recipe: Recipe[Any], backbone: Backbone, data: Path, out: Path, resume: bool) -> Path:
    """Train on the prepared folder `data` into the run folder `out`, which nobody else may write
    to meanwhile; returns the best checkpoint.
    """
    mirror.check(recipe.log.wandb)
    manifest = check_data(data, recipe, backbone)
    # the record says what the rows were made from, whatever the recipe names
    recipe = recipe.model_copy(update={"data": Data(**manifest["made_from"]["data"])})
    check_out(out)
    with locks.hold(out):
        start = begin(recipe, out, data, manifest, resume, backbone.spec.free)
        work(recipe, backbone, data, out, manifest, start)
        hub.push_trained(recipe, out)
    return out / "best"


def data_for(data: Path, dataset: str | None) -> tuple[Path, str | None]:
    """The folder of prepared data and the data set to make it from, where --data may be a file:
    rows that sheen prepared, or somebody's .jsonl, which is prepared in data/STEM.
    """
    if not data.exists() and data.suffix == ".jsonl":
        raise SheenError(f"--data {data}: no such file")
    if (data / "run.json").is_file():
        raise SheenError(f"--data {data} is a run, not prepared data; go on with it by --resume")
    if not data.is_file():
        return data, dataset
    if (data.parent / rows.MANIFEST).is_file() and data.name in NAMES:
        if data.name != "train.jsonl":
            raise SheenError(f"--data {data} is one part of {data.parent}; give that folder")
        return data.parent, dataset
    if dataset is not None:
        raise SheenError(f"--data {data} and --dataset {dataset}: one of them is the data")
    return Path("data") / data.stem, str(data)


def fitting(data: Path) -> str | None:
    """The recipe to train prepared data by where none is named; None where there is no data."""
    if not (data / rows.MANIFEST).is_file():
        return None
    recipe = load(rows.manifest(data)["backbone"]).spec.recipe
    console.say(f"no recipe was named; '{recipe}' fits the data")
    return recipe


def prepared(
    recipe: Recipe[Any],
    backbone: Backbone,
    data: Path,
    dataset: str | None,
    settings: list[str],
) -> None:
    """See that `data` holds prepared data: what lies there, unless the command line names a data
    set or nothing lies there but the recipe names one.
    """
    named = dataset is not None or any(each.startswith("data.dataset=") for each in settings)
    there = (data / rows.MANIFEST).is_file()
    if recipe.data.dataset is not None and (named or not there):
        ensure(recipe, backbone, data)
    elif settled := [each for each in settings if each.startswith("data.")]:
        raise SheenError(
            f"{settled[0]}: `sheen prepare` settles the data; train takes {data} as it is, unless "
            f"--dataset names what to prepare there"
        )


def work(
    recipe: Recipe[Any],
    backbone: Backbone,
    data: Path,
    out: Path,
    manifest: dict[str, Any],
    start: Path | None,
) -> None:
    """Call the backbone's hook on a run folder that is ours."""
    from sheen_cli import training

    parallel = training.accelerator(recipe.train)
    if parallel.is_main_process:
        sweep(out)
        if start is None:
            save(recipe, out / "recipe.yaml")
            write_json(out / "run.json", about(manifest, data))
        take_over(data / ARTIFACTS, out / ARTIFACTS, manifest)
    parallel.wait_for_everyone()
    validation = data / "validation.jsonl"
    run = training.Run(
        recipe=recipe,
        backbone=backbone,
        folder=out,
        artifacts=out / ARTIFACTS,
        rows=Rows(data / "train.jsonl", backbone.spec.codebooks),
        validation=Rows(validation, backbone.spec.codebooks) if validation.is_file() else None,
        resume=start,
        accelerator=parallel,
    )
    if run.validation is None and parallel.is_main_process:
        console.say("no validation rows: best will be the last checkpoint")
    training.seed(recipe)
    backbone.hook.train(recipe=recipe, run=run)


def take_over(source: Path, target: Path, manifest: dict[str, Any]) -> None:
    """Give the run its own copy of the artifacts, which go into every checkpoint: the data may be
    prepared anew, or removed, while it trains.
    """
    if target.is_dir() and digests(target) == manifest["artifacts"]:
        return
    with building(target) as part:
        copy(source, part)


def check_data(data: Path, recipe: Recipe[Any], backbone: Backbone) -> dict[str, Any]:
    """The manifest of prepared data that fits the recipe; refused before anything heavy is
    loaded.
    """
    manifest = rows.manifest(data)
    if manifest["backbone"] != backbone.name:
        raise SheenError(
            f"{data} was prepared for backbone '{manifest['backbone']}', the recipe's is "
            f"'{backbone.name}'; "
            "prepare it with this recipe, or train with one of that backbone"
        )
    changed = differences(manifest["made_from"]["model"], prepared_by(recipe, backbone))
    if changed:
        raise SheenError(
            f"{data} was prepared with other settings ({changed}); train with the recipe that made "
            f"it, or prepare it again with this one"
        )
    for name, facts in manifest["splits"].items():
        path = data / f"{name}.jsonl"
        if not path.is_file():
            raise SheenError(
                f"{path} is missing although {data / rows.MANIFEST} lists it; prepare the "
                f"data again"
            )
        if sha256(path) != facts["sha256"]:
            raise SheenError(f"{path} was changed since it was prepared; prepare the data again")
    if (found := digests(data / ARTIFACTS)) != manifest["artifacts"]:
        names = sorted({*found, *manifest["artifacts"]})
        wrong = next(n for n in names if found.get(n) != manifest["artifacts"].get(n))
        raise SheenError(
            f"{data / ARTIFACTS / wrong} was changed since it was prepared; prepare the data again"
        )
    if "train" not in manifest["splits"]:
        raise SheenError(f"{data} holds no training rows")
    return manifest


def check_out(out: Path) -> None:
    """Refuse a folder with anything but a run in it, before as much as a lock is left there."""
    if (out / "run.json").is_file() or not out.is_dir():
        return
    if not {path.name for path in out.iterdir()} <= BEGUN:
        raise SheenError(f"{out} is not empty and holds no run; choose another --out")


def data_of(out: Path) -> Path | None:
    """The folder that a run was trained on, if it is still there."""
    if not (out / "run.json").is_file():
        return None
    folder = Path(read_json(out / "run.json").get("data_folder", ""))
    return folder if folder.is_dir() else None


def begin(
    recipe: Recipe[Any],
    out: Path,
    data: Path,
    manifest: dict[str, Any],
    resume: bool,
    free: tuple[str, ...],
) -> Path | None:
    """Make the run folder, or find the checkpoint to go on from. Raises SheenError rather than
    mix two runs.
    """
    exists = (out / "run.json").is_file()
    if exists and not resume and checkpoints.listed(out):
        raise SheenError(
            f"{out} already holds a run; add --resume to go on with it, or choose another --out"
        )
    if not exists:
        if resume:
            console.say(f"nothing to resume in {out}: starting afresh")
        make(out)
        return None
    if not checkpoints.listed(out):
        console.say(f"{out} has no checkpoint yet: starting from step 0")
        (out / "metrics.jsonl").unlink(missing_ok=True)
        return None
    if read_json(out / "run.json")["data"] != fingerprint(manifest):
        raise SheenError(
            f"{out} was trained on other data than {data}; resume with the same --data, or choose "
            f"another --out"
        )
    before = validate(read(out / "recipe.yaml"), type(recipe.model), f"{out}/recipe.yaml")
    if changed := differences(*(fixed(each, free) for each in (before, recipe))):
        raise SheenError(
            f"{out} was begun with other settings ({changed}); resume with the same, or choose "
            f"another --out"
        )
    start = checkpoints.newest(out)
    if start is None:
        raise SheenError(f"every checkpoint in {out} is damaged; choose another --out")
    if not (start / checkpoints.STATE).is_dir():
        raise SheenError(
            f"{start} holds the model alone (train.save_state=false): there is nothing to go on "
            f"from; choose another --out"
        )
    console.say(f"resuming from {start}")
    return start


def fixed(recipe: Recipe[Any], free: tuple[str, ...]) -> dict[str, Any]:
    """The settings that a resumed run must share with its beginning, as section.key -> value: all
    but ours and the backbone's `free` ones.
    """
    settings = flat(recipe.model_dump(mode="json"))
    return {key: value for key, value in settings.items() if key not in {*FREE, *free}}


def fingerprint(manifest: dict[str, Any]) -> dict[str, Any]:
    """What identifies prepared data: the hashes of its rows and artifacts."""
    return {
        "rows": {name: facts["sha256"] for name, facts in manifest["splits"].items()},
        "artifacts": manifest["artifacts"],
    }


def about(manifest: dict[str, Any], data: Path) -> dict[str, Any]:
    """run.json: the data, its fingerprint, and the versions that made the run."""
    from importlib.metadata import version

    packages = ("torch", "transformers", "accelerate", "numpy", "soundfile", "soxr")
    return {
        "format": FORMAT,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "data": fingerprint(manifest),
        "data_folder": str(data.resolve()),
        "versions": {
            "sheen": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
    }
