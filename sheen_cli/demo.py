"""`sheen demo`: the whole job on the embedded default, through the same host code as any
backbone.
"""

import json
from pathlib import Path
from typing import Any

from sheen_cli import backbones, console, info, jobs, locks, synthesis
from sheen_cli.errors import SheenError
from sheen_cli.files import remove, write_text
from sheen_cli.prepare import is_prepared, prepare
from sheen_cli.rows import Rows
from sheen_cli.synthesis import Voice

RECIPE = "demo"
INTRODUCTION = """\
sheen demo teaches a small model to speak, from nothing, on this computer and without a network.
It learns a closed vocabulary of 70 words in one synthetic voice: it shows the tool, it is no
voice to use."""
ENOUGH = 1000  # steps; below, the words are not reliably right
SENTENCE = "flight two nine one leaves from gate seven"


def run(
    out: Path, data: Path, max_steps: int | None, overwrite: bool, settings: list[str]
) -> list[dict[str, Any]]:
    """prepare, info, train, synth; returns the figures of the held-out sentences that it spoke."""
    if max_steps is not None:
        # no clock and no probing of threads: the same steps give the same weights
        steps = [f"train.max_steps={max_steps}", "train.max_minutes=null", "train.threads=null"]
        settings = [*settings, *steps]
    recipe, backbone = backbones.resolve(RECIPE, settings)
    if out.exists() and not overwrite:
        raise SheenError(
            f"{out} exists; add --overwrite to make the demo anew, or choose another --out"
        )
    if out.exists() and not (out / "run.json").is_file():
        raise SheenError(f"{out} is no run, so it is not overwritten; choose another --out")
    clear(out, only_ask=True)  # now, and not after the preparation
    console.say(INTRODUCTION)
    console.say(f"\n1 of 4  prepare: recordings become codes, in {data}")
    prepare(recipe, backbone, data, overwrite and not is_prepared(data, recipe, backbone))
    console.say("\n2 of 4  info: what there is to learn from")
    for line in info.lines(info.describe(data / "train.jsonl")):
        console.say(f"  {line}")
    minutes = recipe.train.max_minutes
    budget = f"about {minutes:g} minutes" if minutes else f"{recipe.train.max_steps} steps"
    console.say(f"\n3 of 4  train: {budget}, into {out}")
    clear(out)
    best = jobs.train(recipe, backbone, data, out, resume=False)
    steps = info.describe(out / "last")["progress"]["step"]
    if minutes and steps < ENOUGH:
        console.warn(
            f"only {steps} steps fitted into {minutes:g} minutes, some 2,000 are usual: the words "
            f"may be hard to understand. Run it on an idle machine, or with train.max_minutes=10"
        )
    console.say("\n4 of 4  synth: sentences that training never saw")
    report = speak(best, data, out / "heldout")
    ended = sum(facts["stop"] == "end" for facts in report)
    console.say(
        f"{len(report)} sentences in {out / 'heldout'}, {ended} ended by themselves, among them:"
    )
    for facts in report[:3]:
        console.say(f'  "{facts["text"]}"  {Path(facts["wav"]).name}, {facts["seconds"]:.2f} s')
    return report


def clear(out: Path, only_ask: bool = False) -> None:
    """Remove an earlier run. Raises Busy while somebody still writes to it."""
    if out.exists():
        with locks.hold(out):
            if not only_ask:
                remove(out)


def speak(checkpoint: Path, data: Path, out: Path) -> list[dict[str, Any]]:
    """Speak the texts of the test rows into NN.wav, listed in heldout.jsonl."""
    if not (data / "test.jsonl").is_file():
        raise SheenError(f"{data} has no test sentences; the demo speaks those of its own data")
    sentences = [row["text"] for row in Rows(data / "test.jsonl")]
    paths = synthesis.numbered(out / "heldout.wav", len(sentences))
    paths = [path.with_name(path.name.removeprefix("heldout-")) for path in paths]
    voice = Voice(checkpoint)
    report = synthesis.write(voice, synthesis.asked(voice, sentences, {}), paths)
    synthesis.judge(report)
    lines = [json.dumps({**facts, "wav": Path(facts["wav"]).name}) for facts in report]
    write_text(out / "heldout.jsonl", "\n".join(lines) + "\n")
    return report
