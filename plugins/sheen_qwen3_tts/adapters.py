"""What is trained: everything that no pattern freezes, or adapters on the talker's layers."""

import re
from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any

from torch import nn

from sheen_cli import Group, SheenError
from sheen_qwen3_tts.model import Speech

ATTENTION = r"self_attn\.(?:q|k|v|o)_proj"
MLP = r"mlp\.(?:gate|up|down)_proj"


def targets(mlp: bool, subtalker: bool) -> str:
    """The modules below `talker` that get an adapter, as a pattern for their whole names."""
    where = r"(?:code_predictor\.)?model" if subtalker else "model"
    what = f"(?:{ATTENTION}|{MLP})" if mlp else ATTENTION
    return rf"{where}\.layers\.\d+\.{what}"


def attach(model: Speech, rank: int, alpha: float, dropout: float, pattern: str) -> list[str]:
    """Put adapters into the talker, in place, and freeze the rest; the adapters' names."""
    from peft import LoraConfig, inject_adapter_in_model

    model.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=pattern)
    inject_adapter_in_model(config, model.talker)
    return [name for name, p in model.talker.named_parameters() if p.requires_grad]


def freeze(model: Speech, patterns: Sequence[str]) -> None:
    """Freeze the speaker encoder and whatever a pattern names. Raises SheenError for a pattern that
    names nothing.
    """
    if model.speaker_encoder is not None:
        model.speaker_encoder.requires_grad_(False)
    named: dict[str, nn.Parameter] = dict(model.talker.named_parameters())
    for pattern in patterns:
        found = [name for name in named if fnmatch(name, pattern)]
        if not found:
            raise SheenError(f"model.freeze: no parameter of the talker is named '{pattern}'")
        for name in found:
            named[name].requires_grad_(False)


def groups(model: Speech, projection_rate: float | None) -> list[Group]:
    """What is trained, the text projection at a rate of its own; no decay of vectors and tables."""
    named = [(n, p) for n, p in model.talker.named_parameters() if p.requires_grad]
    projection = [p for n, p in named if n.startswith("text_projection.")]
    rest = [(n, p) for n, p in named if not n.startswith("text_projection.")]
    plain: list[Any] = [p for n, p in rest if p.ndim < 2 or re.search("embedding", n)]
    chosen = {id(p) for p in plain}
    return [
        Group([p for _, p in rest if id(p) not in chosen]),
        Group(plain, weight_decay=0.0),
        Group(projection, projection_rate),
    ]
