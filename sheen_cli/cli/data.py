"""`sheen prepare` and `sheen info`: data sets into rows, and what lies in a folder."""

import json
from pathlib import Path
from typing import Annotated

import typer

from sheen_cli import console
from sheen_cli.cli.options import (
    DEFAULT,
    Json,
    Overwrite,
    RecipeName,
    Settings,
    Speaker,
    flagged,
    switch,
)
from sheen_cli.errors import SheenError

Dataset = Annotated[
    str | None,
    typer.Option(help="A folder or file, USER/NAME on the Hub, or an embedded data set."),
]
Out = Annotated[Path, typer.Option(help="Where the rows go.")]
Split = Annotated[str | None, typer.Option(help="Read this split of the source alone.")]
Columns = Annotated[
    list[str] | None,
    typer.Option(metavar="OURS=THEIRS", help="A column by another name, as text=sentence."),
]
Language = Annotated[str | None, typer.Option(help="Of rows that name none.")]
Ref = Annotated[
    Path | None, typer.Option(help="A recording of the voice, for rows that bring none.")
]
RefText = Annotated[str | None, typer.Option(help="What is said there.")]
MaxSamples = Annotated[int | None, typer.Option(min=1, help="Read no more good clips than this.")]
MaxHours = Annotated[float | None, typer.Option(help="Read no more clips once so much is good.")]
KeepAudio = Annotated[bool | None, switch("keep-audio", "Write each clip as WAV, too.")]


def prepare(
    settings: Settings = None,
    dataset: Dataset = None,
    recipe: RecipeName = None,
    out: Out = Path("data"),
    split: Split = None,
    columns: Columns = None,
    language: Language = None,
    speaker: Speaker = None,
    ref: Ref = None,
    ref_text: RefText = None,
    max_samples: MaxSamples = None,
    max_hours: MaxHours = None,
    keep_audio: KeepAudio = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Turn a data set into training rows.

    Bad clips are named in rejected.jsonl and left out.
    """
    from sheen_cli.backbones import resolve
    from sheen_cli.prepare import prepare as run
    from sheen_cli.rejects import outcome

    given = {
        "dataset": dataset,
        "split": split,
        "language": language,
        "speaker": speaker,
        "ref_audio": str(ref) if ref else None,
        "ref_text": ref_text,
        "max_samples": max_samples,
        "max_hours": max_hours,
        "keep_audio": keep_audio,
        **renamed(columns or []),
    }
    flags = flagged({f"data.{key}": value for key, value in given.items()})
    resolved, backbone = resolve(recipe or DEFAULT, flags + (settings or []))
    if dataset is None and resolved.data.dataset is not None:
        console.say(f"no --dataset was given: preparing {resolved.data.dataset}")
    manifest = run(resolved, backbone, out, overwrite)
    if as_json:
        return console.result(json.dumps(manifest))
    for name, facts in manifest["splits"].items():
        console.result(f"{out / name}.jsonl  {facts['rows']} rows, {facts['hours']:.3f} h")
    console.result(outcome(manifest, out))


def renamed(columns: list[str]) -> dict[str, str]:
    """`--columns` as recipe settings: each OURS=THEIRS, or several with commas between."""
    found = {}
    for part in ",".join(columns).split(",") if columns else []:
        ours, equals, theirs = part.partition("=")
        if not (equals and ours.strip() and theirs.strip()):
            raise SheenError(f"--columns {part}: give ours=theirs, as --columns text=sentence")
        found[f"columns.{ours.strip()}"] = theirs.strip()
    return found


def info(
    path: Annotated[Path, typer.Argument(help="A .jsonl, a data folder, a run or a checkpoint.")],
    as_json: Json = False,
) -> None:
    """Say what a file, run or checkpoint holds."""
    from sheen_cli.info import describe, lines

    facts = describe(path)
    console.result(json.dumps(facts) if as_json else "\n".join(lines(facts)))
