"""Recognises the demo's words without an ASR: connected-word dynamic time warping against the
recorded takes.

Log-mel frames at 40 Hz, mean-normalised; one Viterbi pass over all templates, in which every
template may follow every other. It knows the 210 recordings and nothing else, so it hears words,
not fluency.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch

from sheen_demo import codec, words

SWITCH = 3.0  # cost of beginning another word, in frames of average distance
SILENCE = "-"


def features(samples: np.ndarray) -> np.ndarray:
    """(n, 80): two mel frames averaged, floored 50 dB below the loudest, each frame's mean kept
    small.
    """
    mels = codec.stacked_mels(samples).view(-1, 2, codec.MELS).mean(1)
    mels = mels.clamp_min(float(mels.max()) - 8.0)
    return (mels - mels.mean(1, keepdim=True) * 0.7).numpy()


@cache
def templates() -> tuple[np.ndarray, list[tuple[str, int, int]]]:
    """All templates' frames in one array, and (word, first, last) of each."""
    frames, spans, at = [], [], 0
    for word, takes in words.recordings().items():
        for take in takes:
            mine = features(take)
            frames.append(mine)
            spans.append((word, at, at + len(mine) - 1))
            at += len(mine)
    quiet = features(np.random.default_rng(0).normal(0, 1e-4, codec.FRAME).astype(np.float32))[:1]
    return np.concatenate([*frames, quiet]), [*spans, (SILENCE, at, at)]


def recognise(samples: np.ndarray) -> list[str]:
    """The words heard in the samples (16 kHz)."""
    heard, (known, spans) = features(samples), templates()
    distance = torch.cdist(torch.from_numpy(heard), torch.from_numpy(known)).numpy()
    distance /= distance.mean()
    first = np.array([span[1] for span in spans])
    last = np.array([span[2] for span in spans])
    starts = np.zeros(len(known), bool)
    starts[first] = True
    cost = np.full(len(known), np.inf)
    cost[first] = distance[0, first]
    came = np.zeros(
        (len(heard), len(known)), np.int64
    )  # where in the utterance the present word began
    came[0] = 0
    ended: list[tuple[int, int]] = []  # per frame: best finished template, and its first frame
    finished = 0.0  # its cost
    for t in range(len(heard)):
        if t:
            step = np.concatenate([[np.inf], cost[:-1]])
            skip = np.concatenate([[np.inf, np.inf], cost[:-2]])
            step[starts] = skip[starts] = np.inf
            second = np.concatenate([[False], starts[:-1]])
            skip[second] = np.inf
            options = np.stack([cost + 0.1, step, skip + 0.1])
            choice = options.argmin(0)
            begun = np.stack([came[t - 1], np.roll(came[t - 1], 1), np.roll(came[t - 1], 2)])
            best, where = options.min(0), begun[choice, np.arange(len(known))]
            enter = finished + SWITCH
            better = starts & (enter < best)
            best[better], where[better] = enter, t
            cost, came[t] = best + distance[t], where
        winner = int(np.argmin(cost[last]))
        finished = cost[last[winner]]
        ended.append((winner, int(came[t, last[winner]])))
    result, t = [], len(heard) - 1
    while t >= 0:
        winner, begin = ended[t]
        if spans[winner][0] != SILENCE:
            result.append(spans[winner][0])
        t = begin - 1
    return result[::-1]


def edits(wanted: Sequence[str], heard: Sequence[str]) -> int:
    """Levenshtein distance between two sequences."""
    previous = list(range(len(heard) + 1))
    for i, word in enumerate(wanted, 1):
        current = [i]
        for j, other in enumerate(heard, 1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (word != other)))
        previous = current
    return previous[-1]


def accuracy(spoken: Sequence[tuple[str, np.ndarray]]) -> float:
    """Share of words right over (text, samples) pairs: 1 - word error rate, not below 0."""
    wrong = sum(edits(text.split(), recognise(samples)) for text, samples in spoken)
    return max(0.0, 1 - wrong / sum(len(text.split()) for text, _ in spoken))
