"""Text is cut into the same tokens in training, in the stock wrapper and in what is exported.

transformers 4.57.3 swaps the pattern that splits text before it is merged, but only for
vocabularies of more than 100,000 entries, and only if config.json does not name an older version or
a much newer one. The tiny base has 273 entries; the one here has fillers behind them.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import sheen

from sheen_cli import SheenError, checkpoints
from sheen_cli.backbones import resolve
from sheen_qwen3_tts import adapted, base, checkpoint, exports, miniature, model, stock

OVER = 100_000  # entries
# Merged where one pattern splits and the other does not: before a capital within a word, between a
# Devanagari letter and its sign, and behind an apostrophe, which English contracts.
ACROSS = ("cD", "iP", "iF", "eB", "मस", "स्", "की", "aƘ", "Da")
CAPITALS = ("McDonald says iPhone, WiFi and eBay.", "the iPad of MacDuff")
HINDI = ("नमस्ते, आप कैसे हैं?", "उसकी किताब")
HAUSA = ("'Dan uwa da 'Diya", "ƙasaƘasa ta ɗauki ƴan ƙwallo")


def write_large(folder: Path, write_tokenizer: Any) -> dict[str, int]:
    """The tiny base's tokenizer with such merges, and enough entries."""
    write_tokenizer(folder)
    path = folder / "vocab.json"
    vocabulary: dict[str, int] = json.loads(path.read_text("utf-8"))
    letters = {number: letter for letter, number in vocabulary.items() if number < 256}
    merges = (folder / "merges.txt").read_text("utf-8").splitlines()
    for word in ACROSS:
        merged, *rest = (letters[byte] for byte in word.encode())
        for letter in rest:
            merges.append(f"{merged} {letter}")
            merged += letter
            vocabulary.setdefault(merged, len(vocabulary))
    (folder / "merges.txt").write_text("\n".join([*dict.fromkeys(merges), ""]), "utf-8")
    for number in range(OVER + 1 - len(vocabulary)):
        vocabulary[f"<filler {number}>"] = len(vocabulary)
    miniature.write(path, vocabulary)
    path = folder / "tokenizer_config.json"
    facts = json.loads(path.read_text("utf-8"))
    decoder = dict(enumerate(facts["added_tokens_decoder"].values(), len(vocabulary)))
    miniature.write(path, {**facts, "added_tokens_decoder": decoder})
    return {token["content"]: number for number, token in decoder.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with a large vocabulary, which names the version that wrote it."""
    write_tokenizer = miniature.write_tokenizer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            miniature, "write_tokenizer", lambda folder: write_large(folder, write_tokenizer)
        )
        folder = miniature.build(tmp_path_factory.mktemp("tokens") / "base")
    return renamed(folder, "4.57.3")


def renamed(folder: Path, number: str) -> Path:
    """The folder, said to be written by another version of transformers."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    miniature.write(folder / "config.json", {**config, "transformers_version": number})
    return folder


def cut(processor: Any, text: str) -> tuple[int, ...]:
    """The tokens of a transcript in the template of synthesis."""
    return tuple(processor(text=f"{base.ROLE}{text}<|im_end|>\n{base.ROLE}")["input_ids"][0][3:-5])


def wrapper(folder: Path) -> Any:
    """The processor of the stock wrapper."""
    return stock.load().Qwen3TTSModel.from_pretrained(str(folder)).processor


@pytest.fixture(scope="module")
def trained(folder: Path) -> dict[str, tuple[int, ...]]:
    opened = base.read(folder)
    return {text: opened.words(text) for text in (*CAPITALS, *HINDI, *HAUSA)}


@pytest.mark.skipif(stock.installed("qwen-tts") is None, reason="a trap of transformers 4.57.3")
def test_these_texts_would_tell(folder: Path, trained: dict[str, tuple[int, ...]]) -> None:
    """Each is cut otherwise without the flag that the wrapper loads its processor with."""
    from transformers import AutoProcessor

    assert base.read(folder).tokenizer.tokenizer.vocab_size > OVER
    plain = AutoProcessor.from_pretrained(folder)
    for texts in (CAPITALS, HINDI, HAUSA):
        assert all(cut(plain, text) != trained[text] for text in texts)


def test_training_cuts_text_as_the_stock_wrapper_does(
    folder: Path, trained: dict[str, tuple[int, ...]]
) -> None:
    processor = wrapper(folder)
    for text, tokens in trained.items():
        assert len(tokens) > 3 and cut(processor, text) == tokens


@pytest.mark.parametrize("name", ["full", "lora"])
def test_what_is_exported_cuts_text_as_training_did(
    folder: Path, trained: dict[str, tuple[int, ...]], tmp_path: Path, name: str
) -> None:
    recipe = resolve(f"qwen3tts-{name}", [f"model.base={folder}"])[0]
    voices = {"anna": torch.ones(16)}
    (tmp_path / "artifacts").mkdir()
    checkpoint.save_voices(voices, tmp_path / "artifacts")
    speech = model.load(folder, voices)
    if recipe.model.lora:
        adapted(speech, recipe)
    save = checkpoint.save_adapter if recipe.model.lora else checkpoint.save_whole
    checkpoints.write(
        tmp_path / name, recipe, tmp_path / "artifacts", lambda part: save(speech, part)
    )
    sheen("export", tmp_path / name, "--as", "both", "-o", tmp_path / "both")
    for kind in ("custom-voice", "base"):
        processor, opened = wrapper(tmp_path / "both" / kind), base.read(tmp_path / "both" / kind)
        for text, tokens in trained.items():
            assert cut(processor, text) == opened.words(text) == tokens


@pytest.mark.skipif(stock.installed("qwen-tts") is None, reason="a trap of transformers 4.57.3")
def test_an_export_that_would_cut_text_otherwise_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "same")
    exports.check_tokens(folder, tmp_path / "same")
    shutil.copytree(folder, tmp_path / "other")
    with pytest.raises(SheenError, match="as other tokens than"):
        exports.check_tokens(folder, renamed(tmp_path / "other", "4.57.2"))
