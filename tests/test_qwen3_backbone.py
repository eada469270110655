"""Qwen3-TTS through the tool, on a tiny base of the real architecture: the contract, the commands,
checkpoints that the stock package loads.
"""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import sheen
from safetensors.torch import load_file, save_file

from sheen_cli import SheenError, checkpoints, locks
from sheen_cli.babble import speech
from sheen_cli.backbones import resolve
from sheen_cli.errors import Busy
from sheen_cli.rows import Rows
from sheen_cli.synthesis import Voice
from sheen_cli.testing import contract
from sheen_qwen3_tts import (
    base,
    batches,
    checkpoint,
    codec,
    miniature,
    model,
    preflight,
    references,
    stock,
)
from sheen_qwen3_tts.layout import IGNORE

TEXTS = ("one two", "three four five", "six", "seven eight", "nine ten one", "two three")
SHORT = [
    "--max-steps",
    "3",
    "train.precision=fp32",
    "train.weights=fp32",
    "train.batch_size=2",
    "log.every=1",
    "model.selftest=false",
]

test_contract = pytest.mark.usefixtures("kit")(contract("qwen3-tts"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, warm: Path) -> Path:
    """A tiny base, a data set of two voices, its rows, and a run of each recipe."""
    home = tmp_path_factory.mktemp("qwen3")
    miniature.build(home / "base")
    (home / "set").mkdir()
    with (home / "set" / "metadata.csv").open("w", newline="") as stream:
        table = csv.writer(stream, delimiter="|")
        table.writerow(["file_name", "text", "speaker", "language"])
        for number, text in enumerate(TEXTS):
            soundfile.write(home / "set" / f"{number}.wav", speech(text, 22_050), 22_050)
            language = ("en", "German", "ha")[number % 3]
            table.writerow([f"{number}.wav", text, ("Anna", "Bo")[number % 2], language])
    model = f"model.base={home / 'base'}"
    sheen("prepare", "--recipe", "qwen3tts-lora", "--dataset", home / "set", "--out", home / "data",
          model, "data.validation=0.2")  # fmt: skip
    for name in ("full", "lora"):
        run = ["--recipe", f"qwen3tts-{name}", "--data", home / "data", "--out", home / name]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "executable", str(warm))  # which tests what is saved
            tested = sheen("train", *run, *SHORT, model, "model.selftest=true")
        assert "untested" not in tested.output
    return home


def test_rows_hold_whole_frames_and_a_number_of_a_voice(home: Path) -> None:
    for row in Rows(home / "data" / "train.jsonl"):
        assert len(row["audio_codes"]) == -(-round(row["duration"] * 24_000) // 1_920)
        assert row["voice"] == ["Anna", "Bo"].index(row["speaker"])
    voices = checkpoint.load_voices(home / "data" / "artifacts")
    assert list(voices) == ["anna", "bo"]
    encoder = codec.speaker_encoder(home / "base")
    trained = [row for row in Rows(home / "data" / "train.jsonl") if row["speaker"] == "Anna"]
    sounds = [speech(row["text"], 22_050) for row in trained]
    assert len(sounds) > 1 and not torch.equal(voices["anna"], voices["bo"])
    assert voices["anna"].shape == codec.vector(encoder, sounds[0]).shape == (16,)


def test_a_whole_checkpoint_is_one_of_the_stock_package(home: Path) -> None:
    best = (home / "full" / "best").resolve()
    theirs = stock.load().Qwen3TTSModel.from_pretrained(str(best))
    ours, start = load_file(best / "model.safetensors"), load_file(home / "base/model.safetensors")
    assert set(ours) == set(start)
    for name, tensor in theirs.model.state_dict().items():
        assert torch.equal(tensor, ours[name])
    moved = {name for name in ours if not torch.equal(ours[name], start[name])}
    assert "talker.model.text_embedding.weight" not in moved  # frozen by default
    assert not any(name.startswith("speaker_encoder.") for name in moved)
    assert {name.split(".")[1] for name in moved} == {
        "model", "text_projection", "codec_head", "code_predictor",
    }  # fmt: skip
    sound = speech("one two three", 24_000)
    (said,), rate = theirs.generate_voice_clone(
        "one", "english", (sound, 24_000), x_vector_only_mode=True, max_new_tokens=6
    )
    assert rate == 24_000 and np.isfinite(said).all()
    assert (best / "config.json").read_text() == (home / "base" / "config.json").read_text()
    linked = best / "speech_tokenizer" / "model.safetensors"
    assert linked.stat().st_ino == (home / "base/speech_tokenizer/model.safetensors").stat().st_ino


def test_training_texts_are_tokenised_as_the_export_will(home: Path) -> None:
    for text in ("McDonald says: iPhone!", "हिन्दी ไทย مُدَرِّس"):
        assert base.read(home / "base").words(text) == base.read(home / "full/best").words(text)


def test_an_adapter_holds_all_that_was_trained_and_nothing_else(home: Path) -> None:
    best = (home / "lora" / "best").resolve()
    state = load_file(best / checkpoint.ADAPTER)
    kinds = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in state if ".lora_" in name}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj"}
    whole = [name for name in state if ".lora_" not in name]
    assert whole and all(name.startswith("text_projection.") for name in whole)
    assert not (best / "model.safetensors").exists()
    start = load_file(home / "base" / "model.safetensors")
    assert any(not torch.equal(state[name], start[f"talker.{name}"]) for name in whole)


def test_an_adapter_that_lacks_a_tensor_is_refused(home: Path, tmp_path: Path) -> None:
    voice = Voice(home / "lora")
    state = load_file(home / "lora" / "best" / checkpoint.ADAPTER)
    name = next(iter(state))
    save_file({**{k: v for k, v in state.items() if k != name}, "x": state[name]},
              tmp_path / checkpoint.ADAPTER)  # fmt: skip
    with pytest.raises(SheenError, match=f"lacks {name} and has x besides"):
        checkpoint.load_adapter(voice.model, tmp_path, set(state))


def said(home: Path, run: str, *arguments: object, code: int = 0) -> str:
    out = home / "out.wav"
    result = sheen("synth", home / run, "--text", "one", "-o", out, "--max-seconds", "0.6",
                   *arguments, code=code)  # fmt: skip
    return result.output


@pytest.mark.parametrize("run", ["full", "lora"])
def test_every_way_to_choose_a_voice(home: Path, run: str) -> None:
    wav = home / f"ref-{run}.wav"
    soundfile.write(wav, speech("nine ten", 44_100), 44_100)
    assert "give --speaker (it has anna, bo) or --ref" in said(home, run, code=2)
    assert "no voice 'eve'; it has anna, bo" in said(home, run, "--speaker", "Eve", code=2)
    assert "no language 'ha'" in said(home, run, "--speaker", "bo", "--language", "ha", code=2)
    facts: dict[str, Any] = {}
    for name, arguments in {
        "anna": ["--speaker", "ANNA"],
        "bo": ["--speaker", "bo"],
        "named": ["--speaker", "bo", "--language", "en"],
        "instructed": ["--speaker", "bo", "--instruct", "Slowly."],
        "x-vector": ["--ref", wav],
        "icl": ["--ref", wav, "--icl", "--ref-text", "nine ten"],
    }.items():
        line = said(home, run, *arguments, "--greedy", "--json").splitlines()[-1]
        facts[name] = json.loads(line)
        sound, rate = soundfile.read(home / "out.wav")
        assert rate == 24_000 and len(sound) == facts[name]["frames"] * 1_920 > 0
    del facts["anna"]  # random weights hear two babbling voices as almost one
    found = [json.dumps(each["nll"]) for each in facts.values()]
    assert len(set(found)) == len(found)  # each was conditioned otherwise
    assert "taking the voice of --ref (x-vector)" in said(home, run, "--ref", wav)
    assert "--icl needs the words" in said(home, run, "--ref", wav, "--icl", code=2)


def test_what_the_log_says_of_each_head(home: Path) -> None:
    first = json.loads((home / "full" / "metrics.jsonl").read_text().splitlines()[0])
    assert {f"head_{number}" for number in range(1, 16)} <= set(first)
    heads = np.mean([first[f"head_{number}"] for number in range(1, 16)])
    assert first["loss_subtalker"] == pytest.approx(heads, rel=1e-5)
    assert first["loss"] == pytest.approx(first["loss_talker"] + 0.3 * first["loss_subtalker"])
    assert 0 < first["end_probability"] < 1


def test_a_base_that_is_none_is_named(tmp_path: Path, home: Path) -> None:
    prepare = ["prepare", "--recipe", "qwen3tts-lora", "--dataset", home / "set"]
    prepare += ["--out", tmp_path / "data"]
    (tmp_path / "empty").mkdir()
    said = sheen(*prepare, f"model.base={tmp_path / 'empty'}", code=2).output
    assert "is no Qwen3-TTS checkpoint: config.json" in said
    said = sheen(*prepare, f"model.base={tmp_path / 'nowhere'}", code=2).output
    assert "neither a folder nor a Hub id" in said
    assert checkpoints.check(home / "full" / "best") is None


def test_a_pattern_that_freezes_nothing_is_refused(home: Path, tmp_path: Path) -> None:
    train = ["train", "--recipe", "qwen3tts-full", "--data", home / "data", "--out", tmp_path / "r"]
    freeze = ["model.freeze=[text_embeding.*]", f"model.base={home / 'base'}"]
    said = sheen(*train, *SHORT, *freeze, code=2).output
    assert "model.freeze: no parameter of the model is named 'text_embeding.*'" in said


def test_the_package_is_imported_without_its_banners(home: Path) -> None:
    script = "from sheen_qwen3_tts import stock; stock.load(); import qwen_tts"
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True)
    assert (out.returncode, out.stdout, out.stderr) == (0, b"", b"")


def taught(home: Path, shift: int) -> model.Speech:
    """The tiny base after a while of training; with a shift, on the frames that come later."""
    speech_model = model.load(home / "base", checkpoint.load_voices(home / "data" / "artifacts"))
    rows = Rows(home / "data" / "train.jsonl")[:2]
    inputs = batches.collate(
        speech_model.base, rows, [batches.SPOKEN] * 2, references.load(home / "data" / "artifacts")
    ).inputs
    targets = inputs["targets"]
    shifted = torch.full_like(targets, IGNORE)
    shifted[:, : targets.shape[1] - shift] = targets[:, shift:]
    shifted[targets == IGNORE] = IGNORE
    optimizer = torch.optim.Adam(speech_model.talker.parameters(), 5e-3)
    for _ in range(60):
        first, _ = speech_model(**{**inputs, "targets": targets})
        wanted, due = shifted[..., 0], targets[..., 0] != IGNORE
        loss = torch.nn.functional.cross_entropy(first, wanted[due], ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return speech_model


def test_the_preflight_tells_a_good_base_from_one_trained_ahead_of_itself(home: Path) -> None:
    torch.manual_seed(0)
    artifacts = home / "data" / "artifacts"
    rows = Rows(home / "data" / "train.jsonl")[:2]
    assert preflight.check(taught(home, 0), rows, artifacts, "good") is None
    with pytest.raises(SheenError, match=r"bad predicts the frame after the next one .* better"):
        preflight.check(taught(home, 1), rows, artifacts, "bad")
    untrained = model.load(home / "base", checkpoint.load_voices(home / "data" / "artifacts"))
    assert "knows no more than chance" in str(preflight.check(untrained, rows, artifacts, "new"))


def test_the_preflight_can_be_left_out(home: Path, tmp_path: Path) -> None:
    train = ["train", "--recipe", "qwen3tts-full", "--data", home / "data", *SHORT]
    train += [f"model.base={home / 'base'}"]
    said = sheen(*train, "--out", tmp_path / "a").output
    assert "warning: model.base=" in said and "no more than chance" in said
    said = sheen(*train, "--out", tmp_path / "b", "model.preflight=false").output
    assert "chance" not in said


def busy(folder: Path) -> bool:
    try:
        with locks.hold(folder):
            return False
    except Busy:
        return True


@pytest.mark.parametrize("name", ["lora", "full"])
def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(
    home: Path, warm: Path, tmp_path: Path, name: str
) -> None:
    train = ["train", "--recipe", f"qwen3tts-{name}", "--data", str(home / "data")]
    train += [
        f"model.base={home / 'base'}",
        "train.precision=fp32",
        "train.weights=fp32",
        "train.batch_size=2",
    ]
    train += [
        "train.schedule=constant",
        "train.warmup_steps=0",
        "train.save_every=2",
        "log.every=1",
    ]
    train += ["log.samples=0", "model.selftest=false", "train.learning_rate=1e-3"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [warm, "-m", "sheen_cli", *train, "--out", str(killed)]
    process = subprocess.Popen(
        [*command, "--max-steps", "4000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not checkpoints.listed(killed):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    while busy(killed):  # what was forked for it dies a moment later
        time.sleep(0.02)
    ends = str(checkpoints.step(checkpoints.listed(killed)[-1]) + 3)
    sheen(*train, "--out", killed, "--resume", "--max-steps", ends)
    sheen(*train, "--out", whole, "--max-steps", ends)
    weights = checkpoint.ADAPTER if name == "lora" else "model.safetensors"
    one, two = (load_file(run / "last" / weights) for run in (killed, whole))
    assert one.keys() == two.keys() and all(torch.equal(one[each], two[each]) for each in one)


def test_two_wishes_that_contradict_each_other_are_refused(home: Path, tmp_path: Path) -> None:
    wav = home / "two.wav"
    soundfile.write(wav, speech("nine ten", 24_000), 24_000)
    said = sheen("synth", home / "lora", "--text", "one", "--ref", wav, "--speaker", "anna", code=2)
    assert "--ref and --speaker anna are two voices" in said.output
    flags = ["--ref", wav, "--x-vector", "--ref-text", "nine ten"]
    said = sheen("synth", home / "lora", "--text", "one", *flags, code=2)
    assert "--ref-text is for --icl" in said.output
    train = ["train", "--recipe", "qwen3tts-lora", "--data", home / "data", "--out", tmp_path / "x"]
    said = sheen(*train, "model.freeze=[model.layers.*]", code=2)
    assert "freeze has no effect with lora" in said.output
    assert "x.jsonl: no such file" in sheen("train", "--data", tmp_path / "x.jsonl", code=2).output
    assert "lora is a run" in sheen("train", "--data", home / "lora", code=2).output


def test_a_gpu_speaks_in_bfloat16_with_exact_rotary_angles(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is computed here: only what `load` does where it finds a GPU is looked at."""
    recipe, backbone = resolve("qwen3tts-lora", [f"model.base={home / 'base'}"])
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        speaking = backbone.hook.load(recipe=recipe, checkpoint=(home / "lora" / "best").resolve())
    assert {each.dtype for each in speaking.talker.parameters()} == {torch.bfloat16}
    angles = [value for name, value in speaking.named_buffers() if name.endswith("inv_freq")]
    assert angles and all(each.dtype == torch.float32 for each in angles)
