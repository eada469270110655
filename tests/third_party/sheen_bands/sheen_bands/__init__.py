"""A backbone to learn from: a channel vocoder's bands as parallel codebooks, spoken by two GRUs.

A frame of 20 ms is the level of six bands, all predicted at once, and a flag that says whether the
speech has ended before it.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import PositiveInt
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

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

RATE, HOP = 8000, 160
EDGES = (100, 350, 700, 1200, 1900, 2800, 3900)  # of the bands, Hz
BANDS, LEVELS = len(EDGES) - 1, 16  # 16 levels of 4 dB
IGNORE = -100


class Options(Section):
    hidden: PositiveInt = 128


@hookimpl
def describe() -> BackboneSpec:
    return BackboneSpec(
        options=Options,
        sample_rate=RATE,
        terms=("levels", "end"),
        recipe="bands",
        frame_rate=RATE / HOP,
        codebooks=(LEVELS,) * BANDS,
        tiny=lambda folder: ["model.hidden=96", "train.max_steps=50", "train.learning_rate=0.03"],
    )


# --- the codec: levels of bands, and tones that have them ----------------------------------------


def encode(audio: np.ndarray) -> list[list[int]]:
    """Sound (n,) -> levels (frames, bands); the last frame is filled up with silence."""
    frames = np.pad(audio, (0, -len(audio) % HOP)).reshape(-1, HOP)
    power = np.abs(np.fft.rfft(frames * np.hanning(HOP), axis=1)) ** 2
    bins = (np.array(EDGES) * HOP / RATE).astype(int)
    energy = np.add.reduceat(power, bins, axis=1)[:, :BANDS] / HOP
    decibels = 10 * np.log10(energy + 1e-9)
    return np.clip(np.round(decibels / 4 + LEVELS - 3), 0, LEVELS - 1).astype(int).tolist()


def decode(levels: np.ndarray) -> np.ndarray:
    """Levels (frames, bands) -> sound (frames * HOP,) float32."""
    loudness = np.where(levels > 0, 10 ** ((levels - LEVELS) / 5), 0).repeat(HOP, axis=0)
    time = np.arange(len(loudness))[:, None] / RATE
    centres = np.sqrt(np.array(EDGES[1:]) * np.array(EDGES[:-1]))
    return (loudness * np.sin(2 * np.pi * centres * time)).sum(1).clip(-1, 1).astype(np.float32)


# --- the model -----------------------------------------------------------------------------------


class Voice(nn.Module):
    """One GRU reads the bytes of the text, the other goes on from its state, a frame a step."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.letter = nn.Embedding(256, hidden)
        self.reader = nn.GRU(hidden, hidden, batch_first=True)
        self.level = nn.Embedding(BANDS * LEVELS, hidden)
        self.start = nn.Parameter(torch.randn(hidden) * 0.1)
        self.speaker = nn.GRU(hidden, hidden, batch_first=True)
        self.head = nn.Linear(hidden, BANDS * LEVELS + 2)

    def read(self, text: Tensor, lengths: Tensor) -> Tensor:
        """Bytes (B, L), right-padded -> the state (1, B, hidden) after each row's last byte."""
        states, _ = self.reader(self.letter(text))
        return states[torch.arange(len(text)), lengths - 1][None].contiguous()

    def embed(self, codes: Tensor) -> Tensor:
        offsets = torch.arange(BANDS, device=codes.device) * LEVELS
        return self.level(codes + offsets).sum(2)

    def predict(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the levels (B, T, bands, 16) and of the end (B, T, 2), and the new state."""
        states, state = self.speaker(inputs, state)
        levels, end = self.head(states).split([BANDS * LEVELS, 2], -1)
        return levels.unflatten(-1, (BANDS, LEVELS)), end, state

    def forward(self, text: Tensor, lengths: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Position t has heard the frames before t: of T frames (B, T, bands) T + 1 positions."""
        start = self.start.expand(len(text), 1, -1)
        inputs = torch.cat([start, self.embed(codes)], 1)
        return self.predict(inputs, self.read(text, lengths))[:2]


# --- the hooks -----------------------------------------------------------------------------------


@hookimpl
def prepare(clips: Iterable[Clip]) -> Iterator[Row | Skip]:
    for clip in clips:
        yield {"audio_codes": encode(clip.audio)}


@hookimpl
def collate(rows: Sequence[Row]) -> Batch:
    text, lengths = letters([row["text"] for row in rows])
    frames = max(len(row["audio_codes"]) for row in rows)
    codes = torch.zeros(len(rows), frames, BANDS, dtype=torch.long)
    levels = torch.full((len(rows), frames + 1, BANDS), IGNORE)
    end = torch.full((len(rows), frames + 1), IGNORE)
    for number, row in enumerate(rows):
        mine = torch.tensor(row["audio_codes"])
        codes[number, : len(mine)] = levels[number, : len(mine)] = mine
        end[number, : len(mine)] = 0
        end[number, len(mine)] = 1
    inputs = {"text": text, "lengths": lengths, "codes": codes, "levels": levels, "end": end}
    counts = {name: int((inputs[name] != IGNORE).sum()) for name in ("levels", "end")}
    return Batch(inputs, counts)


@hookimpl
def load(recipe: Recipe[Options], checkpoint: Path | None) -> nn.Module:
    if checkpoint is None:
        raise SheenError("bands has no pretrained model; train one with `sheen train`")
    model = Voice(recipe.model.hidden)
    model.load_state_dict(load_file(checkpoint / "model.safetensors"))
    return model


@hookimpl
def loss(model: nn.Module, batch: Batch, trace: bool) -> Loss:
    inputs = dict(batch.inputs)
    wanted = {name: inputs.pop(name) for name in ("levels", "end")}
    logits = dict(zip(wanted, model(**inputs), strict=True))
    asked = {name: logits[name][wanted[name] != IGNORE] for name in wanted}
    terms = {
        name: Term(cross_entropy(asked[name], of[of != IGNORE], reduction="sum"))
        for name, of in wanted.items()
    }
    return Loss(terms, logits=asked if trace else {})


@hookimpl
def train(recipe: Recipe[Options], run: Run) -> None:
    run.fit(load(recipe, run.resume) if run.resume else Voice(recipe.model.hidden), save)


@hookimpl
def synth(model: nn.Module, requests: Iterable[Request], trace: bool) -> Iterator[Audio]:
    for request in requests:
        yield speak(model, request, trace)


def save(model: nn.Module, folder: Path) -> None:
    save_file(model.state_dict(), folder / "model.safetensors")


def letters(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The texts as bytes (B, L), right-padded, and their lengths (B,)."""
    rows = [torch.tensor(list(text.encode())) for text in texts]
    return nn.utils.rnn.pad_sequence(rows, True), torch.tensor([len(row) for row in rows])


@torch.inference_mode()
def speak(model: nn.Module, request: Request, trace: bool) -> Audio:
    """One frame a step, until the end is chosen or the limit is reached."""
    device = model.start.device
    text, lengths = (tensor.to(device) for tensor in letters([request.text]))
    seconds = request.max_seconds or 1 + 0.2 * len(request.text)
    limit, random = max(1, int(seconds * RATE / HOP)), torch.Generator().manual_seed(request.seed)
    inputs, state = model.start.expand(1, 1, -1), model.read(text, lengths)
    frames: list[Tensor] = []
    levels, ends = [], []
    while True:
        level, end, state = model.predict(inputs, state)
        ends.append(end[0, 0].cpu())
        ended = bool(frames) and int(choose(ends[-1], random, request.greedy))
        if ended or len(frames) == limit:
            break
        levels.append(level[0, 0].cpu())
        frames.append(choose(levels[-1], random, request.greedy))
        inputs = model.embed(frames[-1].to(device)[None, None])
    codes, scores = torch.stack(frames), {"levels": torch.cat(levels), "end": torch.stack(ends)}
    flags = torch.tensor([0] * len(frames) + [1])
    nll = {
        name: float(cross_entropy(scores[name], of.flatten(), reduction="sum"))
        for name, of in (("levels", codes), ("end", flags))
    }
    stop, scores = "end" if ended else "length", scores if trace else {}
    return Audio(decode(codes.numpy()), RATE, codes.numpy(), nll, stop, scores)


def choose(logits: Tensor, random: torch.Generator, greedy: bool) -> Tensor:
    """One of the choices (..., n): the likeliest, or drawn."""
    if greedy:
        return logits.argmax(-1)
    return torch.multinomial(
        logits.softmax(-1).view(-1, logits.shape[-1]), 1, generator=random
    ).view(logits.shape[:-1])
