"""Speech while training: a few sentences by the very model that trains, at every validation.

It is there to be heard. Nothing of it may change the training or end it.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from sheen_cli import audio, console
from sheen_cli.errors import SheenError
from sheen_cli.files import FORMAT, building, make, sweep, write_json
from sheen_cli.synthesis import figures
from sheen_cli.types import Audio, Request

if TYPE_CHECKING:
    from sheen_cli.training import Run

FOLDER, LISTING = "samples", "samples.json"
LONGEST = 20.0  # seconds that a sentence may take, at most
TIMES, SPARE = 2.0, 2.0  # a row's text may take so many times its recording, and seconds more


def speak(run: "Run", model: nn.Module, step: int) -> None:
    """Speak into samples/step-N/01.wav ..., listed in samples.json, by one process for all. What
    goes wrong costs this step's samples and is said; Ctrl-C passes.
    """
    log, parallel = run.recipe.log, run.accelerator
    if not parallel.is_main_process or not (log.samples or log.sentences):
        return
    folder = run.folder / FOLDER / f"step-{step}"
    try:
        with undisturbed(model, parallel.device), torch.no_grad(), parallel.autocast():
            report = write(folder, step, wanted(run), run, model)
    except Exception as error:
        first = (str(error) or "no message").splitlines()[0]
        console.warn(f"no samples of step {step}: {type(error).__name__}: {first}")
        return
    ended = sum(facts["stop"] == "end" for facts in report)
    console.say(f"step {step}: samples in {folder}, {ended} of {len(report)} with an end")


def wanted(run: "Run") -> list[Request]:
    """The recipe's sentences, or the texts of the first rows that training never sees, each in the
    voice and language of such a row where the backbone heeds these.
    """
    log, synth = run.recipe.log, run.recipe.synth
    rows = run.validation or run.rows
    count = len(log.sentences) or min(log.samples, len(rows))
    requests = []
    for number in range(count):
        row = rows[number % len(rows)]
        limits = [LONGEST, synth.max_seconds or LONGEST]
        if not log.sentences and row.get("duration"):
            limits.append(TIMES * row["duration"] + SPARE)
        heeded = {
            name: row.get(name)
            for name in ("speaker", "language", "instruct")
            if name in run.backbone.spec.reads
        }
        text = log.sentences[number] if log.sentences else row["text"]
        requests.append(Request(text, synth.seed, synth.greedy, min(limits), **heeded))
    return requests


@contextmanager
def undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Whatever the block draws and switches, generators and modes are afterwards as before."""
    devices = [device] if device.type == "cuda" else []
    modes = [(module, module.training) for module in model.modules()]
    plain, array = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(plain)
            np.random.set_state(array)
            for module, training in modes:
                module.training = training


def write(
    folder: Path, step: int, requests: Sequence[Request], run: "Run", model: nn.Module
) -> list[dict[str, Any]]:
    """Speak and publish all of a step's samples at once; returns their figures."""
    torch.manual_seed(run.recipe.synth.seed)
    model.eval()
    spoken = said(run, model, requests)
    report = []
    make(folder.parent)
    sweep(folder.parent)  # a process that was killed just here
    with building(folder) as part:
        for number, (request, speech) in enumerate(zip(requests, spoken, strict=True), 1):
            if not np.isfinite(speech.samples).all():
                raise SheenError(f"{request.text!r} is spoken with samples that are no numbers")
            name = f"{number:02}.wav"
            audio.write(part / name, speech.samples, speech.rate)
            asked = {key: getattr(request, key) for key in ("text", "speaker", "language")}
            report.append({"wav": name, **asked, **figures(speech)})
        write_json(part / LISTING, {"format": FORMAT, "step": step, "samples": report})
    return report


def said(run: "Run", model: nn.Module, requests: Sequence[Request]) -> list[Audio]:
    """Speak; once more without the languages where it knows one of them not: `synth` refuses what
    training lays out as unnamed.
    """

    def once(some: Sequence[Request]) -> list[Audio]:
        spoken = run.backbone.hook.synth(recipe=run.recipe, model=model, requests=some, trace=False)
        return list(spoken)

    try:
        return once(requests)
    except SheenError:
        unnamed = [replace(request, language=None) for request in requests]
        if unnamed == list(requests):
            raise
        return once(unnamed)
