"""What is trained: everything that no pattern freezes, or adapters on the talker's layers; in which
precision, and at which rate.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sheen_cli import Group, Recipe
from sheen_lm import trained
from sheen_qwen3_tts.model import LANGUAGES, Speech

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


def languages(model: Speech) -> None:
    """Train the rows of new languages, which adapters would leave as they are: a table of their
    own beside the frozen one.
    """
    if model.base.added:
        table = model.talker.model.codec_embedding.weight
        rows = [row for row, _ in model.base.added.values()]
        own = nn.Parameter(table.detach()[rows].float())
        model.talker.register_parameter(LANGUAGES, own)


def freeze(model: Speech, patterns: Sequence[str]) -> None:
    """Freeze the speaker encoder and whatever a pattern names. Raises SheenError for a pattern that
    names nothing.
    """
    if model.speaker_encoder is not None:
        model.speaker_encoder.requires_grad_(False)
    trained.freeze(model.talker, patterns)


def kept(recipe: Recipe[Any]) -> torch.dtype | None:
    """What to load a base in that is to be trained; None is as it is stored. With bf16, what is
    frozen stays in half the memory: all but the adapters, or what a whole training leaves out.
    """
    if recipe.train.precision != "bf16":
        return torch.float32
    return torch.bfloat16 if recipe.model.lora else None


def groups(
    model: Speech, projection_rate: float | None, subtalker_rate: float | None
) -> list[Group]:
    """What is trained, text projection and sub-talker at rates of their own; no decay of vectors
    and tables.
    """
    rates = {"text_projection.": projection_rate, "code_predictor.": subtalker_rate, "": None}

    def settings(name: str, parameter: nn.Parameter) -> tuple[float | None, float | None]:
        part = next(part for part in rates if name.startswith(part))
        return rates[part], 0.0 if parameter.ndim < 2 or "embedding" in name else None

    return trained.groups(model.talker, settings)
