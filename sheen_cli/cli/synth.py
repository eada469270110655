"""`sheen synth`: sentences spoken into WAV files."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from sheen_cli import console
from sheen_cli.cli.options import DEFAULT, Json, switch
from sheen_cli.errors import SheenError

Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[MODEL] [KEY=VALUE]...",
        help="A checkpoint, run or base model, here or on the Hub (by default the newest run's "
        "best), and recipe settings.",
    ),
]
Text = Annotated[list[str] | None, typer.Option(help="What to say; may be repeated.")]
TextFile = Annotated[Path | None, typer.Option(help="A file with a sentence a line.")]
Recipe = Annotated[str | None, typer.Option(help=f"The recipe to read a base model by; {DEFAULT}.")]
Out = Annotated[
    Path, typer.Option("-o", "--out", help="The WAV file; numbered for several sentences.")
]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of the sampling.")]
Greedy = Annotated[bool | None, switch("greedy", "Take the likeliest code, or sample.")]
Speaker = Annotated[str | None, typer.Option(help="A voice that the model knows.")]
Language = Annotated[str | None, typer.Option(help="Of the text; auto if not given.")]
Instruct = Annotated[str | None, typer.Option(help="How to say it.")]
Ref = Annotated[Path | None, typer.Option(help="A recording of the voice to clone.")]
RefText = Annotated[
    str | None, typer.Option(help="What is said there; else a .txt beside it is read.")
]
Icl = Annotated[bool | None, switch("icl", "Go on from the reference, or take its voice alone.")]
XVector = Annotated[bool | None, switch("x-vector", "Take the reference's voice, or go on.")]
MaxSeconds = Annotated[
    float | None, typer.Option(min=0.1, help="The longest that a sentence may take.")
]
Retries = Annotated[
    int | None, typer.Option(min=0, help="Other seeds to try where a sentence finds no end.")
]
Strict = Annotated[bool, switch("strict", "Exit code 1 if one is cut off or silent.")]


def synth(
    arguments: Arguments = None,
    text: Text = None,
    text_file: TextFile = None,
    recipe: Recipe = None,
    out: Out = Path("out.wav"),
    seed: Seed = None,
    greedy: Greedy = None,
    speaker: Speaker = None,
    language: Language = None,
    instruct: Instruct = None,
    ref: Ref = None,
    ref_text: RefText = None,
    icl: Icl = None,
    x_vector: XVector = None,
    max_seconds: MaxSeconds = None,
    retries: Retries = None,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Speak with a checkpoint, or with a base model.

    Without --text, it says a sentence for each line of standard input.
    """
    from sheen_cli import places, reference, synthesis

    sentences = synthesis.texts(text, text_file, None if text or text_file else piped())
    paths = synthesis.numbered(out, len(sentences))
    recording = reference.read(ref, ref_text, reference.in_context(icl, x_vector))
    if recording and speaker:
        raise SheenError(f"--ref and --speaker {speaker} are two voices: give one of them")
    synthesis.check_greedy(greedy, arguments or [])
    voice = synthesis.Voice(*places.chosen(arguments or [], recipe, DEFAULT))
    heard = recording.at(voice.backbone.spec.sample_rate) if recording else None
    manner = {"speaker": speaker, "language": language, "instruct": instruct, "reference": heard}
    requests = synthesis.asked(voice, sentences, manner, seed, greedy, max_seconds)
    retries = voice.recipe.synth.retries if retries is None else retries
    report = synthesis.write(voice, requests, paths, retries)
    for facts in report:
        console.result(json.dumps(facts) if as_json else synthesis.line(facts))
    if not synthesis.judge(report, strict):
        raise typer.Exit(1)


def piped() -> str | None:
    """Standard input, unless that is a terminal."""
    return None if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
