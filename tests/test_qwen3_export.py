"""Exports of Qwen3-TTS: what the stock package and PEFT load of a checkpoint is what was trained,
and a checkpoint that cannot be used again is never kept.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import sheen
from peft import PeftModel
from safetensors.torch import load_file, save_file
from test_docs import commands, keys
from torch import Tensor

from sheen_cli import Recipe, Reference, Request, SheenError, checkpoints, jobs
from sheen_cli.babble import speech as babble
from sheen_cli.backbones import load, resolve
from sheen_cli.synthesis import Voice
from sheen_qwen3_tts import (
    Options,
    adapted,
    adapters,
    base,
    batches,
    checkpoint,
    exports,
    miniature,
    model,
    references,
    selftest,
    stock,
    weights,
)
from sheen_qwen3_tts.model import Speech
from sheen_qwen3_tts.weights import Facts, Weights

FRAMES = 8
GREEDY = {"do_sample": False, "subtalker_dosample": False, "max_new_tokens": FRAMES + 1}
LORA = ["model.lora.rank=3", "model.lora.alpha=5", "model.lora.mlp=true",
        "model.lora.subtalker=true"]  # fmt: skip
ROW = {"text": "one two", "language": "english", "voice": 1, "id": "row"}
ROW["audio_codes"] = torch.randint(32, (6, 16), generator=torch.Generator().manual_seed(3)).tolist()


def known(folder: Path) -> Path:
    """A tiny base that already has a voice, and says which library wrote it."""
    miniature.build(folder)
    config = json.loads((folder / "config.json").read_text())
    config["talker_config"] |= {"spk_id": {"serena": 1050}, "spk_is_dialect": {"serena": False}}
    (folder / "config.json").write_text(json.dumps({**config, "transformers_version": "4.57.3"}))
    return folder


def recipe_of(folder: Path, name: str, *more: str) -> Recipe[Options]:
    settings = LORA if name == "lora" else []
    return resolve(f"qwen3tts-{name}", [f"model.base={folder}", *settings, *more])[0]


def taught(recipe: Recipe[Options], voices: dict[str, Tensor], size: float = 0.3) -> Speech:
    """A model in which all that its recipe trains has moved."""
    torch.manual_seed(7)
    speech = model.load(base.local(recipe.model.base), voices)
    if recipe.model.lora:
        adapted(speech, recipe)
    else:
        adapters.freeze(speech, recipe.model.freeze)
    with torch.no_grad():
        for parameter in speech.talker.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * size)
    return speech.eval()


def kept(recipe: Recipe[Options], speech: Speech, artifacts: Path, folder: Path) -> Path:
    """A checkpoint, as training writes it."""
    save = checkpoint.save_adapter if recipe.model.lora else checkpoint.save_whole
    checkpoints.write(folder, recipe, artifacts, lambda part: save(speech, part))
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two voices that differ much, a checkpoint of each way to train, and exports."""
    home = tmp_path_factory.mktemp("export")
    known(home / "base")
    random = torch.Generator().manual_seed(5)
    voices = {name: torch.randn(16, generator=random) for name in ("anna", "bo")}
    (home / "artifacts").mkdir()
    checkpoint.save_voices(voices, home / "artifacts")
    for name in ("full", "lora"):
        recipe = recipe_of(home / "base", name)
        kept(recipe, taught(recipe, voices), home / "artifacts", home / name)
        sheen("export", home / name, "--as", "both", "-o", home / f"{name}-both")
    sheen("export", home / "lora", "--as", "adapter", "-o", home / "adapter")
    return home


def row_of(home: Path) -> dict[str, Tensor]:
    """The batch of one row, laid out as a taught voice is spoken."""
    tables = references.load(home / "artifacts")
    return batches.collate(base.read(home / "base"), [ROW], [batches.SPOKEN], tables).inputs


def stock_of(folder: Path) -> Any:
    return stock.load().Qwen3TTSModel.from_pretrained(str(folder))


def said(voice: Voice, **wishes: Any) -> np.ndarray:
    """Sheen's greedy speech."""
    request = Request("one two", greedy=True, max_seconds=FRAMES * 0.08, **wishes)
    (audio,) = voice.speak([request])
    return audio.samples


def same(mine: np.ndarray, theirs: np.ndarray) -> bool:
    return mine.shape == theirs.shape and bool(np.allclose(mine, theirs.clip(-1, 1), atol=1e-5))


# --- what the stock package loads -----------------------------------------------------------------


@pytest.mark.parametrize("run", ["full", "lora"])
def test_a_custom_voice_speaks_in_the_stock_package_as_the_checkpoint_does(
    home: Path, run: str
) -> None:
    """The vector lies in a row there and in the slot here; of two voices, with a language and an
    instruction, the same tokens.
    """
    theirs, voice = stock_of(home / f"{run}-both" / "custom-voice"), Voice(home / run)
    assert theirs.get_supported_speakers() == ["anna", "bo", "serena"]
    sounds = []
    for speaker, language, instruct in (
        ("ANNA", "English", "Slowly."), ("Bo", None, None), ("bo", "German", None)
    ):  # fmt: skip
        (theirs_said,), rate = theirs.generate_custom_voice(
            "one two", speaker, language, instruct, **GREEDY
        )
        mine = said(voice, speaker=speaker, language=language, instruct=instruct)
        assert rate == 24_000 and same(mine, theirs_said)
        sounds.append(mine)
    assert not same(said(voice, speaker="anna"), sounds[1])  # who speaks makes a difference
    (streamed,), _ = theirs.generate_custom_voice(
        "one two", "anna", "English", non_streaming_mode=False, **GREEDY
    )
    assert len(streamed) and np.isfinite(streamed).all()
    mine = said(voice, speaker="serena")  # the base's own
    (theirs_said,), _ = theirs.generate_custom_voice("one two", "serena", **GREEDY)
    assert same(mine, theirs_said)


@pytest.mark.parametrize("run", ["full", "lora"])
def test_a_base_clones_in_the_stock_package_and_knows_the_voices(home: Path, run: str) -> None:
    theirs, voice = stock_of(home / f"{run}-both" / "base"), Voice(home / run)
    sound = babble("nine ten", 24_000)
    sound = sound[: len(sound) // 1_920 * 1_920]
    for icl in (False, True):
        (cloned,), rate = theirs.generate_voice_clone(
            "one two", "english", (sound, 24_000), "nine ten", not icl, **GREEDY
        )
        mine = said(voice, language="english", reference=Reference(sound, "nine ten", icl))
        assert rate == 24_000 and len(cloned) and np.isfinite(cloned).all()
        assert same(mine, cloned)
    codes, _ = theirs.model.generate(
        input_ids=theirs._tokenize_texts([theirs._build_assistant_text("one two")]),
        speakers=["anna"], languages=["english"], non_streaming_mode=True, **GREEDY,
    )  # fmt: skip
    request = Request("one two", speaker="anna", language="english", greedy=True)
    (mine,) = voice.speak([request])
    assert np.array_equal(codes[0].numpy(), mine.codes[: len(codes[0])])


@pytest.mark.parametrize("run", ["full", "lora"])
def test_the_weights_of_an_export_are_those_that_were_trained(home: Path, run: str) -> None:
    for kind in ("base", "custom-voice"):
        folder = home / f"{run}-both" / kind
        state, start = load_file(folder / "model.safetensors"), load_file(
            home / "base" / "model.safetensors"
        )  # fmt: skip
        encoder = {name for name in start if name.startswith("speaker_encoder.")}
        assert encoder and set(state) == set(start) - (encoder if kind != "base" else set())
        assert all(torch.equal(state[name], start[name]) for name in encoder & set(state))
        config = json.loads((folder / "config.json").read_text())
        rows = config["talker_config"]["spk_id"]
        assert list(rows) == ["serena", "anna", "bo"] and rows["serena"] == 1050
        table, voices = state[exports.TABLE], checkpoint.load_voices(home / "artifacts")
        assert all(torch.equal(table[rows[name]], voices[name]) for name in voices)
        trained = Voice(home / run).model.talker.model.codec_embedding.weight.detach()
        others = torch.tensor([i for i in range(len(table)) if i not in (rows["anna"], rows["bo"])])
        assert torch.equal(table[others], trained[others])


def test_the_config_is_the_base_s_but_for_type_and_voices(home: Path) -> None:
    start = json.loads((home / "base" / "config.json").read_text())
    for kind in ("base", "custom-voice"):
        config = json.loads((home / "lora-both" / kind / "config.json").read_text())
        assert config["tts_model_type"] == kind.replace("-", "_")
        assert config["talker_config"]["spk_is_dialect"] == dict.fromkeys(
            ("serena", "anna", "bo"), False
        )
        for name in ("spk_id", "spk_is_dialect"):
            config["talker_config"][name] = start["talker_config"][name]
        expected = {**start, "tts_model_type": kind.replace("-", "_")}
        if kind == "custom-voice":  # like the released ones
            del expected["speaker_encoder_config"]
        assert config == expected and config["transformers_version"] == "4.57.3"


def test_merged_equals_unmerged_and_keeps_the_type(home: Path, tmp_path: Path) -> None:
    sheen("export", home / "lora", "--as", "merged", "-o", tmp_path / "merged")
    voices = checkpoint.load_voices(home / "artifacts")
    inputs = row_of(home)
    merged = selftest.logits(model.load(tmp_path / "merged", voices), inputs)
    unmerged = selftest.logits(Voice(home / "lora").model, inputs)
    plain = selftest.logits(model.load(home / "base", voices), inputs)
    for one, two, three in zip(merged, unmerged, plain, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-4)
        assert not torch.allclose(one, three, atol=0.1)
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["tts_model_type"] == "base" and "anna" in config["talker_config"]["spk_id"]


# --- adapters -------------------------------------------------------------------------------------


def test_peft_loads_the_adapter_onto_the_stock_model(home: Path) -> None:
    theirs, voice = stock_of(home / "base"), Voice(home / "lora")
    theirs.model = PeftModel.from_pretrained(theirs.model, home / "adapter")
    vectors = load_file(home / "adapter" / "speakers.safetensors")
    inputs = row_of(home)
    speech = Speech(base.read(home / "base"), theirs.model.base_model.model, vectors).eval()
    for one, two in zip(selftest.logits(speech, inputs),
                        selftest.logits(voice.model, inputs), strict=True):  # fmt: skip
        torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
    from qwen_tts import VoiceClonePromptItem

    for name in ("anna", "bo"):
        item = VoiceClonePromptItem(None, vectors[name], True, False)
        (said_there,), _ = theirs.generate_voice_clone(
            "one two", "english", voice_clone_prompt=[item], non_streaming_mode=True, **GREEDY
        )
        assert same(said(voice, speaker=name, language="english"), said_there)


def test_an_adapter_says_what_it_belongs_to_and_where_nobody_else_s_disk_has_it(
    home: Path,
) -> None:
    files = {path.name for path in (home / "adapter").iterdir()}
    assert files == {
        "adapter_config.json", "adapter_model.safetensors", "speakers.safetensors", "sheen.json",
        "export.json",
    }  # fmt: skip
    config = json.loads((home / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base" and config["revision"] is None
    about = json.loads((home / "adapter" / "sheen.json").read_text())
    assert about["model"]["lora"]["rank"] == config["r"] == 3
    patch = about["config"]["talker_config"]
    assert set(patch["spk_id"]) == {"anna", "bo"} and not any(patch["spk_is_dialect"].values())
    texts = [path.read_text() for path in (home / "adapter").glob("*.json")]
    assert not any(str(home) in text for text in texts)


def test_a_download_is_named_by_its_hub_id(home: Path) -> None:
    cached = home / "models--Qwen--Qwen3-TTS-12Hz-1.7B-Base" / "snapshots" / "a1b2"
    cached.parent.mkdir(parents=True)
    cached.symlink_to(home / "base")
    source = SimpleNamespace(folder=cached)
    assert exports.known(source) == ("Qwen/Qwen3-TTS-12Hz-1.7B-Base", "a1b2")


def test_a_run_of_all_weights_has_no_adapter(home: Path, tmp_path: Path) -> None:
    output = sheen("export", home / "full", "--as", "adapter", "-o", tmp_path / "x", code=2).output
    assert "holds no adapter; export it as base, custom-voice or merged" in output
    assert not (tmp_path / "x").exists() and not any(tmp_path.iterdir())


def damaged(home: Path, to: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """The adapter's checkpoint with other tensors in it, sealed as if it were whole."""
    recipe = recipe_of(home / "base", "lora")
    state = change(load_file(home / "lora" / checkpoint.ADAPTER))
    fill: Callable[[Path], None] = lambda part: save_file(state, part / checkpoint.ADAPTER)  # noqa: E731
    checkpoints.write(to, recipe, home / "artifacts", fill)
    return to


def without(word: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {name: value for name, value in state.items() if word not in name}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("linear_fc2.bias"), "it lacks text_projection.linear_fc2.bias"),
        (without("lora_B"), "it lacks code_predictor.model.layers.0.mlp.down_proj.lora_B"),
        (lambda state: {**state, "new.rows": torch.zeros(1)}, "has new.rows besides"),
        (
            lambda state: {**state, "text_projection.linear_fc2.bias": torch.zeros(7)},
            "has text_projection.linear_fc2.bias in the shape (7,), not (16,)",
        ),
    ],
)
def test_an_adapter_that_is_not_whole_neither_speaks_nor_is_exported(
    home: Path, tmp_path: Path, change: Any, words: str
) -> None:
    folder = damaged(home, tmp_path / "checkpoint-1", change)
    output = sheen("export", folder, "--as", "merged", "-o", tmp_path / "x", code=2).output
    assert words in output and "does not fit the recipe" in output
    with pytest.raises(SheenError) as raised:
        Voice(folder)
    assert words in str(raised.value)


# --- refusals -------------------------------------------------------------------------------------


def test_too_many_speakers_are_one_line(home: Path, tmp_path: Path) -> None:
    config = json.loads((home / "base" / "config.json").read_text())
    free = exports.free_rows(config)
    talker = config["talker_config"]
    taken = {*talker["codec_language_id"].values(), 1050, *range(32, 38), 39}
    assert sorted(free) == [row for row in range(32, 1056) if row not in taken]
    assert free[0] == 1056 - 72
    many = {f"voice {number}": torch.zeros(16) for number in range(len(free) + 1)}
    (tmp_path / "artifacts").mkdir()
    checkpoint.save_voices(many, tmp_path / "artifacts")
    recipe, start = recipe_of(home / "base", "full"), model.load(home / "base", {})
    folder = kept(recipe, start, tmp_path / "artifacts", tmp_path / "checkpoint-1")
    output = sheen("export", folder, "--as", "custom-voice", "-o", tmp_path / "x", code=2).output
    assert f"has {len(many)} voices, and the codec table {len(free)} free rows" in output


def test_the_released_table_is_filled_from_row_3000() -> None:
    controls = dict(zip(("pad", "bos", "eos_token", "think", "nothink", "think_bos", "think_eos"),
                        (2148, 2149, 2150, 2154, 2155, 2156, 2157), strict=True))  # fmt: skip
    talker = {
        "vocab_size": 3072, "code_predictor_config": {"vocab_size": 2048},
        **{f"codec_{name}_id": value for name, value in controls.items()},
        "codec_language_id": {"english": 2050, "german": 2053},
        "spk_id": {"serena": 3066, "vivian": 3065, "ryan": 3061, "uncle_fu": 3010, "eric": 2875},
    }  # fmt: skip
    free = exports.free_rows({"talker_config": talker})
    assert free[:2] == [3000, 3001] and free[67:69] == [3071, 2999]
    assert min(free) == 2048 and not {3010, 3061, 2875, 2050, 2148, 2157} & set(free)


def test_a_base_without_its_speaker_encoder_is_refused_as_one(home: Path, tmp_path: Path) -> None:
    for cut in ("speaker_encoder.fc.", "speaker_encoder."):
        folder = tmp_path / f"checkpoint-{len(cut)}"
        checkpoints.write(
            folder, recipe_of(home / "base", "full"), home / "artifacts",
            lambda part, cut=cut: lacking(home / "full", part, cut),
        )  # fmt: skip
        output = sheen("export", folder, "--as", "base", "-o", tmp_path / "x", code=2).output
        assert "clones voices with its speaker encoder: it lacks speaker_encoder." in output
        sheen("export", folder, "--as", "custom-voice", "-o", tmp_path / str(len(cut)))


def lacking(source: Path, to: Path, cut: str) -> None:
    checkpoint.copy_rest(source, to)
    whole = Weights(source)
    facts = {name: fact for name, fact in whole.facts.items() if not name.startswith(cut)}
    weights.write(to, facts, whole.read)


def test_another_tokenizer_in_the_export_is_noticed(home: Path, tmp_path: Path) -> None:
    folder = home / "full-both" / "custom-voice"
    exports.check_tokens(home / "base", folder)
    texts = [*exports.TEXTS, "McDonald", "iPhone", "हिन्दी", "Ƙauye da ƴanci"]
    for text in texts:
        assert base.read(home / "base").words(text) == base.read(folder).words(text)
    checkpoint.copy_rest(folder, tmp_path, editable=True)
    weights.write(tmp_path, Weights(folder).facts, Weights(folder).read)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    number = vocabulary["sy"]  # instead of "system", which no text has
    fewer = {token: i for token, i in vocabulary.items() if token[:2] != "sy"}
    (tmp_path / "vocab.json").write_text(json.dumps({**fewer, "Mc": number}))
    lines = (tmp_path / "merges.txt").read_text().splitlines()
    kept = [line for line in lines if not line.startswith(("s y", "sy"))]
    (tmp_path / "merges.txt").write_text("\n".join([*kept, "M c", ""]))
    with pytest.raises(SheenError, match=r"would read 'McDonald says.* as other tokens"):
        exports.check_tokens(home / "base", tmp_path)


def test_kinds_and_places_that_are_refused(home: Path, tmp_path: Path) -> None:
    export = ["export", home / "lora", "-o", tmp_path / "out", "--as"]
    output = sheen(*export, "customvoice", code=2).output
    assert "no such kind; did you mean 'custom-voice'?; it has custom-voice, base," in output
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert "is no export of sheen" in sheen(*export, "adapter", "--overwrite", code=2).output
    (tmp_path / "out" / "mine.txt").unlink()
    sheen(*export, "adapter")
    assert "holds an export; add --overwrite" in sheen(*export, "merged", code=2).output
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert (
        "mine.txt was not written by sheen"
        in sheen(*export, "merged", "--overwrite", code=2).output
    )
    (tmp_path / "out" / "mine.txt").unlink()
    facts = json.loads(sheen(*export, "merged", "--overwrite", "--json").stdout)
    (documented,) = keys(commands()["export"])
    assert list(facts) == list(documented)
    files = {path.relative_to(tmp_path / "out").as_posix(): path.stat().st_size
             for path in (tmp_path / "out").rglob("*") if path.is_file()}  # fmt: skip
    assert facts["files"] == {k: v for k, v in files.items() if k != "export.json"}
    assert facts["bytes"] == sum(facts["files"].values()) and not (tmp_path / ".out.part").exists()
    assert facts["use"][0].startswith(f'qwen_tts.Qwen3TTSModel.from_pretrained("{tmp_path}/out")')
    inside = ["export", home / "lora", "--as", "adapter", "-o", home / "lora" / "x"]
    assert "lies in the checkpoint itself" in sheen(*inside, code=2).output
    missing = ["export", home / "none", "--as", "adapter", "-o", tmp_path / "y"]
    assert "no checkpoint at" in sheen(*missing, code=2).output


def test_a_backbone_without_exports_says_so(tmp_path: Path) -> None:
    recipe, _ = resolve("demo", [])
    (tmp_path / "artifacts").mkdir()
    checkpoints.write(
        tmp_path / "checkpoint-1", recipe, tmp_path / "artifacts",
        lambda part: save_file({"x": torch.zeros(1)}, part / "model.safetensors"),
    )  # fmt: skip
    export = ["export", tmp_path / "checkpoint-1", "--as", "merged", "-o", tmp_path / "x"]
    assert "backbone 'demo' has no export" in sheen(*export, code=2).output


# --- bytes on the disk ----------------------------------------------------------------------------


def test_a_save_writes_its_weights_and_links_the_rest(home: Path, tmp_path: Path) -> None:
    voices = checkpoint.load_voices(home / "artifacts")
    speech = taught(recipe_of(home / "base", "full"), voices)
    checkpoint.save_whole(speech, tmp_path)
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_nlink == 1]
    assert [path.name for path in written] == ["model.safetensors"]
    assert (tmp_path / "speech_tokenizer" / "model.safetensors").samefile(
        home / "base" / "speech_tokenizer" / "model.safetensors"
    )
    files = {path.name for path in (home / "lora").iterdir() if path.is_file()}
    assert files == {checkpoint.ADAPTER, "recipe.yaml", "manifest.json"}


def test_an_export_links_the_codec_and_nothing_that_people_edit(home: Path) -> None:
    for kind in ("base", "custom-voice"):
        for path in (home / "lora-both" / kind).rglob("*"):
            if path.is_file():
                linked = path.match("speech_tokenizer/model.safetensors")
                assert (path.stat().st_nlink > 1) == linked, path


def halved(home: Path, folder: Path) -> Path:
    """The base in bfloat16, in several files, beside some that are left from another model."""
    checkpoint.copy_rest(home / "base", folder, editable=True)
    whole = Weights(home / "base")
    facts = {name: Facts(fact.shape, torch.bfloat16) for name, fact in whole.facts.items()}
    weights.write(folder, facts, whole.read, largest=40_000)
    return folder


def test_a_divided_base_in_bfloat16_and_what_is_left_beside_it(home: Path, tmp_path: Path) -> None:
    start = halved(home, tmp_path / "base")
    assert len(list(start.glob("model-*-of-*.safetensors"))) > 2
    divided = Weights(start)
    whole = Weights(home / "base")
    assert set(divided.homes) == set(whole.homes)
    assert all(torch.equal(divided.read(n), whole.read(n).bfloat16()) for n in divided.homes)
    voices = checkpoint.load_voices(home / "artifacts")
    for name in ("full", "lora"):
        recipe = recipe_of(start, name)
        folder = kept(recipe, taught(recipe, voices), home / "artifacts", tmp_path / name)
        if name == "full":  # what was trained is wider than what was not
            kinds = {n: fact.dtype for n, fact in Weights(folder).facts.items()}
            assert kinds["talker.model.text_embedding.weight"] == torch.bfloat16
            assert kinds["talker.codec_head.weight"] == torch.float32
        (start / "pytorch_model.bin").write_bytes(b"old")
        (start / "README.md").write_text("# about the base")
        for precision, dtype in (("base", torch.bfloat16), ("fp32", torch.float32)):
            out = tmp_path / f"{name}-{precision}"
            sheen(
                "export", folder, "--as", "base", "-o", out, f"model.export_precision={precision}"
            )
            assert {fact.dtype for fact in Weights(out).facts.values()} == {dtype}
            tops = {path.name for path in out.iterdir() if path.is_file()}
            assert {"model.safetensors", "config.json", "export.json"} <= tops
            assert not {"pytorch_model.bin", "README.md", weights.INDEX} & tops
        exact = Weights(tmp_path / f"{name}-fp32").read("talker.codec_head.weight")
        trained = Voice(folder).model.talker.codec_head.weight.detach()
        assert torch.equal(exact, trained)


def test_large_weights_are_divided_as_the_hub_divides_them(home: Path, tmp_path: Path) -> None:
    whole = Weights(home / "full")
    weights.write(tmp_path, whole.facts, whole.read, largest=100_000)
    index = json.loads((tmp_path / weights.INDEX).read_text())
    sizes = [path.stat().st_size for path in tmp_path.glob("model-0000?-of-0000?.safetensors")]
    assert len(sizes) == len(set(index["weight_map"].values())) > 1
    state = load_file(home / "full" / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in state.values())
    (tmp_path / "model-00009-of-00009.safetensors").write_bytes(b"stale")
    assert {n: Weights(tmp_path).homes[n].name for n in index["weight_map"]} == index["weight_map"]
    checkpoint.copy_rest(home / "full", tmp_path)
    stocks = stock_of(tmp_path).model.state_dict()
    assert all(torch.equal(stocks[name], whole.read(name)) for name in whole.homes)


# --- the self-test --------------------------------------------------------------------------------


@pytest.fixture
def asked(home: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The self-test's own judgement of a folder, in this process, against a model in training."""

    def ask(name: str, size: float = 0.3, folder: Path | None = None, *more: str) -> list[str]:
        recipe = recipe_of(home / "base", name, *more)
        speech = taught(recipe_of(home / "base", name), voices_of(home), size)
        inputs = row_of(home)
        selftest.set_task(tmp_path, speech, recipe, inputs, folder or home / name)
        task = json.loads((tmp_path / selftest.TASK).read_text())
        return selftest.judged(task, load_file(tmp_path / selftest.TENSORS))

    return ask


def voices_of(home: Path) -> dict[str, Tensor]:
    return checkpoint.load_voices(home / "artifacts")


@pytest.mark.parametrize("name", ["full", "lora"])
def test_a_checkpoint_that_gives_the_model_back_passes(asked: Any, name: str) -> None:
    assert asked(name) == []


@pytest.mark.parametrize("name", ["full", "lora"])
def test_a_checkpoint_of_another_model_does_not(asked: Any, name: str) -> None:
    with pytest.raises(SheenError, match="its logits of the talker differ by"):
        asked(name, 0.31)


def test_a_recipe_that_does_not_fit_the_adapter_is_noticed(asked: Any) -> None:
    with pytest.raises(SheenError, match="its logits of the talker differ by"):
        asked("lora", 0.3, None, "model.lora.alpha=6")
    with pytest.raises(SheenError, match=r"has .*mlp.down_proj.lora_A.* besides"):
        asked("lora", 0.3, None, "model.lora.mlp=false")


def test_a_tensor_that_moves_no_logit_must_come_back_too(
    asked: Any, home: Path, tmp_path: Path
) -> None:
    """Row 1000 of the codec table is in no prompt."""

    def moved(state: dict[str, Tensor]) -> dict[str, Tensor]:
        state[exports.TABLE][1000] += 1
        return state

    (tmp_path / "whole").mkdir()
    checkpoint.copy_rest(home / "full", tmp_path / "whole")
    state = moved(load_file(home / "full" / "model.safetensors"))
    save_file(state, tmp_path / "whole" / "model.safetensors")
    with pytest.raises(SheenError, match=r"model.codec_embedding.weight came back with other"):
        asked("full", 0.3, tmp_path / "whole")


def test_a_wrong_merge_is_noticed(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = exports.Merged.read

    def unscaled(self: exports.Merged, name: str) -> Tensor:
        self.scale = 1.0
        return right(self, name)

    monkeypatch.setattr(exports.Merged, "read", unscaled)
    with pytest.raises(SheenError, match="the logits of the merged model of the talker differ"):
        asked("lora")


def test_an_adapter_without_effect_is_said(asked: Any, home: Path, tmp_path: Path) -> None:
    recipe = recipe_of(home / "base", "lora")
    untaught = taught(recipe, voices_of(home), 0.0)
    folder = kept(recipe, untaught, home / "artifacts", tmp_path / "checkpoint-1")
    (notice,) = asked("lora", 0.0, folder)
    assert notice.startswith("the adapter has no effect yet: 21 of 21 low-rank pairs are zero")


def test_the_self_test_leaves_training_as_it_was(home: Path, tmp_path: Path) -> None:
    """Neither the generators nor the mode of a module, and no dropout in what it compares."""
    recipe = recipe_of(home / "base", "lora", "model.lora.dropout=0.5")
    speech = taught(recipe, voices_of(home)).train()
    inputs = row_of(home)
    before = torch.get_rng_state()
    selftest.set_task(tmp_path, speech, recipe, inputs, home / "lora")
    assert torch.equal(before, torch.get_rng_state()) and speech.training
    assert all(module.training for module in speech.modules())
    found = load_file(tmp_path / selftest.TENSORS)
    undropped = selftest.logits(Voice(home / "lora").model, inputs)
    torch.testing.assert_close(found["logits.0"], undropped[0], rtol=0, atol=1e-5)


def test_a_resumed_run_may_leave_the_self_test_out_but_not_train_otherwise(home: Path) -> None:
    free = load("qwen3-tts").spec.free
    assert "model.selftest" in free
    start, other, layout = (
        jobs.fixed(recipe_of(home / "base", "full", *more), free)
        for more in ([], ["model.selftest=false", "model.top_k=7"], ["model.streaming=0.1"])
    )
    assert start == other != layout


def test_a_checkpoint_that_a_fresh_process_cannot_use_is_never_published(
    home: Path, tmp_path: Path
) -> None:
    """Here the process is a fresh one; elsewhere tests fork it, which is quicker."""
    recipe = recipe_of(home / "base", "lora")
    speech = taught(recipe, voices_of(home))
    inputs = row_of(home)

    def forgetful(model: Speech, folder: Path) -> None:
        checkpoint.save_adapter(model, folder)
        state = load_file(folder / checkpoint.ADAPTER)
        save_file(without("linear_fc1.bias")(state), folder / checkpoint.ADAPTER)

    notices: list[str] = []
    save = selftest.after(forgetful, recipe, inputs, notices.append)
    words = r"was not kept.*: .*lacks text_projection.linear_fc1.bias; model.selftest=false"
    with pytest.raises(SheenError, match=words):
        checkpoints.write(
            tmp_path / "checkpoint-1", recipe, home / "artifacts", lambda part: save(speech, part)
        )
    assert not any(tmp_path.iterdir()) and not notices


def test_a_self_test_that_cannot_run_keeps_the_checkpoint_and_says_so(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(home / "base", "lora")
    speech = taught(recipe, voices_of(home))
    inputs = row_of(home)
    monkeypatch.setattr(selftest, "SECONDS", 0.05)
    notices: list[str] = []
    selftest.after(checkpoint.save_adapter, recipe, inputs, notices.append)(speech, tmp_path)
    assert (tmp_path / checkpoint.ADAPTER).is_file()
    assert notices == [
        "the checkpoint was kept untested: the process for that did not end within 0.05 s; "
        "model.selftest=false leaves it out"
    ]
