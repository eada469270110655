"""LLaMA, or any causal language model, over the codes of any codec: Mimi, DAC, EnCodec, SNAC,
XCodec2, or codes that the data brings. Which tokens they are and how a sequence is written is the
recipe's choice.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import PositiveInt

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
    base: str = "meta-llama/Llama-3.2-1B"  # a causal language model: a folder or a Hub id
    codec: str = "kyutai/mimi"  # a folder or a Hub id
    codebooks: PositiveInt | None = 8  # of a codec that has more; None: all
    family: str = "books"  # the convention's name; see `convention`


def tiny(folder: Path) -> Sequence[str]:
    from sheen_lm import miniature

    base, codec = miniature.base(folder / "base", "llama"), miniature.mimi(folder / "codec")
    return [
        f"model.base={base}",
        f"model.codec={codec}",
        *hooks.TINY,
        "model.codebooks=4",
        "model.codebook_size=64",
    ]


@hookimpl
def describe(recipe: Recipe[Options] | None) -> BackboneSpec:
    return hooks.describe(Options() if recipe is None else recipe.model, "llama-codes-sft", tiny)


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
