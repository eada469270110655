"""Small real things for the tests: a folder of recorded words, prepared rows, a model after a few
steps.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"  # the models are tiny; more threads only wait for each other

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import soundfile
import torch
from accelerate.state import AcceleratorState
from typer.testing import CliRunner, Result
from warm import Warm

from sheen_cli.backbones import resolve
from sheen_cli.cli import app
from sheen_cli.prepare import prepare
from sheen_cli.rows import Rows
from sheen_demo import words

TINY = [
    "model.hidden=32", "model.layers=1", "model.heads=2", "train.max_minutes=null",
    "train.threads=null", "train.max_steps=3", "log.every=1", "log.samples=0",
]  # fmt: skip
DIGITS = ("one", "two", "three", "four")


def sheen(*arguments: object, code: int = 0) -> Result:
    """Run a command in this process; fails unless it ends with `code`."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exit_code != code:
        raise AssertionError(f"exit {result.exit_code}\n{result.output}") from result.exception
    return result


def write_folder(folder: Path, sentences: list[str], seed: int = 0, rate: int = 16_000) -> Path:
    """A data set as people have them: wavs/ and a headed metadata.csv."""
    (folder / "wavs").mkdir(parents=True)
    random = Random(seed)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, delimiter="|")
        table.writerow(["file_name", "text", "speaker", "language"])
        for number, sentence in enumerate(sentences):
            samples = words.compose(sentence.split(), random)
            soundfile.write(folder / "wavs" / f"{number:03}.wav", samples, rate)
            table.writerow([f"wavs/{number:03}.wav", sentence, f"voice {number % 2}", "en"])
    return folder


def digit_sentences(count: int, seed: int = 0) -> list[str]:
    """Different sequences of one to three digits."""
    random = Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found[" ".join(random.choices(DIGITS, k=random.randint(1, 3)))] = None
    return list(found)


# The longest files, which are handed out first, so that no worker ends with one while the others
# have nothing left; `-n 2 --dist loadfile --no-loadscope-reorder` takes them in this order.
LONGEST = [
    "reliability", "mission", "contract", "plugins", "demo", "qwen3_training", "qwen3_stock",
    "qwen3_backbone", "hub", "tracking", "qwen3_synth", "cli", "sources_hub", "doctor",
    "qwen3_basecheck", "qwen3_languages", "training", "lm_backbones", "lm_families", "qwen3_stacks",
    "qwen3_export",
]  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("folder") / "set", digit_sentences(24))


@pytest.fixture(scope="session")
def data(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder prepared for the demo backbone; tests read it and leave it as it is."""
    out = tmp_path_factory.mktemp("data") / "data"
    recipe, backbone = resolve("demo", [f"data.dataset={folder}", "data.validation=0.2"])
    prepare(recipe, backbone, out)
    return out


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Python whose processes have imported already what Qwen3-TTS and its training need."""
    modules = "sheen_qwen3_tts.stock:load", "sheen_cli.training", "peft"
    with Warm(tmp_path_factory.mktemp("warm"), *modules) as started:
        yield started.python


@pytest.fixture(scope="session")
def warm_kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Python whose processes have imported what the kit's fresh process imports, but no plugin,
    and hash as that one is asked to.
    """
    surroundings = {**os.environ, "PYTHONHASHSEED": "4321"}
    folder = tmp_path_factory.mktemp("kit")
    with Warm(folder, "sheen_cli.testing.child", environment=surroundings) as started:
        yield started.python


@pytest.fixture
def kit(warm_kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The contract kit, if it is run in this test, forks its fresh process from that one."""
    monkeypatch.setattr(sys, "executable", str(warm_kit))


@pytest.fixture(scope="module")
def forked(warm: Path) -> Iterator[None]:
    """From here on the processes that sheen itself starts are forked from that one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(warm))
        yield


@pytest.fixture
def rows(data: Path) -> Rows:
    return Rows(data / "train.jsonl")


@pytest.fixture(autouse=True)
def _own_precision() -> object:
    """accelerate knows one precision a process, and would keep it for the tests that follow."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def _threads_as_before() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
