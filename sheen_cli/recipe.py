"""Recipes: typed settings of a job, from YAML and `key=value`, with all that is wrong said at once.

Order: defaults < YAML < command line. No includes, no interpolation; unknown keys are refused.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from sheen_cli.errors import SheenError
from sheen_cli.files import write_text
from sheen_cli.plugins import points, scan, strict

scan()  # hides damaged packages; pydantic reads all packages' metadata when a class is made


# of the Hub's repositories: letters, digits, and within - _ . but never two dots or dashes
REPOSITORY = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9][\w-]{0,94}/\w(?:[\w.-]{0,94}\w)?", re.ASCII)


class Section(BaseModel):
    """A group of recipe keys: frozen, unknown keys refused, every default checked."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )


Column = Literal[
    "audio", "text", "speaker", "language", "split", "audio_codes", "ref_audio", "ref_text"
]


class Data(Section):
    """Which utterances, and how they are split."""

    dataset: str | None = None  # a folder, a file, USER/NAME on the Hub, or what is embedded
    config: str | None = None  # of a Hub data set that has several
    revision: str | None = None  # of a Hub data set: a branch, a tag or a commit
    split: str | None = None  # read this one alone; it is then split as others without splits are
    columns: dict[Column, str] = {}  # ours -> theirs, as {text: sentence}
    language: str | None = None  # for rows that name none
    speaker: str | None = None  # for rows that name none
    ref_audio: str | None = None  # a recording of the voice, for rows that bring none
    ref_text: str | None = None  # what is said there
    max_samples: PositiveInt | None = None
    max_hours: PositiveFloat | None = None  # read no more clips once so much is good
    keep_audio: bool = False  # write each clip as WAV at the backbone's rate
    min_seconds: float = Field(0.2, ge=0)
    max_seconds: PositiveFloat = 30.0
    validation: float = Field(
        0.05, ge=0, lt=1
    )  # share of rows, where the source has no split of its own
    split_by: Literal["text", "speaker"] = "text"  # rows equal in this never stand on both sides
    seed: int = 42

    @model_validator(mode="after")
    def _words_of_something(self) -> "Data":
        if self.ref_text is not None and self.ref_audio is None:
            raise ValueError("ref_text belongs to a recording: give it with ref_audio (--ref)")
        return self


class Train(Section):
    """The optimisation. It ends with the first of max_steps, epochs and max_minutes to be
    reached.
    """

    max_steps: PositiveInt | None = None  # optimizer steps
    epochs: PositiveInt | None = None
    max_minutes: PositiveFloat | None = None  # wall clock, the learning-rate schedule included
    learning_rate: PositiveFloat = 2e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    floor: float = Field(0.0, ge=0, le=1)  # the schedule's end, as a share of learning_rate
    warmup_steps: int = Field(
        100, ge=0
    )  # at most a tenth of the steps, where their number is known
    weight_decay: float = Field(0.01, ge=0)  # of matrices; never of norms, biases and embeddings
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    clip_norm: PositiveFloat | None = 1.0
    batch_size: PositiveInt = 4  # rows of one forward pass, per process
    accumulate: PositiveInt = 1  # forward passes of one optimizer step
    bucket: PositiveInt = (
        50  # optimizer steps whose rows are sorted by length together; 1: no sorting
    )
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    weights: Literal["fp32", "bf16"] = "fp32"  # that are trained; bf16: in two halves of 16 bits
    threads: PositiveInt | Literal["auto"] | None = (
        None  # CPU threads; auto: time a few and take the fastest
    )
    workers: int = Field(0, ge=0)  # processes that read and collate
    validate_every: PositiveInt = 500  # steps
    save_every: PositiveInt = 500  # steps
    save_epochs: bool = False  # the end of each epoch is saved, too, and stays as epoch-N
    save_state: bool = True  # a checkpoint has what a resumed run needs; false: the model alone
    keep: PositiveInt = 2  # newest checkpoints that stay, besides the best
    seed: int = 42

    @model_validator(mode="after")
    def _ends(self) -> "Train":
        if self.max_steps is None and self.epochs is None and self.max_minutes is None:
            raise ValueError("nothing ends the training: set max_steps, epochs or max_minutes")
        if self.weights == "bf16" and self.precision != "bf16":
            raise ValueError("weights=bf16 computes in bf16: set precision=bf16, or weights=fp32")
        return self


class Synth(Section):
    """Defaults of `sheen synth`."""

    seed: int = 0
    greedy: bool = False  # take the likeliest code every time, without sampling
    max_seconds: PositiveFloat | None = None  # None: a cap from the text's length
    retries: int = Field(2, ge=0)  # with other seeds, of a sentence that found no end by that cap


class Log(Section):
    """What is told of a training while it runs."""

    every: PositiveInt = 10  # steps between lines of metrics.jsonl
    samples: int = Field(2, ge=0)  # texts of validation rows that are spoken at every validation
    sentences: tuple[str, ...] = ()  # to speak instead of them
    wandb: bool = False  # send the log and the samples to W&B, too
    project: str = Field("sheen", min_length=1)  # there
    run_name: str | None = None  # there; None: the run folder's


class Hub(Section):
    """Where the trained model is uploaded to."""

    push_to: str | None = None  # a repository USER/NAME; None: nowhere
    private: bool = True
    which: Literal["best", "last"] = "best"
    license: str | None = Field(
        None, pattern=r"^[a-z0-9][a-z0-9.-]*$"
    )  # for the card, as cc-by-4.0

    @field_validator("push_to")
    @classmethod
    def _named(cls, name: str | None) -> str | None:
        if name is not None and not REPOSITORY.fullmatch(name):
            raise ValueError("a Hub repository is named USER/NAME")
        return name


Options = TypeVar("Options", bound=Section)


class Recipe(Section, Generic[Options]):
    """All settings of a job; `model` is the backbone's own section."""

    backbone: str
    data: Data = Data()
    train: Train = Train(epochs=3)
    synth: Synth = Synth()
    log: Log = Log()
    hub: Hub = Hub()
    model: Options


@dataclass(frozen=True)
class Named:
    """A recipe file that `--recipe NAME` finds."""

    name: str
    path: Path
    backbone: str
    about: str  # the first line of its header comment


def folders() -> Iterator[Path]:
    """Where recipes lie: sheen's own, in the wheel or the checkout, then each plugin package's
    `recipes/`.
    """
    package = Path(__file__).parent
    yield package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"
    for top in sorted({point.module.partition(".")[0] for point in points()}):
        try:
            spec = find_spec(top)  # finds a top-level package without importing it
        except (ImportError, ValueError):
            continue  # loading the backbone, which has no recipes then, says what is wrong
        for place in (spec.submodule_search_locations or []) if spec else []:
            yield Path(place) / "recipes"


def shipped() -> list[Named]:
    """Every recipe that can be named, sorted; the first of two with one name wins."""
    found: dict[str, Named] = {}
    for folder in folders():
        for path in sorted(folder.glob("*.yaml")):
            try:
                backbone = read(path)["backbone"]
                first = path.read_text("utf-8").partition("\n")[0]
                about = first.lstrip("# ") if first.startswith("#") else ""
            except SheenError as error:  # costs its own line alone
                if strict():
                    raise _original(error) from None
                backbone, about = "?", str(error)
            found.setdefault(path.stem, Named(path.stem, path, backbone, about))
    return [found[name] for name in sorted(found)]


def _original(error: SheenError) -> BaseException:
    """What a SheenError was made from, for those who want the traceback."""
    original = error.__cause__ or RuntimeError(str(error))
    original.add_note(f"sheen: {error}")
    return original


def find(name: str) -> Path:
    """The file of a recipe given by name or path."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name)
        if not path.is_file():
            near = did_you_mean(path.name, [file.name for file in path.parent.glob("*.y*ml")])
            raise SheenError(f"no recipe file {name}{near}")
        return path
    for folder in folders():
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    names = [recipe.name for recipe in shipped()]
    text = f"no recipe named '{name}'{did_you_mean(name, names)}; `sheen recipes list` shows all"
    raise SheenError("; ".join([text, *map(str, scan()[1])]))


def read(path: Path) -> dict[str, Any]:
    """A recipe file as plain values; only its form is checked here."""
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        problem = "cannot be read" if isinstance(error, OSError) else "not YAML"
        raise SheenError(f"{path}: {problem}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or not isinstance(values.get("backbone"), str):
        raise SheenError(f"{path}: a recipe is a mapping with at least `backbone: NAME`")
    return values


def override(values: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Apply `section.key=value` settings in order; values are read as YAML. Raises SheenError on
    another form.
    """
    result = {
        key: dict(value) if isinstance(value, dict) else value for key, value in values.items()
    }
    for setting in settings:
        path, equals, text = setting.partition("=")
        keys = path.split(".")
        if not equals or not all(keys):
            raise SheenError(f"'{setting}' is not section.key=value, as in train.max_steps=100")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        inner = result
        for key in keys[:-1]:
            if not isinstance(inner.get(key), dict):
                inner[key] = {}
            inner = inner[key]
        inner[keys[-1]] = value
    return result


def validate(values: Mapping[str, Any], options: type[Section], where: str) -> Recipe[Any]:
    """Check values against the sections and the backbone's options; all errors in one
    SheenError.
    """
    try:
        model: type[Recipe[Any]] = Recipe[options]  # type: ignore[valid-type]
        return model.model_validate({"model": {}, **values})
    except ValidationError as error:
        # a value that may be of several kinds is complained of once a kind: one line is enough
        lines = list(
            {_path(detail): _explain(detail, options) for detail in error.errors()}.values()
        )
        raise SheenError(
            "\n  ".join([f"{where} has {len(lines)} error{'s'[: len(lines) > 1]}:", *lines])
        ) from None


def _path(detail: Any) -> tuple[str, ...]:
    """Where in the recipe an error is, without pydantic's names for the kinds of a union."""
    return tuple(part for part in map(str, detail["loc"]) if re.fullmatch(r"\w+", part))


def _explain(detail: Any, options: type[Section]) -> str:
    path = _path(detail)
    if detail["type"] != "extra_forbidden":
        reason = detail["msg"].removeprefix("Value error, ")
        given = "" if isinstance(detail["input"], dict) else f" (given: {detail['input']!r})"
        return f"{'.'.join(path)}: {reason}{given}"
    section: Any = Recipe
    for part in path[:-1]:
        section = options if section is Recipe and part == "model" else _inner(section, part)
    near = did_you_mean(path[-1], section.model_fields if section else ())
    if len(path) <= 2:
        near = near or _elsewhere(path[-1], options)
    return f"{'.'.join(path)}: unknown key{near}"


def _inner(section: Any, key: str) -> Any:
    """The section behind a key, or of a list's entries; None where there is none."""
    if section is None or key.isdigit():
        return section
    kind = section.model_fields[key].annotation if key in section.model_fields else None
    for each in (kind, *get_args(kind)):
        if isinstance(each, type) and issubclass(each, BaseModel):
            return each
    return None


def _elsewhere(key: str, options: type[Section]) -> str:
    """The nearest name for a key that was put into the wrong section, or into none."""
    sections: dict[str, Any] = {"model": options, "data": Data, "train": Train, "synth": Synth}
    homes = {
        inner: f"{name}.{inner}"
        for name, section in {**sections, "log": Log, "hub": Hub}.items()
        for inner in section.model_fields
    }
    close = get_close_matches(key, homes, 1)
    return f"; did you mean '{homes[close[0]]}'?" if close else ""


def did_you_mean(name: str, known: Any) -> str:
    close = get_close_matches(name, list(known), 1)
    return f"; did you mean '{close[0]}'?" if close else ""


def dump(recipe: Recipe[Any]) -> str:
    """The resolved recipe as YAML that `--recipe FILE` reads back to the same settings."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def save(recipe: Recipe[Any], path: Path) -> None:
    write_text(path, dump(recipe))
