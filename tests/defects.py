"""Backbones with one defect each, made of the good one of tests/third_party; each carries the name
of the rule that it breaks.

Imported as a plugin (`RULE = defects:RULE`), so it needs sheen_bands, and the folder of the
recipes in the environment.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import sheen_bands as good
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

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
    Term,
    hookimpl,
)

TINY = ("model.hidden=96", "train.max_steps=50", "train.learning_rate=0.03")
HOOKS = ("describe", "prepare", "collate", "load", "loss", "train", "synth")


def defective(rule: str, *hooks: Callable[..., Any], **spec: Any) -> SimpleNamespace:
    """The good backbone under another name, with some hooks replaced, or some of its spec."""

    def describe() -> BackboneSpec:
        recipe = f"{os.environ['DEFECTS']}/{rule}.yaml"
        return replace(good.describe(), recipe=recipe, tiny=lambda folder: TINY, **spec)

    mended = {hook.__name__: hookimpl(hook) for hook in (describe, *hooks)}
    return SimpleNamespace(**{name: mended.get(name, getattr(good, name)) for name in HOOKS})


def trained_as(voice: type[good.Voice]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`load` and `train` for another model class."""

    def load(recipe: Recipe, checkpoint: Path) -> good.Voice:
        model = voice(recipe.model.hidden)
        model.load_state_dict(load_file(checkpoint / "model.safetensors"))
        return model

    def train(recipe: Recipe, run: Run) -> None:
        run.fit(load(recipe, run.resume) if run.resume else voice(recipe.model.hidden), good.save)

    return load, train


# --- the package ---------------------------------------------------------------------------------

hooks = defective("hooks", api=7)
describe = defective("describe", prepared_by=("model.codex",))

# --- rows and batches ----------------------------------------------------------------------------


def _numbered_keys(clips: Iterable[Clip]) -> Iterator[Row]:
    for row in good.prepare(clips):
        yield {**row, "pace": {1: 0.5}}


def _unseeded_augmentation(rows: Sequence[Row], seed: int | None) -> Batch:
    batch = good.collate(rows)
    if seed is not None:
        batch.inputs["codes"] = torch.randint_like(batch.inputs["codes"], good.LEVELS)
    return batch


def _first_row_for_all(rows: Sequence[Row]) -> Batch:
    return good.collate([{**row, "text": rows[0]["text"]} for row in rows])


def _padding_is_a_target(rows: Sequence[Row]) -> Batch:
    batch = good.collate(rows)
    levels = batch.inputs["levels"]
    levels[:, :-1][levels[:, :-1] == good.IGNORE] = 0
    counts = {**batch.counts, "levels": int((levels != good.IGNORE).sum())}
    return Batch(batch.inputs, counts)


def _end_is_cut(rows: Sequence[Row]) -> Batch:
    batch = good.collate(rows)
    batch.inputs["end"][batch.inputs["end"] == 1] = good.IGNORE
    return Batch(batch.inputs, {**batch.counts, "end": batch.counts["end"] - len(rows)})


def _hashed(rows: Sequence[Row]) -> Batch:
    batch = good.collate(rows)
    batch.inputs["tag"] = torch.tensor([hash(row["text"]) for row in rows])
    return batch


def _noise_as_targets(rows: Sequence[Row], seed: int | None) -> Batch:
    batch = good.collate(rows)
    if seed is not None:
        levels, generator = batch.inputs["levels"], torch.Generator().manual_seed(seed)
        noise = torch.randint(0, good.LEVELS, levels.shape, generator=generator)
        batch.inputs["levels"] = torch.where(levels == good.IGNORE, levels, noise)
    return batch


def named(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    function.__name__ = name
    return function


prepared = defective("prepared", named("prepare", _numbered_keys))
pure = defective("pure", named("collate", _unseeded_augmentation))
order = defective("order", named("collate", _first_row_for_all))
padding = defective("padding", named("collate", _padding_is_a_target))
end = defective("end", named("collate", _end_is_cut))
learns = defective("learns", named("collate", _noise_as_targets))


# --- losses and training -------------------------------------------------------------------------


def _dead_term(model: torch.nn.Module, batch: Batch, trace: bool) -> Loss:
    loss = good.loss(model, batch, trace)
    return replace(loss, terms={**loss.terms, "levels": Term(loss.terms["levels"].sum.detach())})


def _shifted_twice(model: torch.nn.Module, batch: Batch, trace: bool) -> Loss:
    """As by a causal LM that is given labels which were shifted before."""
    inputs = {key: value for key, value in batch.inputs.items() if key not in ("levels", "end")}
    logits = model(**inputs)[0][:, :-1].flatten(0, -2)
    wanted = batch.inputs["levels"][:, 1:].flatten()
    again = torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
    loss = good.loss(model, batch, trace)
    return replace(loss, terms={**loss.terms, "levels": Term(again)})


def _counts_letters(rows: Sequence[Row]) -> Batch:
    batch = good.collate(rows)
    letters = int(batch.inputs["lengths"].sum())
    return Batch(batch.inputs, {**batch.counts, "levels": batch.counts["levels"] + letters})


def _learns_letters(model: torch.nn.Module, batch: Batch, trace: bool) -> Loss:
    loss = good.loss(model, batch, trace)
    states, _ = model.reader(model.letter(batch.inputs["text"]))
    scores = model.head(states)[..., : good.LEVELS]
    wanted = (batch.inputs["text"] % good.LEVELS).masked_fill(
        torch.arange(states.shape[1]) >= batch.inputs["lengths"][:, None], good.IGNORE
    )
    extra = torch.nn.functional.cross_entropy(scores.mT, wanted, reduction="sum")
    levels = Term(loss.terms["levels"].sum + extra)
    return replace(loss, terms={**loss.terms, "levels": levels})


def _untagged(model: torch.nn.Module, batch: Batch, trace: bool) -> Loss:
    inputs = {key: value for key, value in batch.inputs.items() if key != "tag"}
    return good.loss(model, Batch(inputs, batch.counts), trace)


class Still(good.Voice):
    """Its start is never learnt."""

    def forward(self, text: Tensor, lengths: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        start = self.start.detach().expand(len(text), 1, -1)
        inputs = torch.cat([start, self.embed(codes)], 1)
        return self.predict(inputs, self.read(text, lengths))[:2]


class Leaking(good.Voice):
    """A position that predicts a frame has heard that frame."""

    def forward(
        self, text: Tensor, lengths: Tensor, codes: Tensor, frames: Tensor
    ) -> tuple[Tensor, Tensor]:
        start, heard = self.start.expand(len(text), 1, -1), self.embed(codes)
        known = torch.arange(codes.shape[1]) < frames[:, None]
        ahead = torch.cat([heard * known[..., None], torch.zeros_like(start)], 1)
        inputs = torch.cat([start, heard], 1) + ahead
        return self.predict(inputs, self.read(text, lengths))[:2]


def _with_frames(rows: Sequence[Row]) -> Batch:
    batch = good.collate(rows)
    batch.inputs["frames"] = torch.tensor([len(row["audio_codes"]) for row in rows])
    return batch


class Restless(good.Voice):
    """Its dropout goes on in eval mode, where it is compared."""

    def predict(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dropped = torch.nn.functional.dropout(inputs, 0.2, training=inputs.shape[1] > 1)
        return super().predict(dropped, state)


def _starts_anew(recipe: Recipe, run: Run) -> None:
    run.fit(good.Voice(recipe.model.hidden), good.save)


def _forgets(model: torch.nn.Module, folder: Path) -> None:
    state = {name: value for name, value in model.state_dict().items() if name != "start"}
    save_file(state, folder / "model.safetensors")


def _loads_the_rest(recipe: Recipe, checkpoint: Path) -> good.Voice:
    model = good.Voice(recipe.model.hidden)
    model.load_state_dict(load_file(checkpoint / "model.safetensors"), strict=False)
    return model


def _trains_and_forgets(recipe: Recipe, run: Run) -> None:
    model = _loads_the_rest(recipe, run.resume) if run.resume else good.Voice(recipe.model.hidden)
    run.fit(model, _forgets)


terms = defective("terms", named("loss", _dead_term))
targets = defective("targets", named("loss", _shifted_twice))
text = defective("text", named("collate", _counts_letters), named("loss", _learns_letters))
everywhere = defective("everywhere", named("collate", _hashed), named("loss", _untagged))
gradient = defective("gradient", *trained_as(Still))
logits = defective("logits", named("collate", _with_frames), *trained_as(Leaking))
steady = defective("steady", *trained_as(Restless))
resume = defective("resume", named("train", _starts_anew))
reload = defective("reload", named("load", _loads_the_rest), named("train", _trains_and_forgets))


# --- speech --------------------------------------------------------------------------------------


def spoken(ask: Callable[[Request], Request], tell: Callable[[Audio], Audio]) -> Callable[..., Any]:
    """A `synth` that changes what it is asked, or what it says."""

    def synth(model: torch.nn.Module, requests: Iterable[Request], trace: bool) -> Iterator[Audio]:
        for request in requests:
            yield tell(good.speak(model, ask(request), trace))

    return synth


def _unseeded(request: Request) -> Request:
    return replace(request, seed=int(torch.randint(1 << 31, ())))


def _padded(model: torch.nn.Module, requests: Iterable[Request], trace: bool) -> Iterator[Audio]:
    requests = list(requests)
    width = max(len(request.text) for request in requests)
    for request in requests:
        yield good.speak(model, replace(request, text=request.text.ljust(width)), trace)


def _averaged(audio: Audio) -> Audio:
    frames = max(1, len(audio.codes))
    return replace(audio, nll={name: value / frames for name, value in audio.nll.items()})


def same(value: Any) -> Any:
    return value


seeds = defective("seeds", spoken(_unseeded, same))
sound = defective("sound", spoken(same, lambda audio: replace(audio, rate=2 * audio.rate)))
limit = defective("limit", spoken(lambda request: replace(request, max_seconds=None), same))
together = defective("together", named("synth", _padded))
nll = defective("nll", spoken(same, _averaged))


# --- further defects, of rules that have one already ----------------------------------------------


class Gained(good.Voice):
    """What its sound is multiplied by is set where it is built, and not saved."""

    def __init__(self, hidden: int) -> None:
        super().__init__(hidden)
        self.gain = 0.0


def _gained(recipe: Recipe, run: Run) -> None:
    model = Gained(recipe.model.hidden)
    if run.resume:
        model.load_state_dict(load_file(run.resume / "model.safetensors"))
    model.gain = 1.0
    run.fit(model, good.save)


def _louder(model: Gained, requests: Iterable[Request], trace: bool) -> Iterator[Audio]:
    for request in requests:
        audio = good.speak(model, request, trace)
        yield replace(audio, samples=audio.samples * np.float32(model.gain))


def _counts_frames(rows: Sequence[Row]) -> Batch:
    batch = good.collate(rows)
    frames = batch.counts["levels"] // good.BANDS
    return Batch(batch.inputs, {**batch.counts, "levels": frames})


def _always_limited(request: Request) -> Request:
    return replace(request, max_seconds=1.0 * request.max_seconds)


def _with_speaker(rows: Sequence[Row]) -> Batch:
    return good.collate([{**row, "text": f"{row['text']} {row['speaker']}"} for row in rows])


def _first_speaker(rows: Sequence[Row]) -> Batch:
    return _with_speaker([{**row, "speaker": rows[0]["speaker"]} for row in rows])


def _by_speaker(request: Request) -> Request:
    return replace(request, text=f"{request.text} {request.speaker}")


silent = defective(
    "silent", spoken(same, lambda audio: replace(audio, samples=np.zeros_like(audio.samples)))
)
mute_after_load = defective(
    "mute_after_load", trained_as(Gained)[0], named("train", _gained), named("synth", _louder)
)
deaf_to_greedy = defective(
    "deaf_to_greedy", spoken(lambda request: replace(request, greedy=False), same)
)
miscounted = defective("miscounted", named("collate", _counts_frames))
not_a_number = defective(
    "not_a_number",
    spoken(same, lambda audio: replace(audio, nll=dict.fromkeys(audio.nll, float("nan")))),
)
limited = defective("limited", spoken(_always_limited, same))
first_speaker = defective(
    "first_speaker", named("collate", _first_speaker), spoken(_by_speaker, same), reads=("speaker",)
)
# --- no defect: voices by name; no codes ----------------------------------------------------------

voices = defective(
    "voices", named("collate", _with_speaker), spoken(_by_speaker, same), reads=("speaker",)
)


def _other_key(clips: Iterable[Clip]) -> Iterator[Row]:
    for row in good.prepare(clips):
        yield {"frames": row["audio_codes"]}


def _from_other_key(rows: Sequence[Row]) -> Batch:
    return good.collate([{**row, "audio_codes": row["frames"]} for row in rows])


codeless = defective(
    "codeless",
    named("prepare", _other_key),
    named("collate", _from_other_key),
    spoken(same, lambda audio: replace(audio, codes=None, nll={})),
    codebooks=None,
    frame_rate=None,
)
