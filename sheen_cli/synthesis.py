"""From a model and texts to WAV files, with the figures that tell speech from noise."""

import json
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sheen_cli import audio, backbones, checkpoints, console
from sheen_cli.errors import SheenError
from sheen_cli.places import Base
from sheen_cli.recipe import Recipe, override, read
from sheen_cli.reference import words
from sheen_cli.types import Audio, Request

TOGETHER = 16  # sentences that are generated at once


class Voice:
    """A loaded checkpoint or base that speaks; load it once, use it for any number of texts."""

    def __init__(self, place: Path | Base, settings: Sequence[str] = ()) -> None:
        import torch

        checkpoint = None if isinstance(place, Base) else checkpoints.resolve(place)
        self.recipe, self.backbone = recipe_of(checkpoint or place, settings)
        try:
            self.model = self.backbone.hook.load(recipe=self.recipe, checkpoint=checkpoint)
        except RuntimeError as error:
            if not any(setting.startswith("model.") for setting in settings):
                raise
            first = str(error).splitlines()[0]
            raise SheenError(f"{checkpoint} does not fit {' '.join(settings)}: {first}") from error
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


def recipe_of(
    place: Path | Base, settings: Sequence[str]
) -> tuple[Recipe[Any], backbones.Backbone]:
    """The recipe that a checkpoint holds, or the one to read a base by."""
    if isinstance(place, Base):
        base = f"model.base={json.dumps(place.place)}"
        try:
            return backbones.resolve(place.recipe, [base, *settings])
        except SheenError as error:
            if "model.base: unknown key" not in str(error):
                raise
            raise SheenError(
                f"{place.place} is no checkpoint, and recipe '{place.recipe}' knows no base models"
            ) from None
    values = override(read(place / "recipe.yaml"), settings)
    where = f"{place}/recipe.yaml" + (" with your settings" if settings else "")
    return backbones.described(values, where)


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


SAMPLING = ("model.temperature", "model.top_k", "model.top_p")  # keys that shape a draw


def check_greedy(greedy: bool | None, settings: Sequence[str]) -> None:
    """Raise SheenError for `--greedy` beside settings of the sampling that it does without; those
    of a recipe stay as they are.
    """
    drawn = [each for each in settings if each.partition("=")[0] in SAMPLING]
    if greedy and drawn:
        raise SheenError(
            f"--greedy draws nothing, and {', '.join(drawn)} is for drawing: give one of them"
        )


def asked(
    voice: Voice,
    sentences: Sequence[str],
    manner: Mapping[str, Any],
    seed: int | None = None,
    greedy: bool | None = None,
    max_seconds: float | None = None,
) -> list[Request]:
    """A request a sentence; None leaves a value to the voice's recipe. `manner` has the rest of a
    Request's fields. Raises SheenError for a part of it that the backbone does not heed.
    """
    check(voice, manner)
    defaults = voice.recipe.synth
    seed = defaults.seed if seed is None else seed
    greedy = defaults.greedy if greedy is None else greedy
    limit = defaults.max_seconds if max_seconds is None else max_seconds
    return [Request(sentence, seed, greedy, limit, **manner) for sentence in sentences]


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


def write(
    voice: Voice, requests: Sequence[Request], paths: Sequence[Path], retries: int = 0
) -> list[dict[str, Any]]:
    """Speak each request into its file; returns text, wav and figures of each. Nothing is written
    where the model said nothing.

    Sentences that are generated together share their real-time factor.
    """
    report: list[dict[str, Any]] = []
    with console.progress("speaking", len(requests)) as tick:
        for start in range(0, len(requests), TOGETHER):
            asked = requests[start : start + TOGETHER]
            began = time.perf_counter()
            final, spoken = until_they_end(voice, asked, retries)
            elapsed = time.perf_counter() - began
            factor = elapsed / max(1e-9, sum(len(each.samples) / each.rate for each in spoken))
            for number, speech in enumerate(spoken):
                path = paths[start + number]
                if len(speech.samples):
                    audio.write(path, speech.samples, speech.rate)
                facts = {
                    "text": asked[number].text,
                    "wav": str(path) if len(speech.samples) else None,
                    **figures(speech),
                    "real_time_factor": round(factor, 3),
                    "seed": final[number].seed,
                    "retries": final[number].seed - asked[number].seed,
                }
                report.append(facts)
            tick(len(report), paths[len(report) - 1].name)
    return report


def until_they_end(
    voice: Voice, requests: Sequence[Request], retries: int
) -> tuple[list[Request], list[Audio]]:
    """Speak; those that run away once more with the next seed, up to `retries` times. Returns the
    requests as they were last made, too.
    """
    asked, spoken = list(requests), list(voice.speak(requests))
    for attempt in range(1, retries + 1):
        away = [number for number, speech in enumerate(spoken) if ran_away(asked[number], speech)]
        for number in away:
            asked[number] = replace(asked[number], seed=asked[number].seed + 1)
            seconds = len(spoken[number].samples) / spoken[number].rate
            console.say(
                f"no end after {seconds:.1f} s of {asked[number].text!r}: trying seed "
                f"{asked[number].seed} (retry {attempt} of {retries})"
            )
        again = voice.speak([asked[number] for number in away])
        for number, speech in zip(away, again, strict=True):
            spoken[number] = speech
    return asked, spoken


def ran_away(request: Request, speech: Audio) -> bool:
    """Whether the limit that the backbone takes from the text cut it off, and another seed may end:
    not where the user's own limit did, nor for a greedy one, which would say the same.
    """
    if speech.stop == "end" or request.greedy:
        return False
    if request.max_seconds is None:
        return True
    frame = len(speech.samples) / max(1, len(speech.codes)) if speech.codes is not None else 0
    return len(speech.samples) + frame <= request.max_seconds * speech.rate


def line(facts: dict[str, Any]) -> str:
    """One output's figures for people."""
    if facts["wav"] is None:
        return f"nothing for {facts['text']!r}: the model stopped at once"
    frames = "" if facts["frames"] is None else f"{facts['frames']} frames, "
    stop = "ended by itself" if facts["stop"] == "end" else "CUT OFF at its length limit"
    stop += ", SILENT" if facts["peak"] < audio.SILENT else ""
    if count := facts["retries"]:
        stop += f", seed {facts['seed']} after {count} {'retry' if count == 1 else 'retries'}"
    return (
        f"{facts['wav']}: {frames}{facts['seconds']:.2f} s, RMS {facts['rms']:.3f}, peak "
        f"{facts['peak']:.2f}, {facts['real_time_factor']:.2f} of real time, {stop}"
    )


def judge(report: Sequence[dict[str, Any]], strict: bool = False) -> bool:
    """Whether the outputs may pass; with `strict`, none that is cut off or silent does, and this
    says how many. Raises SheenError for empty ones.
    """
    if empty := [facts["text"] for facts in report if facts["wav"] is None]:
        raise SheenError(
            f"the model said nothing for {', '.join(map(repr, empty))}: it stopped at once; "
            f"train it longer, or try another --seed"
        )
    cut = sum(facts["stop"] != "end" for facts in report)
    silent = sum(facts["peak"] < audio.SILENT for facts in report)
    if strict and (cut or silent):
        console.error(f"--strict: of {len(report)} outputs {cut} cut off, {silent} silent")
    return not (strict and (cut or silent))


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
    said = words(file) if file is not None else piped or ""
    lines = list(text) if text else said.splitlines()
    lines = [unicodedata.normalize("NFC", line).strip() for line in lines if line.strip()]
    if not lines:
        raise SheenError(
            "there is no text to speak; give --text, --text-file or lines on standard input"
        )
    return lines
