"""One tiny real step of a backbone: recordings made up on the spot, prepared, trained on for one
step, spoken. Runs in a process of its own.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sheen_cli import audio, backbones, jobs, tracking
from sheen_cli.babble import speech
from sheen_cli.errors import SheenError
from sheen_cli.files import write_text
from sheen_cli.prepare import prepare
from sheen_cli.synthesis import Voice
from sheen_cli.types import Request

TEXTS = ("one two", "three", "four five")
SECONDS = 0.5  # of speech at the end

# whatever the backbone's tiny settings say, this much is done
LEAST = (
    "train.max_steps=1", "train.epochs=null", "train.max_minutes=null", "train.threads=1",
    "train.workers=0", "train.accumulate=1", "train.precision=fp32", "train.weights=fp32",
    "data.validation=0",
    "data.max_samples=null", "data.min_seconds=0.1", "log.every=1",
)  # fmt: skip


def steps(name: str) -> Iterator[dict[str, Any]]:
    """Two answers: the backbone's facts once it is loaded, then what one step came to.

    The first is {"error"} or {"error": None, "tiny": whether it can be tried, "stacks"}; the second
    {"error"} or {"error": None, "loss", "seconds" it took, "sound": seconds of speech}.
    """
    try:
        spec = backbones.load(name).spec
    except SheenError as error:
        yield {"error": str(error)}
        return
    stacks = [dict(stack) for stack in spec.stacks]
    yield {"error": None, "tiny": spec.tiny is not None, "stacks": stacks}
    if spec.tiny is None:
        return
    began = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(prefix="sheen-doctor-") as folder:
            facts = step(name, Path(folder))
        yield {"error": None, **facts, "seconds": round(time.perf_counter() - began, 1)}
    except Exception as error:  # whatever it is, it is the answer
        # the doctor says the remedy itself
        notes = " ".join(note.partition(". If ")[0] for note in getattr(error, "__notes__", ()))
        yield {"error": " ".join(f"{type(error).__name__}: {error}; {notes}".split()).rstrip("; ")}


def step(name: str, folder: Path) -> dict[str, Any]:
    """Prepare, train and speak in `folder`; the loss and the seconds of speech. Raises whatever
    goes wrong.
    """
    spec = backbones.load(name).spec
    assert spec.tiny is not None
    data = folder / "recordings"
    for number, text in enumerate(TEXTS):
        audio.write(
            data / "wavs" / f"{number}.wav", speech(text, spec.sample_rate), spec.sample_rate
        )
    lines = [f"{number}.wav|{text}|babble|en" for number, text in enumerate(TEXTS)]
    header = "file_name|text|speaker|language"
    write_text(data / "metadata.csv", "\n".join([header, *lines, ""]))
    base = folder / "base"
    base.mkdir()
    dataset = f"data.dataset={json.dumps(str(data))}"
    recipe, backbone = backbones.resolve(spec.recipe, [*spec.tiny(base), *LEAST, dataset])
    if backbone.name != name:
        raise SheenError(f"its default recipe '{spec.recipe}' is for backbone '{backbone.name}'")
    prepare(recipe, backbone, folder / "rows")
    best = jobs.train(recipe, backbone, folder / "rows", folder / "run", resume=False)
    losses = [
        line["loss"] for line in tracking.read(folder / "run" / "metrics.jsonl") if "loss" in line
    ]
    (spoken,) = Voice(best).speak([Request(TEXTS[0], max_seconds=SECONDS)])
    if not np.isfinite(spoken.samples).all():
        raise ArithmeticError("what it says after one step is not finite")
    return {"loss": round(losses[0], 3), "sound": round(len(spoken.samples) / spoken.rate, 2)}
