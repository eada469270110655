"""How long words take, and so where in the audio each is expected.

A word's position is the number of frames that the words before it take on average. Attention by
distance then finds the word that is being spoken; with plain positions the model speaks fluent
wrong words at the same loss.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

PRIOR = 5.0  # utterances that a word's length in characters counts as, against its measured frames
EXACT = (
    4096  # the largest vocabulary whose words are measured one by one; beyond it characters decide
)


@dataclass(frozen=True)
class Pace:
    """Per word of the vocabulary its mean frames; `rest` frames of an utterance belong to no
    word.
    """

    words: list[str]
    frames: list[float]
    rest: float

    def positions(self, ids: Sequence[int]) -> list[float]:
        """The frame at which each word should begin, the first at 0."""
        starts, at = [], 0.0
        for number in ids:
            starts.append(at)
            at += self.frames[number]
        return starts

    def expected(self, ids: Sequence[int]) -> float:
        """Mean frames of an utterance of these words."""
        return self.rest + sum(self.frames[number] for number in ids)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), ensure_ascii=False), "utf-8")

    @staticmethod
    def load(path: Path) -> "Pace":
        return Pace(**json.loads(path.read_text("utf-8")))


def fit(utterances: Iterable[tuple[Sequence[str], int]]) -> Pace:
    """Fit from (words, frames) pairs: frames = rest + sum over the words, by least squares drawn
    towards characters times the mean frames per character.
    """
    pairs = list(utterances)
    vocabulary = sorted({word for words, _ in pairs for word in words})
    total = sum(frames for _, frames in pairs)
    per_character = total / max(1, sum(len(word) + 1 for words, _ in pairs for word in words))
    prior = torch.tensor(
        [(len(word) + 1) * per_character for word in vocabulary], dtype=torch.float64
    )
    if len(vocabulary) > EXACT or not pairs:
        return Pace(vocabulary, prior.tolist(), 0.0)
    ids = {word: number for number, word in enumerate(vocabulary)}
    size = len(vocabulary) + 1  # the last unknown is `rest`
    prior = torch.cat([prior, torch.zeros(1, dtype=torch.float64)])
    normal, moment = (
        torch.diag(torch.full((size,), PRIOR, dtype=torch.float64)),
        torch.zeros(size, dtype=torch.float64),
    )
    for words, frames in pairs:
        tally = Counter([*(ids[word] for word in words), size - 1])
        used, counts = (
            torch.tensor(list(tally)),
            torch.tensor(list(tally.values()), dtype=torch.float64),
        )
        normal[used[:, None], used] += counts[:, None] * counts
        moment[used] += counts * (frames - counts @ prior[used])
    solved = (prior + torch.linalg.solve(normal, moment)).clamp_min(1.0)
    return Pace(vocabulary, solved[:-1].tolist(), float(solved[-1]))
