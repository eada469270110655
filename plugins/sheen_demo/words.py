"""The demo's embedded data: recorded single words, composed into utterances.

Seventy words in three takes lie in the package as one Opus stream. A seeded grammar draws single
words, word salad and short announcements; `compose` lays the recordings on the grid of the
codec's frames, so that a recording gives the same codes wherever it stands. Sentences of the
validation and test splits, and at least one word-to-word transition in each of them, occur
nowhere in training.
"""

import csv
import itertools
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from random import Random
from typing import Any

import numpy as np
import soundfile

from sheen_cli import Entry, Recipe

RATE = 16_000
GRID = 800  # samples: one frame of the codec at 16 kHz, 20 Hz
FADE = 400  # samples
# The takes are citation forms. "to" said alone ends in a long vowel that is heard as "to a" before
# a city's name.
CONNECTED = {"to": 0.58}
# Shares of the slow, plain and quick takes: the quicker ones join up better.
TEMPI = (0.2, 0.35, 0.45)
TRAIN, VALIDATION, TEST = 1_800, 60, 30  # utterances per split

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEENS = [
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["twenty", "thirty", "forty", "fifty"]
DAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
MONTHS = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
]
CITIES = ["berlin", "boston", "chicago", "denver", "dublin", "london", "madrid", "paris"]
ANNOUNCEMENTS = (
    "the train to CITY leaves at TIME",
    "the bus to CITY leaves at TIME",
    "the train from CITY to CITY leaves at TIME",
    "the bus from CITY leaves from gate NUMBER",
    "the flight to CITY leaves from gate NUMBER",
    "flight DIGIT DIGIT DIGIT leaves from gate NUMBER",
    "flight DIGIT DIGIT DIGIT from CITY leaves at TIME",
    "your number is DIGIT DIGIT DIGIT",
    "your extension is DIGIT DIGIT DIGIT DIGIT",
    "your flight to CITY is flight DIGIT DIGIT DIGIT",
    "today is DAY MONTH DATE",
    "tomorrow is DAY MONTH DATE",
    "the time is TIME",
    "your gate is NUMBER",
    "your location is CITY",
    "the bus leaves DAY PART at TIME",
    "the train leaves today at TIME",
    "your train to CITY leaves tomorrow PART",
    "the flight from CITY is DAY MONTH DATE",
)

Transition = tuple[str, str]


@cache
def recordings() -> dict[str, list[np.ndarray]]:
    """Word -> its takes, float32 at 16 kHz, each padded with silence to whole frames."""
    folder = files("sheen_demo") / "words"
    with (folder / "words.opus").open("rb") as stream:
        samples, rate = soundfile.read(stream, dtype="float32")
    assert rate == RATE
    takes: dict[str, list[np.ndarray]] = {}
    for row in csv.DictReader((folder / "words.csv").read_text("utf-8").splitlines()):
        start, count = int(row["start"]), int(row["samples"])
        clip = samples[start : start + int(count * CONNECTED.get(row["word"], 1.0))].copy()
        clip[-FADE:] *= np.linspace(1, 0, FADE, dtype=np.float32)
        takes.setdefault(row["word"], []).append(np.pad(clip, (0, -len(clip) % GRID)))
    return takes


def compose(words: Sequence[str], random: Random, tempo: int | None = None) -> np.ndarray:
    """The utterance's samples: one take a word, one tempo for most utterances, at times a frame's
    pause.

    `tempo` 0, 1 or 2 asks for the slow, plain or quick takes; by default it is drawn.
    """
    takes = recordings()
    steady = tempo is not None or random.random() < 0.8
    tempo = random.choices(range(3), TEMPI)[0] if tempo is None else tempo
    parts = [np.zeros(GRID, np.float32)]
    for word in words:
        parts.append(takes[word][tempo if steady else random.choices(range(3), TEMPI)[0]])
        parts.append(np.zeros(GRID * random.choice((0, 0, 0, 1)), np.float32))
    parts.append(np.zeros(2 * GRID, np.float32))
    return np.concatenate(parts)


def sentence(random: Random) -> tuple[str, ...]:
    """One announcement of the grammar."""
    return tuple(
        word for slot in random.choice(ANNOUNCEMENTS).split() for word in fill(slot, random)
    )


def fill(slot: str, random: Random) -> list[str]:
    match slot:
        case "CITY":
            return [random.choice(CITIES)]
        case "DIGIT":
            return [random.choice(DIGITS)]
        case "DAY":
            return [random.choice(DAYS)]
        case "MONTH":
            return [random.choice(MONTHS)]
        case "PART":
            return [random.choice(("morning", "evening"))]
        case "DATE":
            return number(random.randint(1, 31))
        case "NUMBER":
            return number(random.randint(1, 59))
        case "TIME":
            return number(random.randint(1, 12)) + number(
                random.choice((*range(10, 60), 10, 15, 20, 30, 40, 50))
            )
    return [slot]


def number(value: int) -> list[str]:
    """1..59 in words."""
    if value < 10:
        return [DIGITS[value]]
    if value < 20:
        return [TEENS[value - 10]]
    tens, ones = divmod(value, 10)
    return [TENS[tens - 2], *([DIGITS[ones]] if ones else [])]


def salad(random: Random) -> tuple[str, ...]:
    return tuple(random.choice(sorted(recordings())) for _ in range(random.randint(2, 4)))


def transitions(words: Sequence[str]) -> set[Transition]:
    return set(itertools.pairwise(words))


def held_out(random: Random, count: int) -> tuple[list[tuple[str, ...]], set[Transition]]:
    """`count` sentences, each with a transition of its own that training must not contain; and
    those transitions.

    A word gives up at most one of its followers and one of its predecessors, and never one inside
    a template's fixed text, so training still sees every word in company.
    """
    fixed = {pair for template in ANNOUNCEMENTS for pair in transitions(template.split())}
    sentences: list[tuple[str, ...]] = []
    banned: set[Transition] = set()
    while len(sentences) < count:
        words = salad(random) if random.random() < 0.2 else sentence(random)
        left, right = {a for a, _ in banned}, {b for _, b in banned}
        pairs = sorted(transitions(words) - fixed)
        free = [pair for pair in pairs if pair[0] not in left and pair[1] not in right]
        if words in sentences or not (free or transitions(words) & banned):
            continue
        if not transitions(words) & banned:
            banned.add(random.choice(free))
        sentences.append(words)
    return sentences, banned


def utterances(recipe: Recipe[Any]) -> Iterator[Entry]:
    """The whole data set in a fixed order: held-out sentences, every single take, then salad and
    announcements.
    """
    random = Random(recipe.data.seed)
    unseen, banned = held_out(random, VALIDATION + TEST)
    for index, words in enumerate(unseen):
        yield entry(words, compose(words, random), "test" if index < TEST else "validation")
    for word in recordings():
        for tempo in range(3):
            yield entry((word,), compose((word,), random, tempo), "train")
    drawn = set(unseen)
    for _ in range(TRAIN - 3 * len(recordings())):
        words = unseen[0]
        while words in drawn or transitions(words) & banned:
            words = salad(random) if random.random() < 0.35 else sentence(random)
        drawn.add(words)
        yield entry(words, compose(words, random), "train")


def entry(words: Sequence[str], samples: np.ndarray, split: str) -> Entry:
    return Entry(" ".join(words), (samples, RATE), "-".join(words), "kokoro-af-heart", "en", split)
