"""The embedded default backbone: a small text-to-speech system that is trained from scratch on a
laptop.

A codec fitted from the data, a LLaMA of about 1.4 M parameters over words and codes, a closed
vocabulary. It shows the whole path of the tool offline and in minutes; it is not a voice to use.
"""

from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, PositiveInt
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
from sheen_demo import codec, layout, pace, words
from sheen_demo.codec import Codec
from sheen_demo.generate import Prompt, Speech, generate, left_padded
from sheen_demo.layout import BLANK, CODES, END, IGNORE, delay, targets
from sheen_demo.model import AcousticModel
from sheen_demo.pace import Pace

LONGEST = 1.6  # the most frames of a sentence, as a multiple of the expected ones
SPARE = 10  # frames added to that, for short sentences
LISTED = 100  # words named in an error


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


class DemoModel(nn.Module):
    """The acoustic model, with what it needs to speak: codec, word list and pace."""

    def __init__(self, options: Options, artifacts: Path) -> None:
        super().__init__()
        self.pace = Pace.load(artifacts / "pace.json")
        self.codec = Codec.load(artifacts / "codec.safetensors")
        self.acoustic = AcousticModel(
            len(self.pace.words), options.hidden, options.layers, options.heads, options.dropout
        )

    def forward(self, words: Tensor, steps: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = self.acoustic(words, steps, positions, mask)
        return logits

    def prompt(self, request: Request) -> Prompt:
        """Raises SheenError for a word that the model has never heard."""
        spoken = split(request.text)
        known = {word: number for number, word in enumerate(self.pace.words)}
        if not spoken:
            raise SheenError(f"the text {request.text!r} holds no word")
        if unknown := [word for word in spoken if word not in known]:
            raise SheenError(unknown_words(unknown, self.pace.words))
        ids = [known[word] for word in spoken]
        frames = LONGEST * self.pace.expected(ids) + SPARE
        if request.max_seconds is not None:
            frames = min(frames, request.max_seconds * codec.RATE / codec.FRAME)
        return Prompt(ids, self.pace.positions(ids), max(1, int(frames)))


def unknown_words(unknown: Sequence[str], vocabulary: Sequence[str]) -> str:
    more = f" and {len(vocabulary) - LISTED} more" if len(vocabulary) > LISTED else ""
    close = [
        f"'{near[0]}' for '{word}'"
        for word in unknown
        if (near := get_close_matches(word, vocabulary, 1))
    ]
    hint = f" Did you mean {', '.join(close)}?" if close else ""
    return (
        f"the demo's voice does not know {', '.join(map(repr, unknown))}; it has a closed "
        f"vocabulary.{hint} "
        f"Its words: {' '.join(vocabulary[:LISTED])}{more}"
    )


def split(text: str) -> list[str]:
    """The words of a text: lower case, punctuation dropped except inside a word."""
    cleaned = "".join(
        character if character.isalnum() or character in "'-" else " "
        for character in text.casefold()
    )
    return [word.strip("'-") for word in cleaned.split() if word.strip("'-")]


@hookimpl
def describe() -> BackboneSpec:
    return BackboneSpec(
        options=Options,
        sample_rate=codec.RATE,
        terms=("coarse", "fine"),
        recipe="demo",
        frame_rate=codec.RATE / codec.FRAME,
        codebooks=(CODES,) * layout.BOOKS,
        datasets={"demo-words": words.utterances},
    )


@hookimpl
def prepare(
    recipe: Recipe[Options], clips: Iterable[Clip], artifacts: Path
) -> Iterator[Row | Skip]:
    lengths: list[tuple[list[str], int]] = []

    def read() -> Iterator[Any]:
        for clip in clips:
            lengths.append((split(clip.text), -(-len(clip.audio) // codec.FRAME)))
            yield clip.audio

    fitted = codec.fit(read(), recipe.data.seed)
    fitted.save(artifacts / "codec.safetensors")
    paced = pace.fit(lengths)
    paced.save(artifacts / "pace.json")
    known = {word: number for number, word in enumerate(paced.words)}
    for clip in clips:
        ids = [known[word] for word in split(clip.text)]
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
    prompts = [Prompt(row["words"], row["positions"], 0) for row in rows]
    delayed = [delay(torch.tensor(row["audio_codes"])) for row in rows]
    words, positions, mask = left_padded(prompts)
    length = max(len(steps) for steps in delayed)
    steps = torch.full((len(rows), length, layout.BOOKS), BLANK)
    wanted = torch.full_like(steps, IGNORE)
    for row, mine in enumerate(delayed):
        steps[row, : len(mine)] = mine
        wanted[row, : len(mine)] = targets(mine)
    positions = torch.cat([positions, torch.arange(1.0, length).expand(len(rows), -1)], 1)
    known = torch.stack([torch.arange(1, length) < len(mine) for mine in delayed]).long()
    if seed is not None:
        steps = corrupt(steps, recipe.model, torch.Generator().manual_seed(seed))
    return Batch(
        {
            "words": words,
            "steps": steps[:, :-1],
            "positions": positions,
            "mask": torch.cat([mask, known], 1),
            "targets": wanted,
        },
        {
            "coarse": int((wanted[..., 0] != IGNORE).sum()),
            "fine": int((wanted[..., 1:] != IGNORE).sum()),
        },
    )


def corrupt(steps: Tensor, options: Options, generator: torch.Generator) -> Tensor:
    """A history with faults, so that the model leans on the text and recovers from its own
    mistakes.
    """
    code = steps < CODES
    random = torch.rand(steps.shape, generator=generator) < options.random_codes
    steps = torch.where(
        code & random, torch.randint(CODES, steps.shape, generator=generator), steps
    )
    blank = torch.rand(steps.shape[:2], generator=generator) < options.blank_frames
    return torch.where(code & blank[..., None], BLANK, steps)


@hookimpl
def load(recipe: Recipe[Options], checkpoint: Path | None) -> nn.Module:
    if checkpoint is None:
        raise SheenError(
            "the demo has no pretrained model; train one with `sheen demo` or `sheen train "
            "--recipe demo`"
        )
    model = DemoModel(recipe.model, checkpoint / "artifacts")
    model.acoustic.load_state_dict(load_file(checkpoint / "model.safetensors"))
    return model


@hookimpl
def loss(recipe: Recipe[Options], model: nn.Module, batch: Batch) -> Loss:
    inputs = dict(batch.inputs)
    wanted = inputs.pop("targets")
    losses = token_losses(model(**inputs), wanted)
    counts = (wanted != IGNORE).sum((0, 1)).tolist()
    parts = {
        f"book_{book}": (losses[..., book].detach().sum(), counts[book])
        for book in range(layout.BOOKS)
    }
    fine = Term(losses[..., 1:].sum(), recipe.model.fine_weight)
    return Loss({"coarse": Term(losses[..., 0].sum()), "fine": fine}, parts)


def token_losses(logits: Tensor, wanted: Tensor) -> Tensor:
    """Logits (..., 4, 129) and targets (..., 4) -> negative log-likelihoods (..., 4) in float32,
    0 where ignored.
    """
    flat = cross_entropy(
        logits.float().flatten(0, -2), wanted.flatten(), ignore_index=IGNORE, reduction="none"
    )
    return flat.view(wanted.shape)


@hookimpl
def train(recipe: Recipe[Options], run: Run) -> None:
    torch.manual_seed(recipe.train.seed)
    model = (
        DemoModel(recipe.model, run.artifacts) if run.resume is None else load(recipe, run.resume)
    )
    run.fit(model, save)


def save(model: nn.Module, folder: Path) -> None:
    assert isinstance(model, DemoModel)
    weights = {name: tensor.contiguous() for name, tensor in model.acoustic.state_dict().items()}
    save_file(weights, folder / "model.safetensors")


@hookimpl
def synth(
    recipe: Recipe[Options], model: nn.Module, requests: Iterable[Request]
) -> Iterator[Audio]:
    assert isinstance(model, DemoModel)
    model.eval()
    for speech in generate(model.acoustic, [model.prompt(request) for request in requests]):
        samples = model.codec.decode(speech.codes, recipe.model.vocoder_rounds)
        stop = "end" if speech.ended else "length"
        yield Audio(samples, codec.RATE, speech.codes.numpy(), nll(speech), stop)


def nll(speech: Speech) -> dict[str, float]:
    """Summed negative log-likelihood of the emitted codes, by loss term; an END that the limit
    forced is not counted.
    """
    wanted = targets(speech.steps)
    if not speech.ended:
        wanted = wanted.masked_fill(speech.steps == END, IGNORE)
    losses = token_losses(speech.logits, wanted)
    return {"coarse": float(losses[..., 0].sum()), "fine": float(losses[..., 1:].sum())}
