"""After every save, before it is published: a fresh process loads what was written, and says the
logits of one short row again.

    python -m sheen_qwen3_tts.selftest FOLDER

does so for the task that lies in FOLDER, on the CPU in float32, and leaves its answer there.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sheen_cli import Recipe, SheenError
from sheen_qwen3_tts import checkpoint as saved
from sheen_qwen3_tts import exports, model
from sheen_qwen3_tts.checkpoint import ADAPTER
from sheen_qwen3_tts.model import Speech
from sheen_qwen3_tts.weights import Weights

if TYPE_CHECKING:
    from sheen_qwen3_tts import Options

Save = Callable[[Speech, Path], None]
SECONDS = 1800.0
NEAR = 1e-4  # between logits in float32 on one CPU
FAR = {torch.float32: 1e-2, torch.bfloat16: 1e-1}  # of their norm: another device, or dtype
TASK, TENSORS, ANSWER = "task.json", "tensors.safetensors", "answer.json"


def after(
    save: Save, recipe: Recipe["Options"], inputs: Mapping[str, Tensor], warn: Callable[[str], None]
) -> Save:
    """A `save` that tests what it saved, on the batch `inputs` of one row."""
    return partial(tested, save, recipe, inputs, warn)


def tested(
    save: Save,
    recipe: Recipe["Options"],
    inputs: Mapping[str, Tensor],
    warn: Callable[[str], None],
    speech: Speech,
    folder: Path,
) -> None:
    """Save, then test in a process of its own. Raises SheenError, so that the checkpoint is not
    published, where it does not give the model back; warns of what is only odd.
    """
    save(speech, folder)
    with tempfile.TemporaryDirectory(prefix="sheen-selftest-") as name:
        place = Path(name)
        set_task(place, speech, recipe, inputs, folder)
        answer = asked(place)
    if answer.get("problem"):
        raise SheenError(
            f"the checkpoint was not kept, since a fresh process cannot use it: "
            f"{answer['problem']}; model.selftest=false saves without asking"
        )
    for notice in answer["notices"]:
        warn(notice)


def set_task(
    place: Path,
    speech: Speech,
    recipe: Recipe["Options"],
    inputs: Mapping[str, Tensor],
    folder: Path,
) -> None:
    """Write down all that the fresh process needs besides the folder itself."""
    trained = [(name, p) for name, p in speech.talker.named_parameters() if p.requires_grad]
    kinds = {parameter.dtype for parameter in speech.talker.parameters()}
    kind = torch.float32 if kinds == {torch.float32} else torch.bfloat16
    task = {
        "recipe": recipe.model_dump(mode="json"),
        "base": str(speech.base.folder),
        "folder": str(folder),
        "names": list(speech.names),
        "trained": {name: prints(parameter) for name, parameter in trained},
        "relative": None if (kind, speech.device.type) == (torch.float32, "cpu") else FAR[kind],
        "parent": os.getpid(),
    }
    (place / TASK).write_text(json.dumps(task), "utf-8")
    tensors = {f"input.{name}": value for name, value in inputs.items()}
    tensors |= {f"logits.{n}": each for n, each in enumerate(logits(speech, inputs, kind))}
    tensors["voices"] = speech.voices
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, place / TENSORS)


def logits(
    speech: Speech, inputs: Mapping[str, Tensor], kind: torch.dtype = torch.float32
) -> list[Tensor]:
    """Those of the talker and of all other heads, from the forward pass that training takes. What
    autocast would compute in bfloat16 is computed in float32 where the weights are. Nothing random
    is drawn, and the model is left in its mode.
    """
    training, device = speech.training, speech.device
    moved = {name: value.to(device) for name, value in inputs.items()}
    speech.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, kind, kind != torch.float32):
            # past the wrapper that accelerate puts around `forward`, which is autocast's, too
            first, inner = type(speech).forward(speech, **moved, trace=True)
    finally:
        speech.train(training)
    assert inner.logits is not None
    return [first.float().cpu(), inner.logits.float().cpu()]


def prints(tensor: Tensor) -> list[float]:
    """Sum and norm, by which a tensor is known again in whatever precision models compute."""
    exact, values = torch.float64, tensor.detach()
    return [float(values.sum(dtype=exact)), float(torch.linalg.vector_norm(values, dtype=exact))]


def asked(place: Path) -> dict[str, Any]:
    """The fresh process's answer to the task in `place`."""
    # what it lacks is said, but does not end a training: it may be memory for a second model
    unable = "the checkpoint was kept untested: the process for that {}; "
    unable += "model.selftest=false leaves it out"
    command = [sys.executable, "-P", "-m", "sheen_qwen3_tts.selftest", str(place)]
    path = os.pathsep.join(each or os.getcwd() for each in sys.path)
    surroundings = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    try:
        done = subprocess.run(
            command, env=surroundings, capture_output=True, stdin=subprocess.DEVNULL,
            timeout=SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"notices": [unable.format(f"did not end within {SECONDS:g} s")]}
    if (place / ANSWER).is_file():
        answer: dict[str, Any] = json.loads((place / ANSWER).read_text("utf-8"))
        return answer
    said = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
    if done.returncode < 0 or "allocate memory" in said[-1] or "MemoryError" in said[-1]:
        cause = f"signal {-done.returncode}" if done.returncode < 0 else said[-1]
        return {"notices": [unable.format(f"ended early ({cause}), maybe for want of memory")]}
    return {"problem": said[-1]}


# --- in the fresh process -------------------------------------------------------------------------


def main(place: Path) -> None:
    task = json.loads((place / TASK).read_text("utf-8"))
    Thread(target=outlived, args=[task["parent"]], daemon=True).start()
    answer: dict[str, Any]
    try:
        answer = {"problem": None, "notices": list(judged(task, load_file(place / TENSORS)))}
    except SheenError as error:
        answer = {"problem": str(error), "notices": []}
    part = place / f"{ANSWER}.part"
    part.write_text(json.dumps(answer), "utf-8")
    part.rename(place / ANSWER)


def outlived(parent: int) -> None:
    """End with the process that asked."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def judged(task: dict[str, Any], tensors: dict[str, Tensor]) -> list[str]:
    """What is odd about the checkpoint. Raises SheenError for what is wrong with it."""
    from sheen_qwen3_tts import Options, adapted

    recipe = Recipe[Options].model_validate(task["recipe"])
    inputs = {k.removeprefix("input."): v for k, v in tensors.items() if k.startswith("input.")}
    wanted = [tensors[f"logits.{number}"] for number in range(2)]
    voices = dict(zip(task["names"], tensors["voices"], strict=True))
    folder, notices = Path(task["folder"]), list[str]()
    if not (folder / ADAPTER).is_file():
        speech = model.load(folder, voices, "sdpa").requires_grad_(True)
        compare("its logits", logits(speech, inputs), wanted, task["relative"])
        check_prints(speech, task["trained"])
        return notices
    speech = model.load(Path(task["base"]), voices, "sdpa", new_languages=recipe.model.tags)
    before = logits(speech, inputs)
    saved.load_adapter(speech, folder, set(adapted(speech, recipe)))
    unmerged = logits(speech, inputs)
    compare("its logits", unmerged, wanted, task["relative"])
    check_prints(speech, task["trained"])
    if all(map(torch.equal, before, unmerged)):
        notices.append(f"the adapter has no effect yet: {idle(speech)}, the logits are the base's")
    merge(speech, Path(task["base"]), folder, recipe)
    compare("the logits of the merged model", logits(speech, inputs), unmerged, None)
    return notices


def idle(speech: Speech) -> str:
    factors = [p for name, p in speech.talker.named_parameters() if ".lora_B." in name]
    still = sum(not bool(factor.any()) for factor in factors)
    return f"{still} of {len(factors)} low-rank pairs are zero"


def check_prints(speech: Speech, trained: Mapping[str, Sequence[float]]) -> None:
    """Raise SheenError unless every trained tensor came back, to a rounding of its sums."""
    parameters = dict(speech.talker.named_parameters())
    for name, before in trained.items():
        if name not in parameters:
            raise SheenError(f"{name} was trained and is not in the checkpoint")
        for one, two in zip(before, prints(parameters[name]), strict=True):
            if not abs(one - two) <= 1e-6 * (1 + abs(one)):
                raise SheenError(f"{name} came back with other values than were trained")


def merge(speech: Speech, folder: Path, checkpoint: Path, recipe: Recipe["Options"]) -> None:
    """Put an adapter into the weights that it lies beside, as the export does, and silence it."""
    assert recipe.model.lora is not None
    merged = exports.Merged(
        Weights(folder), checkpoint / ADAPTER, recipe.model.lora, speech.base.added
    )
    parameters = dict(speech.talker.named_parameters())
    with torch.no_grad():
        for name in merged.pairs:
            module = name.removeprefix("talker.").removesuffix(".weight")
            parameters[f"{module}.base_layer.weight"].copy_(merged.read(name))
            parameters[f"{module}.lora_B.default.weight"].zero_()


def compare(
    what: str, found: Sequence[Tensor], wanted: Sequence[Tensor], relative: float | None
) -> None:
    """Raise SheenError where logits differ by more than NEAR times the largest of them (or 1), or
    than a share of their norm.
    """
    for part, mine, theirs in zip(("talker", "sub-talker"), found, wanted, strict=True):
        if mine.shape != theirs.shape:
            raise SheenError(f"{what} of the {part} have the shape {tuple(mine.shape)}")
        gap = float((mine - theirs).abs().max())
        limit = NEAR * max(1.0, float(theirs.abs().max()))
        if relative is not None:
            gap, limit = float((mine - theirs).norm() / theirs.norm()), relative
        if not gap <= limit:  # nor NaN
            raise SheenError(f"{what} of the {part} differ by {gap:.2g}, more than {limit:.2g}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
