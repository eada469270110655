"""Qwen3 and SNAC at 24 kHz: text, then seven tokens for every frame of 85 ms. Any causal language
model of transformers can be its base; how a sequence is written is the recipe's choice.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sheen_cli import (
    Audio,
    BackboneSpec,
    Batch,
    Clip,
    Loss,
    Recipe,
    Request,
    Row,
    Run,
    Skip,
    hookimpl,
)
from sheen_lm import hooks
from sheen_lm.options import Options as Shared

if TYPE_CHECKING:
    from torch import nn


class Options(Shared):
    base: str = "Qwen/Qwen3-0.6B"  # a causal language model: a folder or a Hub id
    codec: str = "hubertsiuzdak/snac_24khz"  # a folder or a Hub id
    family: str = "sheen"  # the convention's name; see `convention`


def tiny(folder: Path) -> Sequence[str]:
    from sheen_lm import miniature

    base = miniature.base(folder / "base", "qwen3")
    codec = miniature.snac(folder / "codec", codebook_size=256)
    return [
        f"model.base={base}",
        f"model.codec={codec}",
        *hooks.TINY,
        "model.convention={codes: {stride: 256, sizes: [256, 256, 256, 256, 256, 256, 256]}}",
    ]


@hookimpl
def describe(recipe: Recipe[Options] | None) -> BackboneSpec:
    return hooks.describe(Options() if recipe is None else recipe.model, "qwen-snac-lora", tiny)


@hookimpl
def prepare(
    recipe: Recipe[Options], clips: Iterable[Clip], artifacts: Path
) -> Iterator[Row | Skip]:
    yield from hooks.prepare(recipe, clips, artifacts)


@hookimpl
def collate(
    recipe: Recipe[Options], rows: Sequence[Row], seed: int | None, artifacts: Path
) -> Batch:
    return hooks.collate(recipe, rows, seed, artifacts)


@hookimpl
def load(recipe: Recipe[Options], checkpoint: Path | None) -> "nn.Module":
    return hooks.load(recipe, checkpoint)


@hookimpl
def loss(recipe: Recipe[Options], model: "nn.Module", batch: Batch, trace: bool) -> Loss:
    return hooks.loss(model, batch, trace)


@hookimpl
def train(recipe: Recipe[Options], run: Run) -> None:
    hooks.train(recipe, run)


@hookimpl
def synth(
    recipe: Recipe[Options], model: "nn.Module", requests: Iterable[Request], trace: bool
) -> Iterator[Audio]:
    yield from hooks.synth(recipe, model, requests, trace)


@hookimpl
def export(recipe: Recipe[Options], checkpoint: Path, kind: str, folder: Path) -> str:
    return hooks.export(recipe, checkpoint, kind, folder)
