"""The command line: one short function a command. Heavy imports live inside the functions, so
that help is quick.
"""

import json
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sheen_cli import __version__, console
from sheen_cli.errors import DISK, SheenError


class Commands(TyperGroup):
    """The group that turns a SheenError of any command into one line and its exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SheenError as error:
            console.error(f"error: {error}")
            ctx.exit(error.code)
        except BrokenPipeError:
            raise  # the reader of our output has seen enough; typer ends quietly
        except OSError as error:  # a full disk, a folder where a file should be, no permission
            console.error(f"error: {error.filename or ''}: {error.strerror or error}")
            ctx.exit(5 if error.errno in DISK else 2)
        except KeyboardInterrupt:
            more = " (--resume goes on from the run's last checkpoint)"
            training = ctx.invoked_subcommand == "train"
            console.say(f"stopped; what was finished is kept{more if training else ''}")
            ctx.exit(130)


app = typer.Typer(
    cls=Commands,
    help="Fine-tune speech language models: prepare data, train, speak, look inside.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipes_app = typer.Typer(
    help="The recipes that --recipe can name.", no_args_is_help=True, rich_markup_mode=None
)
plugins_app = typer.Typer(
    help="The installed backbones.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(recipes_app, name="recipes")
app.add_typer(plugins_app, name="plugins")

DEFAULT = "qwen3tts-lora"  # the recipe where none is named
RecipeName = Annotated[str | None, typer.Option("--recipe", help="A recipe's name or YAML file.")]
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Recipe settings, as train.max_steps=100."),
]
Json = Annotated[bool, typer.Option("--json/--no-json", help="Print the result as JSON.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite/--no-overwrite", help="Replace what is there.")
]


def version(wanted: bool) -> None:
    if wanted:
        console.result(f"sheen {__version__}")
        raise typer.Exit


@app.callback()
def top(
    show: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    settings: Settings = None,
    out: Annotated[Path, typer.Option(help="The run's folder.")] = Path("runs/demo"),
    data: Annotated[Path, typer.Option(help="The prepared data's folder.")] = Path("data/demo"),
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Train so many steps instead of some minutes.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Learn to speak in minutes, offline.

    Prepare, info, train and synth on the embedded default, on a CPU.
    """
    from sheen_cli.demo import SENTENCE, run

    report = run(out, data, max_steps, overwrite, settings or [])
    if as_json:
        return console.result(json.dumps(report))
    console.say("\nNow say your own (its words: the demo names them when you use another):")
    console.result(f'  sheen synth {out / "best"} --text "{SENTENCE}" -o hello.wav')


@app.command()
def prepare(
    settings: Settings = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="A folder or file, USER/NAME on the Hub, or an embedded data set."),
    ] = None,
    recipe: RecipeName = None,
    out: Annotated[Path, typer.Option(help="Where the rows go.")] = Path("data"),
    split: Annotated[str | None, typer.Option(help="Read this split of the source alone.")] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(metavar="OURS=THEIRS", help="A column by another name, as text=sentence."),
    ] = None,
    language: Annotated[str | None, typer.Option(help="Of rows that name none.")] = None,
    max_samples: Annotated[
        int | None, typer.Option(min=1, help="Read no more good clips than this.")
    ] = None,
    max_hours: Annotated[
        float | None, typer.Option(help="Read no more clips once so much is good.")
    ] = None,
    keep_audio: Annotated[
        bool | None,
        typer.Option("--keep-audio/--no-keep-audio", help="Write each clip as WAV, too."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Turn a data set into training rows.

    Bad clips are named in rejected.jsonl and left out.
    """
    from sheen_cli.backbones import resolve
    from sheen_cli.prepare import prepare as run
    from sheen_cli.prepare import tally

    given = {
        "dataset": dataset,
        "split": split,
        "language": language,
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
    refused = sum(manifest["rejected"].values())
    console.result(
        f"{manifest['read']} read, {refused} rejected"
        + (f" ({tally(manifest['rejected'])}), see {out}/rejected.jsonl" if refused else "")
    )


@app.command()
def info(
    path: Annotated[Path, typer.Argument(help="A .jsonl, a data folder, a run or a checkpoint.")],
    as_json: Json = False,
) -> None:
    """Say what a file, run or checkpoint holds."""
    from sheen_cli.info import describe, lines

    facts = describe(path)
    console.result(json.dumps(facts) if as_json else "\n".join(lines(facts)))


@app.command()
def train(
    settings: Settings = None,
    recipe: RecipeName = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="A prepared folder, or a .jsonl to prepare; data, or what a resumed run used."
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Prepare this first, unless --data holds it already.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder; runs/RECIPE by default.")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the data.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows of one forward pass.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on from the run's newest checkpoint.")
    ] = False,
    wandb: Annotated[
        bool | None, typer.Option("--wandb/--no-wandb", help="Send log and samples to W&B.")
    ] = None,
    push_to_hub: Annotated[
        str | None, typer.Option(help="A Hub repository USER/NAME to upload the model to.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train by a recipe on prepared data, or on a data set that it prepares first.

    Leaves checkpoints, and `best` and `last`, in the run's folder.
    """
    from sheen_cli import hub, jobs, mirror
    from sheen_cli.backbones import resolve
    from sheen_cli.info import describe

    if data is None:
        data = (jobs.data_of(out) if resume and out is not None else None) or Path("data")
    data, dataset = jobs.data_for(data, dataset)
    if recipe is None and resume and out is not None and (out / "recipe.yaml").is_file():
        recipe = str(out / "recipe.yaml")
    recipe = recipe or jobs.fitting(data) or DEFAULT
    flags = flagged(
        {
            "data.dataset": dataset,
            "train.learning_rate": learning_rate,
            "train.batch_size": batch_size,
        }
    )
    flags += flagged({"log.wandb": wandb, "hub.push_to": push_to_hub})
    if max_steps is not None or epochs is not None:  # then they alone are the end
        ends = {"max_steps": max_steps, "epochs": epochs, "max_minutes": None}
        flags += [f"train.{key}={json.dumps(value)}" for key, value in ends.items()]
    resolved, backbone = resolve(recipe, flags + (settings or []))
    mirror.check(resolved.log.wandb)
    hub.look_ahead(resolved)
    jobs.prepared(resolved, backbone, data, dataset, settings or [])
    out = out or Path("runs") / Path(recipe).stem
    best = jobs.train(resolved, backbone, data, out, resume)
    facts = describe(out)
    console.result(
        json.dumps(facts) if as_json else f"{best} -> {facts['best']}, last is {facts['last']}"
    )


@app.command()
def synth(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL] [KEY=VALUE]...",
            help="A checkpoint, run or base model, here or on the Hub (by default the newest run's "
            "best), and recipe settings.",
        ),
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="What to say; may be repeated.")] = None,
    text_file: Annotated[Path | None, typer.Option(help="A file with a sentence a line.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help=f"The recipe to read a base model by; {DEFAULT}.")
    ] = None,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The WAV file; numbered for several sentences.")
    ] = Path("out.wav"),
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the sampling.")] = None,
    greedy: Annotated[
        bool | None,
        typer.Option("--greedy/--no-greedy", help="Take the likeliest code, or sample."),
    ] = None,
    speaker: Annotated[str | None, typer.Option(help="A voice that the model knows.")] = None,
    language: Annotated[str | None, typer.Option(help="Of the text; auto if not given.")] = None,
    instruct: Annotated[str | None, typer.Option(help="How to say it.")] = None,
    ref: Annotated[Path | None, typer.Option(help="A recording of the voice to clone.")] = None,
    ref_text: Annotated[
        str | None, typer.Option(help="What is said there; else a .txt beside it is read.")
    ] = None,
    icl: Annotated[
        bool | None,
        typer.Option("--icl/--no-icl", help="Go on from the reference, or take its voice alone."),
    ] = None,
    x_vector: Annotated[
        bool | None,
        typer.Option("--x-vector/--no-x-vector", help="Take the reference's voice, or go on."),
    ] = None,
    max_seconds: Annotated[
        float | None, typer.Option(min=0.1, help="The longest that a sentence may take.")
    ] = None,
    retries: Annotated[
        int | None, typer.Option(min=0, help="Other seeds to try where a sentence finds no end.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict/--no-strict", help="Exit code 1 if one is cut off or silent.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Speak with a checkpoint, or with a base model.

    Without --text, it says a sentence for each line of standard input.
    """
    from sheen_cli import places, reference, synthesis
    from sheen_cli.types import Request

    given = bool(text) or text_file is not None
    piped = None if given or sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
    sentences = synthesis.texts(text, text_file, piped)
    paths = synthesis.numbered(out, len(sentences))
    recording = reference.read(ref, ref_text, reference.in_context(icl, x_vector))
    if recording and speaker:
        raise SheenError(f"--ref and --speaker {speaker} are two voices: give one of them")
    voice = synthesis.Voice(*places.chosen(arguments or [], recipe, DEFAULT))
    defaults = voice.recipe.synth
    seed = defaults.seed if seed is None else seed
    limit = defaults.max_seconds if max_seconds is None else max_seconds
    greedy = defaults.greedy if greedy is None else greedy
    retries = defaults.retries if retries is None else retries
    wanted = {"speaker": speaker, "language": language, "instruct": instruct}
    heard = recording.at(voice.backbone.spec.sample_rate) if recording else None
    synthesis.check(voice, {**wanted, "reference": heard})
    requests = [
        Request(sentence, seed, greedy, limit, **wanted, reference=heard) for sentence in sentences
    ]
    report = synthesis.write(voice, requests, paths, retries)
    for facts in report:
        console.result(json.dumps(facts) if as_json else synthesis.line(facts))
    if not synthesis.judge(report, strict):
        raise typer.Exit(1)


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a run for its best.")],
    kind: Annotated[str, typer.Option("--as", help="What to make of it; backbones differ.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write.")],
    settings: Settings = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite/--no-overwrite", help="Replace an earlier export.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a checkpoint as other tools load it.

    An unknown --as is answered with the kinds that the checkpoint's backbone has.
    """
    from sheen_cli import exporting

    facts = exporting.export(checkpoint, kind, out, overwrite, settings or [])
    console.result(json.dumps(facts) if as_json else "\n".join(exporting.lines(facts)))


@app.command()
def push(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a run: its best.")],
    repository: Annotated[str, typer.Argument(help="On the Hub, as USER/NAME.")],
    private: Annotated[
        bool | None,
        typer.Option("--private/--no-private", help="Whether a new repository is private."),
    ] = None,
    license: Annotated[str | None, typer.Option(help="For the card, as cc-by-4.0.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run/--no-dry-run", help="Show files and card; send nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Upload a checkpoint to the Hub, with a model card.

    One commit, private unless asked. Repeating it sends only what differs.
    """
    from sheen_cli import bundle, checkpoints, hub
    from sheen_cli.recipe import read

    folder = checkpoints.resolve(checkpoint)
    packed = hub.prepare(folder, repository, license)
    if private is None:
        private = read(folder / "recipe.yaml").get("hub", {}).get("private", True)
    done = {"url": None, "commit": None} if dry_run else hub.push(packed, repository, private)
    files = {name: bundle.size(content) for name, content in packed.files.items()}
    if as_json:
        facts = {**done, "repository": repository, "private": private, "files": files}
        return console.result(json.dumps({**facts, "left": packed.left}))
    for name in packed.left:
        console.say(f"left behind: {name}")
    if not dry_run:
        return console.result(hub.told(done, private))
    console.result("\n".join(console.columns((str(size), name) for name, size in files.items())))
    console.result("\n" + bytes(packed.files[bundle.CARD]).decode())


@app.command()
def doctor(
    seconds: Annotated[
        float, typer.Option("--timeout", min=1, help="Seconds that a backbone's step may take.")
    ] = 300,
    as_json: Json = False,
) -> None:
    """Say whether this installation is ready, and how to mend it.

    Looks at the machine, versions, disk and logins, and tries one tiny real step of every backbone.
    """
    from sheen_cli.doctor import checks, lines, report

    found = list(checks(seconds))
    facts = report(found)
    if as_json:
        console.result(json.dumps(facts))
    else:
        verdict = "ready" if facts["ready"] else "not ready: see the lines marked NO"
        console.result("\n".join([*lines(found), verdict]))
    if not facts["ready"]:
        raise typer.Exit(1)


@recipes_app.command("list")
def recipes_list(as_json: Json = False) -> None:
    """Name every recipe, with its backbone and purpose."""
    from sheen_cli.recipe import shipped

    found = [(recipe.name, recipe.backbone, recipe.about) for recipe in shipped()]
    if as_json:
        keys = ("name", "backbone", "about")
        return console.result(json.dumps([dict(zip(keys, row, strict=True)) for row in found]))
    console.result("\n".join(console.columns(found)))


@recipes_app.command("show")
def recipes_show(name: str, settings: Settings = None, as_json: Json = False) -> None:
    """Print a recipe with all its defaults and settings resolved, as YAML that --recipe reads."""
    from sheen_cli.backbones import resolve
    from sheen_cli.recipe import dump, find

    recipe, _ = resolve(name, settings or [])
    if as_json:
        return console.result(recipe.model_dump_json())
    header = [line for line in find(name).read_text("utf-8").splitlines() if line.startswith("#")]
    console.result("\n".join([*header, dump(recipe).rstrip()]))


@plugins_app.command("list")
def plugins_list(as_json: Json = False) -> None:
    """Name every installed backbone, and what is wrong with those that cannot be loaded."""
    from dataclasses import asdict

    from sheen_cli.plugins import listing

    found = listing()
    if as_json:
        return console.result(json.dumps([asdict(row) for row in found]))
    cells = (
        (row.name or "?", f"{row.distribution} {row.version}", row.error or "ok") for row in found
    )
    console.result("\n".join(console.columns(cells)))


@plugins_app.command("check")
def plugins_check(
    name: str,
    settings: Settings = None,
    base: Annotated[
        str | None,
        typer.Option(help="Measure this base model instead, a folder or a Hub id."),
    ] = None,
    clip: Annotated[
        Path | None, typer.Option(help="With --base: speech to measure it with; else built in.")
    ] = None,
    clip_text: Annotated[str | None, typer.Option(help="What is said in --clip.")] = None,
    as_json: Json = False,
) -> None:
    """Prove that a backbone keeps its contract, rule by rule; exit code 1 if it does not.

    It trains a tiny model on babble, on top of whose settings yours come.
    """
    from sheen_cli.plugins import package, points
    from sheen_cli.recipe import did_you_mean

    packages = {point.name: package(point) for point in points()}
    if name not in packages:
        known = ", ".join(packages) or "none"
        raise SheenError(
            f"no backbone named '{name}'{did_you_mean(name, packages)}; installed: {known}"
        )
    if base is None and (clip is not None or clip_text is not None):
        raise SheenError("--clip and --clip-text measure a base model: name it with --base")
    about: dict[str, Any] = {"backbone": name, "distribution": packages[name]}
    passed = (
        contract_check(about, settings or [], as_json)
        if base is None
        else base_check({**about, "base": base}, clip, clip_text, settings or [], as_json)
    )
    if not passed:
        raise typer.Exit(1)


def contract_check(about: dict[str, Any], settings: list[str], as_json: bool) -> bool:
    from dataclasses import asdict

    from sheen_cli.testing import judged

    name, found = about["backbone"], []
    for finding in judged(name, settings):
        found.append(finding)
        if not as_json:
            console.result(f"{finding.status:<11}  {finding}")
    broken = [finding.rule for finding in found if finding.status == "failed"]
    if as_json:
        rules = [asdict(finding) for finding in found]
        console.result(json.dumps({**about, "passed": not broken, "rules": rules}))
    else:
        kept = sum(finding.status == "ok" for finding in found)
        console.result(
            f"{name} breaks {', '.join(broken)}" if broken else f"{name} keeps {kept} rules"
        )
    return not broken


def base_check(
    about: dict[str, Any],
    clip: Path | None,
    text: str | None,
    settings: list[str],
    as_json: bool,
) -> bool:
    from dataclasses import asdict

    from sheen_cli.testing.base import measured

    name, base, found = about["backbone"], about["base"], []
    for each in measured(name, base, clip, text, settings):
        found.append(each)
        if not as_json:
            mark = {True: "ok", False: "failed", None: "notice"}[each.ok]
            console.result(f"{mark:<6}  {each.name:<19}  {each.text}")
    failed = [each.name for each in found if each.ok is False]
    if as_json:
        checks = [asdict(each) for each in found]
        console.result(json.dumps({**about, "passed": not failed, "checks": checks}))
    else:
        notices = [each.name for each in found if each.ok is None]
        aside = f"; see the notices on {', '.join(notices)}" if notices else ""
        verdict = f"fails {', '.join(failed)}" if failed else "passes"
        console.result(f"{base} {verdict}{aside}")
    return not failed


def renamed(columns: list[str]) -> dict[str, str]:
    """`--columns` as recipe settings: each OURS=THEIRS, or several with commas between."""
    found = {}
    for part in ",".join(columns).split(",") if columns else []:
        ours, equals, theirs = part.partition("=")
        if not (equals and ours.strip() and theirs.strip()):
            raise SheenError(f"--columns {part}: give ours=theirs, as --columns text=sentence")
        found[f"columns.{ours.strip()}"] = theirs.strip()
    return found


def flagged(values: dict[str, Any]) -> list[str]:
    """Flags that were given, as recipe settings."""
    return [
        f"{key}={json.dumps(value, ensure_ascii=False)}"
        for key, value in values.items()
        if value is not None
    ]


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a code page that lacks a letter must not stop us
            stream.reconfigure(errors="backslashreplace")
    app()


if __name__ == "__main__":
    main()
