"""Every family's recipe from the shell: a miniature checkpoint in its format is trained on, speaks,
and loads in plain transformers.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import lm_bases
import numpy as np
import pytest
import torch
from conftest import sheen, write_folder

from sheen_cli.backbones import resolve
from sheen_cli.checkpoints import resolve as checkpoint_of
from sheen_lm import miniature, vocabulary
from sheen_lm.convention import Convention
from sheen_lm.families import family
from sheen_lm.layout import Prompt, build, head, read
from sheen_lm.layout import resolve as ids_of


class Family(NamedTuple):
    """`size`: of the tokenizer before any token is added. `codes`: how many there are of each
    codebook; the families' own numbers, whose ids have tests of their own, take a tokenizer seconds
    to load.
    """

    recipe: str
    name: str
    base: str
    size: int
    codes: int


FAMILIES = [
    Family("qwen-snac-lora", "sheen", "qwen", 300, 4096),
    Family("orpheus-lora", "orpheus", "llama", 300, 256),
    Family("vyvo-lora", "vyvo", "qwen", 300, 256),
    Family("maya1-lora", "maya1", "llama", 128_000, 4096),  # by ids, which must be beyond text's
    Family("llasa-lora", "llasa", "llama", 300, 512),
    Family("inworld-sft", "inworld", "llama", 300, 512),
    Family("llama-codes-sft", "books", "llama", 300, 256),
]
QUICK = [
    "train.max_steps=2", "train.epochs=null", "train.accumulate=1", "train.precision=fp32",
    "train.weights=fp32", "train.threads=1", "train.warmup_steps=0", "log.samples=0",
    "train.workers=0", "train.learning_rate=0.01",
]  # fmt: skip


def smaller(one: Family) -> dict[str, Any]:
    """What changes in the convention, beside the number of codes."""
    return {"sizes": [one.codes] * len(family(one.name).codes.sizes), "stride": one.codes}


def checkpoint(one: Family, folder: Path) -> Any:
    """A model that has the family's tokens already, as its authors' has; its tokenizer."""
    tokenizer = getattr(lm_bases, one.base)(one.size)
    torch.manual_seed(0)
    model = getattr(lm_bases, f"{one.base}_model")(len(tokenizer), width=32)
    known = family(one.name).model_dump()
    convention = Convention.model_validate({**known, "codes": {**known["codes"], **smaller(one)}})
    added = vocabulary.extend(tokenizer, convention)
    vocabulary.resize(model, tokenizer, convention, added)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def codec(one: Family, folder: Path) -> Path:
    """SNAC for codes in three layers, else Mimi, of which XCodec2's families take one codebook: it
    is not in every transformers.
    """
    if max(family(one.name).codes.layers) == 3:
        return miniature.snac(folder, codebook_size=one.codes)
    return miniature.mimi(folder, codebook_size=one.codes, num_quantizers=8)


@pytest.mark.parametrize("one", FAMILIES, ids=lambda one: one.name)
def test_a_family_trains_speaks_and_loads_in_plain_transformers(
    one: Family, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    own = checkpoint(one, tmp_path / "base")
    settings = [
        *QUICK, f"model.base={tmp_path / 'base'}",
        f"model.codec={codec(one, tmp_path / 'codec')}",
        f"model.convention={json.dumps({'codes': smaller(one)})}",
        *(["model.codebooks=1"] if len(family(one.name).codes.sizes) == 1 else []),
    ]  # fmt: skip
    speech = write_folder(tmp_path / "set", ["one", "two"])
    options = ["--recipe", one.recipe, *settings]
    prepared = ["--dataset", speech, "--out", tmp_path / "data", "data.validation=0"]
    sheen("prepare", *prepared, *options)
    run = tmp_path / "run"
    said = sheen("train", "--data", tmp_path / "data", "--out", run, *options).output
    assert "vocabulary: 0 tokens added" in said
    heeded = {"maya1": "--instruct", "llasa": None, "inworld": None}.get(one.name, "--speaker")
    synth = ("synth", run, "--text", "two", "-o", tmp_path / "x.wav", "--max-seconds", 0.5)
    for flag in {"--instruct", "--speaker"} - {heeded}:
        assert f"does not heed {flag}" in sheen(*synth, flag, "voice 1", code=2).output
    manner = () if heeded is None else (heeded, "voice 1")
    said = sheen(*synth, "--retries", 0, *manner).output
    assert "x.wav: " in said and " frames, " in said

    sheen("export", run, "--as", "merged", "-o", tmp_path / "plain")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    assert tokenizer.get_vocab() == own.get_vocab()

    recipe, backbone = resolve(one.recipe, settings)
    ids = ids_of(recipe.model.written, tokenizer)
    codes = np.zeros((2, len(recipe.model.written.codes.sizes)), np.int64)
    tokens, _ = build(Prompt("two", "voice 1"), codes, ids)
    ours = backbone.hook.load(recipe=recipe, checkpoint=checkpoint_of(run))
    with torch.no_grad():
        theirs = plain(input_ids=torch.from_numpy(tokens)[None]).logits
        table = ours.head(ours.runs()).weights
        mine = ours.states(torch.from_numpy(tokens)[None])
        choices = torch.cat([mine @ table[r.weight][r.start : r.stop].T for r in ours.runs()], -1)
    assert torch.allclose(choices, theirs, atol=1e-4)
    start = torch.from_numpy(head(Prompt("two", "voice 1"), ids))[None]
    more = plain.generate(
        start, attention_mask=torch.ones_like(start), max_new_tokens=8, do_sample=False
    )
    assert more.shape[1] > start.shape[1]
    assert np.array_equal(read(tokens[start.shape[1] :], ids).codes, codes)
