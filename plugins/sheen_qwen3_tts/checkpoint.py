"""What a training leaves: a whole folder that the stock library loads, or an adapter for its base.

The library cannot save its own config, so files are copied from the base and the weights written
beside them.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sheen_cli import SheenError
from sheen_qwen3_tts import weights
from sheen_qwen3_tts.model import Speech
from sheen_qwen3_tts.weights import Facts, Weights

ADAPTER = "adapter.safetensors"
VOICES = "voices.safetensors"
OURS = {"training", "artifacts", "recipe.yaml", "manifest.json", "export.json", ADAPTER}
ENCODER = "speaker_encoder."


def save_whole(model: Speech, folder: Path) -> None:
    """All weights under the stock names, and every other file of the base.

    What was trained is written in the dtype that its parameters have, float32 or, of weights in two
    halves, bfloat16; the rest as exactly as the base has
    it. So is what this kind of model does not load, as a custom voice's speaker encoder.
    """
    base = Weights(model.base.folder)
    copy_rest(model.base.folder, folder)
    state = tensors(model)
    trained = {f"talker.{name}" for name, p in model.talker.named_parameters() if p.requires_grad}
    facts = {
        name: Facts(tuple(value.shape), value.dtype if name in trained else base.facts[name].dtype)
        for name, value in state.items()
    }
    facts |= {name: fact for name, fact in base.facts.items() if name.startswith(ENCODER)}
    weights.write(folder, facts, lambda name: state[name] if name in state else base.read(name))
    if model.base.added:
        name_languages(folder / "config.json", model.base.languages)


def name_languages(path: Path, languages: Mapping[str, int]) -> None:
    """Give a folder's config the languages that were added; the base's own, to which it may be
    linked, stays as it is.
    """
    config = json.loads(path.read_text("utf-8"))
    config["talker_config"]["codec_language_id"] = dict(languages)
    path.unlink()
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")


def tensors(model: Speech) -> dict[str, Tensor]:
    """A whole model's tensors under the stock names."""
    found = {f"talker.{name}": value for name, value in model.talker.state_dict().items()}
    if model.speaker_encoder is not None:
        encoder = model.speaker_encoder.state_dict()
        found |= {f"{ENCODER}{name}": value for name, value in encoder.items()}
    return found


def copy_rest(base: Path, folder: Path, editable: bool = False) -> None:
    """Everything of a model's folder but its weights and the page about it; linked where the disk
    allows, since none of it ever changes. If it is `editable`, nothing but weights is linked:
    whoever edits a linked file edits the base.
    """
    for path in sorted(base.rglob("*")):
        name = path.relative_to(base)
        top = name.parts[0]
        if path.is_dir() or top in OURS or top.startswith(".") or top == "README.md":
            continue
        if len(name.parts) == 1 and (
            path.suffix in (".safetensors", ".bin", ".pt") or top.endswith(".index.json")
        ):
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not editable or path.suffix == ".safetensors":
            link(path, target)
        else:
            shutil.copyfile(path, target)


def link(path: Path, target: Path) -> None:
    """A second name for a file, or a copy where there can be none, as on another disk."""
    try:
        os.link(path.resolve(), target)
    except OSError:
        shutil.copyfile(path, target)


def save_adapter(model: Speech, folder: Path) -> None:
    """All trained tensors and nothing else; what they belong to stands in the recipe."""
    trained = {n: p.detach().cpu() for n, p in model.talker.named_parameters() if p.requires_grad}
    save_file({name: value.contiguous() for name, value in trained.items()}, folder / ADAPTER)


def load_adapter(model: Speech, folder: Path, names: set[str]) -> None:
    """Fill the tensors `names` from an adapter. Raises SheenError unless they are just those."""
    state = load_file(folder / ADAPTER)
    parameters = {n: p for n, p in model.talker.named_parameters() if n in names}
    if text := weights.differences(state, parameters):
        raise SheenError(f"{folder / ADAPTER} does not fit the recipe: it {text}")
    with torch.no_grad():
        for name, value in state.items():
            parameters[name].copy_(value)


def save_voices(voices: Mapping[str, Tensor], artifacts: Path) -> None:
    save_file({name: value.contiguous() for name, value in voices.items()}, artifacts / VOICES)


def load_voices(artifacts: Path) -> dict[str, Tensor]:
    """The vectors of the voices by name, in the order of the rows' numbers."""
    path = artifacts / VOICES
    return dict(sorted(load_file(path).items())) if path.is_file() else {}
