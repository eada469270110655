"""From a checkpoint folder and texts to WAV files, with the figures that tell speech from noise."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sheen_cli import audio, backbones, checkpoints, console
from sheen_cli.errors import SheenError
from sheen_cli.recipe import Recipe, override, read, validate
from sheen_cli.types import Audio, Reference, Request

TOGETHER = 16  # sentences that are generated at once


class Voice:
    """A loaded checkpoint that speaks; load it once, use it for any number of texts."""

    def __init__(self, checkpoint: Path, settings: Sequence[str] = ()) -> None:
        import torch

        self.checkpoint = checkpoints.resolve(checkpoint)
        values = override(read(self.checkpoint / "recipe.yaml"), settings)
        self.backbone = backbones.load(values["backbone"])
        where = f"{self.checkpoint}/recipe.yaml" + (" with your settings" if settings else "")
        self.recipe: Recipe[Any] = validate(values, self.backbone.spec.options, where)
        try:
            self.model = self.backbone.hook.load(recipe=self.recipe, checkpoint=self.checkpoint)
        except RuntimeError as error:
            if not any(setting.startswith("model.") for setting in settings):
                raise
            first = str(error).splitlines()[0]
            raise SheenError(
                f"{self.checkpoint} does not fit {' '.join(settings)}: {first}"
            ) from error
        self.model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def speak(self, requests: Sequence[Request]) -> Iterator[Audio]:
        """One Audio a request, in order, `TOGETHER` at a time. Raises SheenError for a text that
        the backbone cannot speak.
        """
        for start in range(0, len(requests), TOGETHER):
            yield from self.backbone.hook.synth(
                recipe=self.recipe,
                model=self.model,
                requests=requests[start : start + TOGETHER],
                trace=False,
            )


# The flag of each part of a request that a backbone may not heed.
FLAGS = {"speaker": "--speaker", "language": "--language", "instruct": "--instruct"}
FLAGS |= {"reference": "--ref"}


def check(voice: Voice, given: Mapping[str, Any]) -> None:
    """Raise SheenError for a wish that the backbone does not heed: silence would be a lie."""
    reads = voice.backbone.spec.reads
    if ignored := [FLAGS[name] for name, value in given.items() if value and name not in reads]:
        heeds = ", ".join(FLAGS[name] for name in reads) or "none of these"
        raise SheenError(
            f"backbone '{voice.backbone.name}' does not heed {', '.join(ignored)}; it heeds {heeds}"
        )


def reference(
    voice: Voice, ref: Path | None, text: str | None, in_context: bool | None
) -> Reference | None:
    """The recording to clone, at the backbone's rate. Without `--icl` it lends its voice alone.
    Raises SheenError where in-context cloning lacks the words.
    """
    if ref is None:
        if text is not None or in_context:
            raise SheenError("--ref-text and --icl belong to a recording: give it with --ref")
        return None
    if not ref.is_file():
        raise SheenError(f"--ref {ref}: no such file")
    try:
        samples = audio.load(ref, voice.backbone.spec.sample_rate, 0.5, 60.0)
    except audio.Rejected as rejected:
        raise SheenError(f"--ref {ref}: {rejected.reason}: {rejected.detail}") from None
    beside = ref.with_suffix(".txt")
    if text is None and beside.is_file():
        text = read_text(beside).strip() or None
    if in_context and not text:
        raise SheenError(
            f"--icl needs the words of {ref}: give --ref-text, or write them to {beside}"
        )
    if in_context is None:
        console.say("taking the voice of --ref (x-vector); --icl would also go on from its speech")
    return Reference(samples, text, bool(in_context))


def figures(speech: Audio) -> dict[str, Any]:
    """What can be said of an output without hearing it."""
    samples = speech.samples if len(speech.samples) else np.zeros(1, np.float32)
    return {
        "frames": None if speech.codes is None else len(speech.codes),
        "seconds": round(len(speech.samples) / speech.rate, 3),
        "rms": round(float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))), 5),
        "peak": round(float(np.abs(samples).max()), 5),
        "stop": speech.stop,
        "nll": {name: round(value, 3) for name, value in speech.nll.items()},
    }


def write(voice: Voice, requests: Sequence[Request], paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Speak each request into its file; returns text, wav and figures of each.

    Sentences that are generated together share their real-time factor. Empty output is an error.
    """
    report: list[dict[str, Any]] = []
    with console.progress("speaking", len(requests)) as tick:
        for start in range(0, len(requests), TOGETHER):
            some = requests[start : start + TOGETHER]
            began = time.perf_counter()
            spoken = list(voice.speak(some))
            elapsed = time.perf_counter() - began
            factor = elapsed / max(1e-9, sum(len(each.samples) / each.rate for each in spoken))
            for request, speech, path in zip(some, spoken, paths[start:], strict=False):
                if not len(speech.samples):
                    raise SheenError(
                        f"the model said nothing for {request.text!r}: it stopped at once; "
                        f"train it longer"
                    )
                audio.write(path, speech.samples, speech.rate)
                facts = {"text": request.text, "wav": str(path), **figures(speech)}
                report.append({**facts, "real_time_factor": round(factor, 3)})
            tick(len(report), paths[len(report) - 1].name)
    return report


def line(facts: dict[str, Any]) -> str:
    """One output's figures for people."""
    frames = "" if facts["frames"] is None else f"{facts['frames']} frames, "
    stop = "ended by itself" if facts["stop"] == "end" else "CUT OFF at its length limit"
    stop += ", SILENT" if facts["peak"] < audio.SILENT else ""
    return (
        f"{facts['wav']}: {frames}{facts['seconds']:.2f} s, RMS {facts['rms']:.3f}, peak "
        f"{facts['peak']:.2f}, {stop}"
    )


def numbered(out: Path, count: int) -> list[Path]:
    """`out` itself for one text; out-01.wav, out-02.wav ... for several."""
    if out.suffix.lower() != ".wav" or out.is_dir():
        raise SheenError(f"-o {out}: the sound is written as WAV, to a file ending in .wav")
    if count == 1:
        return [out]
    width = max(2, len(str(count)))
    return [
        out.with_name(f"{out.stem}-{number:0{width}}{out.suffix}") for number in range(1, count + 1)
    ]


def texts(text: Sequence[str] | None, file: Path | None, piped: str | None) -> list[str]:
    """The sentences to speak, from --text, --text-file (a line each) or standard input. Raises
    SheenError if none.
    """
    if text and file is not None:
        raise SheenError("give --text or --text-file, not both")
    if file is not None and not file.is_file():
        raise SheenError(f"no text file {file}")
    if text:
        lines = list(text)
    else:
        lines = (read_text(file) if file is not None else piped or "").splitlines()
    lines = [line.strip() for line in lines if line.strip()]
    if not lines:
        raise SheenError(
            "there is no text to speak; give --text, --text-file or lines on standard input"
        )
    return lines


def read_text(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SheenError(f"{file} is not UTF-8 (byte {error.start}); save it as UTF-8") from None


def chosen(arguments: Sequence[str]) -> tuple[Path, list[str]]:
    """The checkpoint that is named, or the newest run's best, and the recipe settings. Raises
    SheenError for more than one checkpoint.
    """
    settings = [each for each in arguments if "=" in each and not Path(each).exists()]
    named = [Path(each) for each in arguments if each not in settings]
    if len(named) > 1:
        raise SheenError(f"one checkpoint speaks at a time, not {', '.join(map(str, named))}")
    return named[0] if named else newest_run(Path("runs")), settings


def newest_run(runs: Path) -> Path:
    """The best checkpoint of the run that was saved last. Raises SheenError where there is none."""
    found = [path for path in runs.glob("*/best") if not path.parent.name.startswith(".")]
    found.sort(key=lambda path: path.stat().st_mtime)
    if not found:
        raise SheenError(
            f"no checkpoint was named and {runs}/ holds no run; train one, or name a "
            f"checkpoint folder"
        )
    console.say(f"speaking with {found[-1]}, the newest run's best")
    return found[-1]
