"""Rules of `prepare` and `collate`: rows are JSON, batches a pure function of them."""

import copy
import json
import pickle
import random
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from sheen_cli import rows
from sheen_cli.testing.lab import CLIPS, LONG, SHORT, Lab
from sheen_cli.testing.report import Broken, NotOffered, rule
from sheen_cli.types import Batch, Row, Skip


@rule(
    "prepare",
    "a clip is left out without a Skip, a value is no JSON (an array, a tensor, NaN, a key that is "
    "a number), or something random has no seed",
    "describe",
)
def prepared(lab: Lab) -> None:
    """one Row or Skip a clip, in order, that survives JSON, and the same when done again"""
    artifacts = lab.folder / "artifacts-again"
    artifacts.mkdir()
    again = list(lab.backbone.hook.prepare(recipe=lab.recipe, clips=lab.clips, artifacts=artifacts))
    if len(again) != len(CLIPS):
        raise Broken(f"{len(again)} rows and skips for {len(CLIPS)} clips")
    if skips := [item for item in again if isinstance(item, Skip)]:
        raise Broken(f"refused a good clip: {skips[0].reason}: {skips[0].detail}")
    for number, row in enumerate(again):
        try:
            line = rows.encode(row)
        except ValueError as error:
            raise Broken(f"row {number} is no JSON: {error}") from None
        if (read := json.loads(line)) != row:
            key = next(key for key in row if read.get(str(key)) != row[key] or key not in read)
            raise Broken(f"row {number} comes back from JSON with another {key!r}")
        stored = {key: lab.rows[number].get(key) for key in row}
        if stored != row:
            key = next(key for key in row if stored[key] != row[key])
            raise Broken(f"{key!r} of row {number} differs between two preparations")


@rule(
    "collate",
    "it changes the rows that it is given, or draws from a global generator instead of its seed",
    "prepared",
)
def pure(lab: Lab) -> None:
    """equal rows and seed give equal tensors, which can be pickled; nothing else is touched"""
    for seed in (None, 5):
        before = copy.deepcopy(lab.rows)
        first, second = (seeded(number, partial(lab.collate, lab.rows, seed)) for number in (1, 2))
        if lab.rows != before:
            raise Broken("it changed the rows")
        if name := difference(first, second):
            raise Broken(f"'{name}' differs between two calls with seed {seed}")
        if name := difference(first, pickle.loads(pickle.dumps(first))):
            raise Broken(f"'{name}' does not survive pickling")
    stand = drawn()
    lab.collate(lab.rows, 5)
    if drawn() != stand:
        raise Broken("it moved a global random generator")


def drawn() -> tuple[bytes, bytes, bytes]:
    """Where the global generators stand."""
    return (
        torch.get_rng_state().numpy().tobytes(),
        repr(random.getstate()).encode(),
        repr(np.random.get_state(legacy=False)).encode(),
    )


def seeded(seed: int, make: Callable[[], Batch]) -> Batch:
    """Call `make` with the global generators at `seed`, and leave them as they were."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    try:
        return make()
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


def difference(first: Batch, second: Batch) -> str | None:
    """The name of a tensor or count in which two batches differ."""
    if first.counts != second.counts or set(first.inputs) != set(second.inputs):
        return "counts" if first.counts != second.counts else "inputs"
    for name, tensor in first.inputs.items():
        if tensor.dtype != second.inputs[name].dtype or not torch.equal(
            tensor, second.inputs[name]
        ):
            return name
    return None


@rule(
    "collate",
    "positions of the text are counted (and so learnt) as targets",
    "terms",
)
def text(lab: Lab) -> None:
    """the text is read, not learnt: a longer text over the same codes has no more targets"""
    short, long = lab.rows[SHORT], lab.rows[LONG]
    if "audio_codes" in short:
        long = {**long, "audio_codes": short["audio_codes"]}
    counts = [lab.collate([row]).counts for row in (short, long)]
    if counts[0] != counts[1]:
        raise Broken(
            f"{counts[0]} targets with a text of {len(short['text'])} letters, {counts[1]} with "
            f"one of {len(long['text'])}"
        )
    if lab.sums([short])[0] == lab.sums([long])[0]:
        raise Broken("another text over the same codes changes no loss: it is not read")


@rule(
    "collate",
    "the end's target is cut off by a second shift, a truncation or a mask: the model talks on",
    "terms",
)
def end(lab: Lab) -> None:
    """the end of the speech is a target of its own"""
    books(lab)
    once = one_frame(lab)
    twice = {**once, "audio_codes": once["audio_codes"] * 2}
    one, two = (sum(lab.collate([row]).counts.values()) for row in (once, twice))
    # with n targets a frame, one frame has n and those of the end, two frames have 2n and these
    if 2 * one - two < 1:
        raise Broken(f"one frame has {one} targets and two have {two}: none is left for the end")


@rule(
    "collate and loss",
    "the targets are shifted twice: once in collate, once more in loss or by a transformers model "
    "that was given `labels`",
    "end",
)
def targets(lab: Lab) -> None:
    """the first frame is a target: each of its codes changes a loss, and every term sees them"""
    count, row = books(lab), one_frame(lab)
    sums, deaf = lab.sums([row])[0], set(lab.backbone.spec.terms)
    for book in range(count):
        size = (lab.backbone.spec.codebooks or ())[book]
        other = copy.deepcopy(row)
        other["audio_codes"][0][book] = (row["audio_codes"][0][book] + 1) % size
        changed = {name for name, value in lab.sums([other])[0].items() if value != sums[name]}
        if not changed:
            raise Broken(
                f"the loss of a speech of one frame does not depend on its code in codebook {book}"
            )
        deaf -= changed
    if deaf:
        raise Broken(f"'{min(deaf)}' of a speech of one frame does not depend on its codes")


def books(lab: Lab) -> int:
    """The number of codebooks. Raises NotOffered for a backbone without."""
    if not lab.backbone.spec.codebooks or "audio_codes" not in lab.rows[0]:
        raise NotOffered("the backbone declares no codebooks")
    return len(lab.backbone.spec.codebooks)


def one_frame(lab: Lab) -> Row:
    return {**lab.rows[0], "audio_codes": copy.deepcopy(lab.rows[0]["audio_codes"][:1])}


DATA = (prepared, pure)
