"""The demo's voice: the acoustic model with the codec, words and pace that it needs to speak."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sheen_cli import Audio, Request, SheenError
from sheen_demo import codec
from sheen_demo.batches import Prompt
from sheen_demo.codec import Codec
from sheen_demo.generate import Speech, generate
from sheen_demo.layout import IGNORE, targets
from sheen_demo.model import AcousticModel
from sheen_demo.pace import Pace
from sheen_demo.text import split, unknown_words

LONGEST = 1.6  # the most frames of a sentence, as a multiple of the expected ones
SPARE = 10  # frames added to that, for short sentences


class DemoModel(nn.Module):
    """The acoustic model, with what it needs to speak: codec, word list and pace."""

    def __init__(
        self, artifacts: Path, hidden: int, layers: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.pace = Pace.load(artifacts / "pace.json")
        self.codec = Codec.load(artifacts / "codec.safetensors")
        self.acoustic = AcousticModel(len(self.pace.words), hidden, layers, heads, dropout)

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


def speak(
    model: nn.Module, requests: Iterable[Request], rounds: int, trace: bool = False
) -> Iterator[Audio]:
    """One Audio a request; all sentences are generated together, then decoded one by one."""
    assert isinstance(model, DemoModel)
    model.eval()
    for speech in generate(model.acoustic, [model.prompt(request) for request in requests]):
        samples = model.codec.decode(speech.codes, rounds)
        stop = "end" if speech.ended else "length"
        logits = asked(speech.logits, targets(speech.steps)) if trace else {}
        yield Audio(samples, codec.RATE, speech.codes.numpy(), nll(speech), stop, logits)


def token_losses(logits: Tensor, wanted: Tensor) -> Tensor:
    """Logits (..., 4, 129) and targets (..., 4) -> negative log-likelihoods (..., 4) in float32,
    0 where ignored.
    """
    flat = cross_entropy(
        logits.float().flatten(0, -2), wanted.flatten(), ignore_index=IGNORE, reduction="none"
    )
    return flat.view(wanted.shape)


def asked(logits: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """The logits (targets, 129) of each loss term's targets, row by row and step by step."""
    due = wanted != IGNORE
    return {
        "coarse": logits[..., 0, :][due[..., 0]].detach(),
        "fine": logits[..., 1:, :][due[..., 1:]].detach(),
    }


def nll(speech: Speech) -> dict[str, float]:
    """Summed negative log-likelihood of the emitted codes and of the END after them, by loss term,
    whether the model chose that END or the limit did.
    """
    losses = token_losses(speech.logits, targets(speech.steps))
    return {"coarse": float(losses[..., 0].sum()), "fine": float(losses[..., 1:].sum())}
