"""Rules of the package and of the whole path: what it declares, what importing it costs, what a
checkpoint holds, and that training teaches what synthesis says.
"""

from dataclasses import replace

import numpy as np
import torch

from sheen_cli import backbones
from sheen_cli.audio import SILENT
from sheen_cli.errors import SheenError
from sheen_cli.recipe import find, read
from sheen_cli.testing.lab import SECONDS, Lab, measured
from sheen_cli.testing.report import Broken, NotOffered, rule
from sheen_cli.testing.rules_data import difference
from sheen_cli.testing.rules_speech import NEAR, coded, limit
from sheen_cli.types import Batch

MODULES = 300  # that importing a plugin may bring, beyond torch's and sheen's own


@rule(
    "the module",
    "a hook is missing, misspelt or has an argument that sheen does not give, or the package is "
    "written for another sheen",
)
def hooks(lab: Lab) -> None:
    """it loads, with the seven hooks and this hook API"""
    try:
        backbones.load(lab.name)
    except SheenError as error:
        raise Broken(str(error)) from None


@rule(
    "describe",
    "a field was copied from another backbone, or names a recipe or key that does not exist",
    "hooks",
)
def describe(lab: Lab) -> None:
    """rates, terms, codebooks, recipe and prepared_by make sense together"""
    spec, recipe = lab.backbone.spec, lab.recipe
    if read(find(spec.recipe))["backbone"] != lab.name:
        raise Broken(f"its recipe '{spec.recipe}' is of another backbone")
    if spec.tiny is None:
        raise Broken("tiny is missing: without it this check would train the model at full size")
    if spec.sample_rate <= 0 or (spec.frame_rate is not None and spec.frame_rate <= 0):
        raise Broken(f"sample_rate is {spec.sample_rate}, frame_rate {spec.frame_rate}")
    if not spec.terms or len(set(spec.terms)) < len(spec.terms):
        raise Broken(f"terms are {spec.terms}: at least one, each once")
    if (spec.codebooks is None) != (spec.frame_rate is None) or (
        spec.codebooks is not None and (not spec.codebooks or min(spec.codebooks) < 2)
    ):
        raise Broken(f"codebooks are {spec.codebooks}, the frame rate is {spec.frame_rate}")
    values = recipe.model_dump(mode="json")
    for key in spec.prepared_by:
        inner = values
        for part in key.split("."):
            if not isinstance(inner, dict) or part not in inner:
                raise Broken(f"prepared_by names '{key}', which is no key of the recipe")
            inner = inner[part]


@rule(
    "train",
    "train() builds the base model although run.resume is set, or what it adds to the model is "
    "not loaded again",
    "reload",
)
def resume(lab: Lab) -> None:
    """a run that was stopped and resumed ends as one that was not"""
    # any other schedule hangs on the number of steps, and the run that stops has fewer
    two, four = ([f"train.max_steps={n}", "train.schedule=constant"] for n in (2, 4))
    whole = lab.train(lab.run("whole", four))
    lab.train(lab.run("parts", two))
    stopped = lab.folder / "parts" / "checkpoint-2"
    parts = lab.train(lab.run("parts", four, resume=stopped))
    for (name, one), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
        if not torch.equal(one, other):
            gap = float((one - other).detach().abs().max())
            raise Broken(f"'{name}' differs by {gap:.2g} after 2 + 2 steps from after 4")


@rule(
    "collate, loss, train and synth",
    "training optimises something else than what synthesis does, greedy is not obeyed, or the "
    "tiny settings leave it too few steps",
    "padding gradient nll",
)
def learns(lab: Lab) -> None:
    """two clips are learnt by heart, and greedy synthesis says their codes and ends"""
    learnt = lab.learnt
    for row in lab.rows[:2]:
        # without a limit, as `sheen synth` asks; the end that it learnt ends it
        (said,) = lab.speak([lab.request(row, greedy=True)], learnt)
        if said.codes is None:
            raise NotOffered("the backbone returns no codes")
        wanted, found = np.asarray(row["audio_codes"]), coded(said)
        frames = min(len(wanted), len(found))
        right = float((wanted[:frames] == found[:frames]).mean()) if frames else 0.0
        if said.stop != "end" or len(wanted) != len(found) or right < 1:
            raise Broken(
                f"{row['text']!r}: {len(found)} frames for {len(wanted)}, {right:.0%} of their "
                f"codes right, stop is '{said.stop}'"
            )
        if (peak := float(np.abs(said.samples).max())) < SILENT:
            raise Broken(f"{row['text']!r} has the right codes and is silent (peak {peak:.1g})")


@rule(
    "save and load",
    "save() leaves something out (a buffer, a new row of a table, a projection), or load() reads "
    "it from where it was trained instead of from the checkpoint",
    "gradient steady",
)
def reload(lab: Lab) -> None:
    """a fresh process with nothing but the checkpoint has the same losses, logits and speech"""
    sums, scores = measured(lab, lab.learnt)
    found = lab.elsewhere
    if "sums" not in found:
        raise Broken(f"the fresh process failed: {last_line(found['error'])}")
    for name, value in sums.items():
        if not abs(found["sums"][name] - value) <= 1e-3 + 1e-4 * abs(value):  # nor NaN
            raise Broken(f"'{name}' is {value:.4f} here, {found['sums'][name]:.4f} after loading")
    for name, mine in scores.items():
        theirs = found["logits"].get(name)
        if theirs is None or theirs.shape != mine.shape:
            raise Broken(f"the logits of '{name}' have another shape after loading")
        finite = torch.isfinite(mine)
        if not torch.equal(finite, torch.isfinite(theirs)):
            raise Broken(f"the logits of '{name}' are infinite elsewhere after loading")
        if (gap := float((mine - theirs)[finite].abs().max())) > 10 * NEAR:
            raise Broken(f"the logits of '{name}' differ by up to {gap:.2g} after loading")
    for row, (codes, samples) in zip(lab.rows, found["said"], strict=False):
        (here,) = lab.speak([lab.request(row, greedy=True, max_seconds=SECONDS)], lab.learnt)
        if not np.array_equal(coded(here), coded(replace(here, codes=codes))):
            raise Broken(f"{row['text']!r} has other codes after loading")
        if len(samples) != len(here.samples) or not np.allclose(samples, here.samples, atol=1e-4):
            raise Broken(f"{row['text']!r} sounds otherwise after loading")


def last_line(error: str) -> str:
    return error.splitlines()[-1] if error else "it ended without an answer"


@rule(
    "collate",
    "something depends on the order of a set, on hash() or on the process",
    "pure",
)
def everywhere(lab: Lab) -> None:
    """another process makes the same tensors of the same rows"""
    found = lab.elsewhere
    if "batches" not in found:
        raise Broken(f"collate fails in a fresh process: {last_line(found['error'])}")
    for seed, inputs, counts in found["batches"]:
        if name := difference(lab.collate(lab.rows, seed), Batch(inputs, counts)):
            raise Broken(f"'{name}' differs with seed {seed}")


@rule(
    "the module",
    "a model or codec library is imported at the top; import it in the hook that uses it",
    "hooks",
)
def imports(lab: Lab) -> None:
    """importing it is quick and quiet: listings import every plugin"""
    found = lab.elsewhere
    if "modules" not in found:
        raise Broken(f"the import failed in a fresh process: {last_line(found['error'])}")
    if found["printed"]:
        raise Broken(f"importing it prints {found['printed'][:80]!r}")
    modules: dict[str, int] = found["modules"]
    if sum(modules.values()) > MODULES:
        most = sorted(modules, key=lambda name: -modules[name])[:3]
        named = ", ".join(f"{name} {modules[name]}" for name in most)
        raise Broken(f"it imports {sum(modules.values())} modules ({named}), more than {MODULES}")
    if found["cuda"]:
        raise Broken("importing it starts CUDA")


PACKAGE = (hooks, describe)
WHOLE = (learns, limit, reload, resume, everywhere, imports)
