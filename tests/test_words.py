"""The demo's data: what is held out is held out, and it is small and licensed."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import sheen_demo
from sheen_cli import Entry
from sheen_cli.backbones import resolve
from sheen_demo import words


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    recipe, _ = resolve("demo", [])
    return list(words.utterances(recipe))


def split(entries: list[Entry], name: str) -> list[str]:
    return [entry.text for entry in entries if entry.split == name]


def pairs(sentences: list[str]) -> set[tuple[str, str]]:
    return {pair for sentence in sentences for pair in pairwise(sentence.split())}


def test_sizes(entries: list[Entry]) -> None:
    assert [len(split(entries, name)) for name in ("train", "validation", "test")] == [1800, 60, 30]


def test_held_out_sentences_occur_nowhere_in_training(entries: list[Entry]) -> None:
    train = " | ".join(split(entries, "train"))
    for sentence in split(entries, "test") + split(entries, "validation"):
        assert sentence not in train


def test_every_held_out_sentence_has_a_transition_that_training_lacks(entries: list[Entry]) -> None:
    known = pairs(split(entries, "train"))
    for sentence in split(entries, "test") + split(entries, "validation"):
        assert pairs([sentence]) - known


def test_training_has_every_word_alone_and_in_company(entries: list[Entry]) -> None:
    train = split(entries, "train")
    for word in words.recordings():
        assert train.count(word) == 3
        assert sum(word in sentence.split() for sentence in train) > 10


def test_the_same_seed_gives_the_same_data(entries: list[Entry]) -> None:
    recipe, _ = resolve("demo", [])
    for entry, again in zip(entries[:400], words.utterances(recipe), strict=False):
        assert entry.text == again.text
        assert np.array_equal(entry.audio[0], again.audio[0])


def test_utterances_lie_on_the_codec_grid(entries: list[Entry]) -> None:
    assert all(len(entry.audio[0]) % words.GRID == 0 for entry in entries)


def test_the_embedded_recordings_are_small_and_come_with_their_licence() -> None:
    folder = Path(sheen_demo.__file__).parent / "words"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 700_000
    assert "Apache" in (folder / "LICENSE.md").read_text("utf-8")
