"""What a training leaves: a whole folder that the stock library loads, or an adapter for its base.

The library cannot save its own config, so files are copied from the base and the weights written
beside them.
"""

import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sheen_cli import SheenError
from sheen_qwen3_tts.model import Speech

ADAPTER = "adapter.safetensors"
VOICES = "voices.safetensors"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def save_whole(model: Speech, folder: Path) -> None:
    """All weights under the stock names, and every other file of the base."""
    copy_rest(model.base.folder, folder)
    state = {f"talker.{name}": value for name, value in model.talker.state_dict().items()}
    if model.speaker_encoder is not None:
        encoder = model.speaker_encoder.state_dict()
        state |= {f"speaker_encoder.{name}": value for name, value in encoder.items()}
    save_file(
        {name: value.cpu() for name, value in state.items()}, folder / WEIGHTS[0], {"format": "pt"}
    )


def copy_rest(base: Path, folder: Path) -> None:
    """Everything of a model's folder but its weights; linked where the disk allows, since none of
    it ever changes.
    """
    ours = {"training", "artifacts", "recipe.yaml", "manifest.json", ADAPTER}
    for path in sorted(base.rglob("*")):
        name = path.relative_to(base)
        top = name.parts[0]
        if path.is_dir() or top in ours or top.startswith(".") or str(name) in WEIGHTS:
            continue
        if len(name.parts) == 1 and path.suffix == ".safetensors":
            continue  # a shard
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
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
    if set(state) != names:
        missing, extra = sorted(names - set(state)), sorted(set(state) - names)
        raise SheenError(
            f"{folder / ADAPTER} does not fit the recipe: it lacks {missing[:3] or 'nothing'} and "
            f"has {extra[:3] or 'nothing'} besides"
        )
    parameters = dict(model.talker.named_parameters())
    with torch.no_grad():
        for name, value in state.items():
            parameters[name].copy_(value)


def save_voices(voices: dict[str, Tensor], artifacts: Path) -> None:
    save_file({name: value.contiguous() for name, value in voices.items()}, artifacts / VOICES)


def load_voices(artifacts: Path) -> dict[str, Tensor]:
    """The vectors of the voices by name, in the order of the rows' numbers."""
    path = artifacts / VOICES
    return dict(sorted(load_file(path).items())) if path.is_file() else {}
