"""The embedded default backbone: a small text-to-speech system that is trained from scratch on a
laptop.

A codec fitted from the data, a LLaMA of about 1.4 M parameters over words and codes, a closed
vocabulary. It shows the whole path of the tool offline and in minutes; it is not a voice to use.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from pydantic import Field, PositiveInt, model_validator
from safetensors.torch import load_file, save_file
from torch import nn

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
    Section,
    SheenError,
    Skip,
    Term,
    hookimpl,
)
from sheen_demo import batches, codec, pace, words
from sheen_demo.layout import BOOKS, CODES, IGNORE
from sheen_demo.text import split

# sheen_demo.voice brings in transformers, seconds that `prepare` and the listings need not spend:
# the hooks that want it import it.


class Options(Section):
    hidden: PositiveInt = 160  # width of the LLaMA
    layers: PositiveInt = 4
    heads: PositiveInt = 4
    dropout: float = Field(0.0, ge=0, lt=1)
    fine_weight: float = Field(1.0, ge=0)  # of codebooks 1 to 3 against codebook 0
    # Shares of the history that are replaced by random codes and blanked, in training.
    random_codes: float = Field(0.15, ge=0, le=1)
    blank_frames: float = Field(0.25, ge=0, le=1)
    vocoder_rounds: PositiveInt = 40  # iterations of Griffin-Lim

    @model_validator(mode="after")
    def _divides(self) -> "Options":
        if self.hidden % (2 * self.heads):
            raise ValueError(
                f"hidden ({self.hidden}) must be a multiple of twice the heads ({self.heads})"
            )
        return self


# Two clips by heart in seconds: a smaller model, and a history without faults.
TINY = (
    "model.hidden=64", "model.layers=2", "model.heads=2", "model.random_codes=0",
    "model.blank_frames=0", "train.max_steps=150", "train.learning_rate=4e-3",
)  # fmt: skip


@hookimpl
def describe() -> BackboneSpec:
    return BackboneSpec(
        options=Options,
        sample_rate=codec.RATE,
        terms=("coarse", "fine"),
        recipe="demo",
        frame_rate=codec.RATE / codec.FRAME,
        codebooks=(CODES,) * BOOKS,
        datasets={"demo-words": words.utterances},
        tiny=lambda folder: TINY,
        stacks=({"torch": ">=2.8", "transformers": "==4.57.3"},),
    )


@hookimpl
def prepare(
    recipe: Recipe[Options], clips: Iterable[Clip], artifacts: Path
) -> Iterator[Row | Skip]:
    lengths: list[tuple[list[str], int]] = []

    def read() -> Iterator[np.ndarray]:
        for clip in clips:
            if clip.split in (None, "train"):  # nothing is learnt from what is held out
                lengths.append((split(clip.text), -(-len(clip.audio) // codec.FRAME)))
                yield clip.audio

    fitted = codec.fit(read(), recipe.data.seed)
    fitted.save(artifacts / "codec.safetensors")
    paced = pace.fit(lengths)
    paced.save(artifacts / "pace.json")
    known = {word: number for number, word in enumerate(paced.words)}
    for clip in clips:
        said = split(clip.text)
        if unknown := [word for word in said if word not in known]:
            yield Skip("unknown-word", f"training never says {', '.join(unknown)}")
            continue
        ids = [known[word] for word in said]
        if not ids:
            yield Skip("empty-text", "no word is left without the punctuation")
            continue
        positions = [round(position, 3) for position in paced.positions(ids)]
        yield {
            "audio_codes": fitted.encode(clip.audio).tolist(),
            "words": ids,
            "positions": positions,
        }


@hookimpl
def collate(recipe: Recipe[Options], rows: Sequence[Row], seed: int | None) -> Batch:
    options = recipe.model
    if seed is None:
        return batches.collate(rows, None)
    return batches.collate(
        rows,
        lambda steps: batches.corrupt(steps, seed, options.random_codes, options.blank_frames),
    )


@hookimpl
def load(recipe: Recipe[Options], checkpoint: Path | None) -> nn.Module:
    if checkpoint is None:
        raise SheenError(
            "the demo has no pretrained model; train one with `sheen demo` or "
            "`sheen train --recipe demo`"
        )
    model = build(recipe, checkpoint / "artifacts")
    model.get_submodule("acoustic").load_state_dict(load_file(checkpoint / "model.safetensors"))
    return model


@hookimpl
def loss(recipe: Recipe[Options], model: nn.Module, batch: Batch, trace: bool) -> Loss:
    from sheen_demo.voice import asked, token_losses

    inputs = dict(batch.inputs)
    wanted = inputs.pop("targets")
    logits = model(**inputs)
    losses = token_losses(logits, wanted)
    counts = (wanted != IGNORE).sum((0, 1)).tolist()
    parts = {
        f"book_{book}": (losses[..., book].detach().sum(), counts[book]) for book in range(BOOKS)
    }
    fine = Term(losses[..., 1:].sum(), recipe.model.fine_weight)
    return Loss(
        {"coarse": Term(losses[..., 0].sum()), "fine": fine},
        parts,
        asked(logits, wanted) if trace else {},
    )


@hookimpl
def train(recipe: Recipe[Options], run: Run) -> None:
    run.fit(load(recipe, run.resume) if run.resume else build(recipe, run.artifacts), save)


@hookimpl
def synth(
    recipe: Recipe[Options], model: nn.Module, requests: Iterable[Request], trace: bool
) -> Iterator[Audio]:
    from sheen_demo.voice import speak

    yield from speak(model, requests, recipe.model.vocoder_rounds, trace)


def build(recipe: Recipe[Options], artifacts: Path) -> nn.Module:
    from sheen_demo.voice import DemoModel

    options = recipe.model
    return DemoModel(artifacts, options.hidden, options.layers, options.heads, options.dropout)


def save(model: nn.Module, folder: Path) -> None:
    save_file(model.get_submodule("acoustic").state_dict(), folder / "model.safetensors")
