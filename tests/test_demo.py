"""The demo as a whole, and that its words can be understood, without an ASR."""

import json
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest
import soundfile
import torch
from conftest import sheen
from matcher import accuracy, recognise

from sheen_cli import Entry, Request
from sheen_cli.backbones import resolve
from sheen_cli.checkpoints import resolve as checkpoint
from sheen_cli.rows import Rows
from sheen_cli.synthesis import Voice
from sheen_demo import words
from sheen_demo.codec import Codec

DIGITS = ("one", "two", "three", "four", "five", "six")


def heldout(run: Path) -> list[tuple[str, np.ndarray]]:
    lines = (run / "heldout" / "heldout.jsonl").read_text("utf-8").splitlines()
    return [
        (line["text"], soundfile.read(run / "heldout" / line["wav"], dtype="float32")[0])
        for line in map(json.loads, lines)
    ]


@pytest.fixture(scope="module")
def test_entries() -> list[Entry]:
    recipe, _ = resolve("demo", [])
    return [entry for entry, _ in zip(words.utterances(recipe), range(30), strict=False)]


def test_the_matcher_hears_recordings_and_not_noise(test_entries: list[Entry]) -> None:
    clean = [(entry.text, entry.audio[0]) for entry in test_entries[:10]]
    assert accuracy(clean) > 0.95
    swapped = [(text, other) for (text, _), (_, other) in pairwise(clean)]
    assert accuracy(swapped) < 0.5
    noise = np.random.default_rng(0).normal(0, 0.05, 48_000).astype(np.float32)
    assert accuracy([(text, noise) for text, _ in clean]) < 0.1


def test_the_codec_keeps_the_words(test_entries: list[Entry], data: Path) -> None:
    codec = Codec.load(data / "artifacts" / "codec.safetensors")  # fitted to four words only
    random = Random(0)
    spoken = [random.choices(["one", "two", "three", "four"], k=4) for _ in range(6)]
    back = [(" ".join(s), codec.decode(codec.encode(words.compose(s, random)))) for s in spoken]
    assert accuracy(back) > 0.9


def test_the_demo_steps_through_and_untrained_weights_say_nothing(tmp_path: Path) -> None:
    run, data = tmp_path / "run", tmp_path / "data"
    small = ["model.vocoder_rounds=8", "data.max_samples=300", "synth.max_seconds=2"]
    arguments = ["--out", run, "--data", data, "--max-steps", 2]
    result = sheen("demo", *arguments, *small)
    for part in (
        "1 of 4",
        "2 of 4",
        "3 of 4",
        "4 of 4",
        "it is no\nvoice to use",
        "closed vocabulary",
    ):
        assert part in result.output
    spoken = heldout(run)
    assert len(spoken) == 30 and [f"{n:02}.wav" for n in range(1, 31)] == sorted(
        path.name for path in (run / "heldout").glob("*.wav")
    )
    train = {row["text"] for row in Rows(data / "train.jsonl")}
    assert not train & {text for text, _ in spoken}
    assert accuracy(spoken[:12]) < 0.2
    assert max(len(sound) for _, sound in spoken) <= 2 * 16_000  # synth.max_seconds
    before = (run / "last" / "model.safetensors").read_bytes()
    assert "add --overwrite" in sheen("demo", *arguments, *small, code=2).output
    sheen("demo", *arguments, *small, "--overwrite")
    # step-budgeted, so deterministic
    assert (run / "last" / "model.safetensors").read_bytes() == before


def test_a_short_training_says_new_sentences_of_few_words(tmp_path: Path) -> None:
    """Six words, unseen sequences: the paced positions find the word that is due."""
    folder, random = tmp_path / "set", Random(5)
    folder.mkdir()
    sentences = {tuple(random.choices(DIGITS, k=random.randint(2, 4))) for _ in range(150)}
    unseen = [" ".join(s) for s in sorted(sentences)[:12]]
    lines = []
    for number, spoken in enumerate(sorted(sentences)[12:]):
        soundfile.write(
            folder / f"{number}.wav", words.compose(spoken, random, tempo=1), words.RATE
        )
        lines.append(f"{number}|{' '.join(spoken)}\n")
    (folder / "metadata.csv").write_text("".join(lines))
    data, run = tmp_path / "data", tmp_path / "run"
    sheen("prepare", "--recipe", "demo", "--dataset", folder, "--out", data)
    settings = ["train.max_minutes=null", "train.threads=1", "model.hidden=96", "model.layers=2"]
    sheen("train", "--recipe", "demo", "--data", data, "--out", run, "--max-steps", 120, *settings)
    voice = Voice(run)
    said = [
        (text, audio.samples)
        for text, audio in zip(unseen, voice.speak(list(map(Request, unseen))), strict=True)
    ]
    score = accuracy(said)
    assert score >= 0.8, [(text, recognise(samples)) for text, samples in said]


@pytest.mark.slow
def test_a_full_demo_says_at_least_eight_words_of_ten(tmp_path: Path) -> None:
    run = tmp_path / "run"
    torch.set_num_threads(2)
    sheen("demo", "--out", run, "--data", tmp_path / "data")
    assert checkpoint(run).is_dir()
    spoken = heldout(run)
    score = accuracy(spoken)
    assert score >= 0.8, [(text, recognise(samples)) for text, samples in spoken]
