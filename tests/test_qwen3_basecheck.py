"""`sheen plugins check qwen3-tts --base`: on an untrained base, on one that was taught rightly and
on one that was taught two frames ahead; and bases whose weights lie in several files.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import sheen
from safetensors.torch import load_file, save_file

from sheen_cli import Audio, Clip
from sheen_cli.babble import speech
from sheen_cli.backbones import resolve
from sheen_qwen3_tts import base, basecheck, basetrial, codec, miniature, model, stock
from sheen_qwen3_tts.layout import IGNORE
from sheen_qwen3_tts.preflight import crossed

CHECK = ["plugins", "check", "qwen3-tts", "--base"]
TEXT = "one two three"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.build(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.wav"
    soundfile.write(path, speech(TEXT, codec.RATE), codec.RATE, subtype="FLOAT")
    return path


def trial(folder: Path, place: Path, clip: Path | None = None) -> basetrial.Trial:
    recipe, _ = resolve("qwen3tts-lora", [f"model.base={folder}"])
    heard = basecheck.spoken()
    if clip is not None:
        samples, rate = soundfile.read(clip, dtype="float32")
        heard = Clip("clip", TEXT, samples, rate)
    return basetrial.Trial(recipe, heard, place)


def taught(tiny: Path, clip: Path, place: Path, shift: int) -> Path:
    """A base that knows the clip by heart; with a shift, talker and heads what comes that much
    later, as of labels that were shifted too often.
    """
    found = trial(tiny, place / "trial", clip)
    targets = found.batch.inputs["targets"]
    due = targets[..., 0][targets[..., 0] != IGNORE]
    codes = targets[targets[..., 1] != IGNORE][:, 1:]
    found.speech.requires_grad_(True).train()
    optimizer = torch.optim.Adam(found.speech.parameters(), 5e-3)
    for _ in range(60):
        _, logits = found.loss(found.speech)
        inner = logits["subtalker"].view(*codes.shape, -1)
        count = codes.shape[1] - shift
        loss = torch.nn.functional.cross_entropy(
            logits["talker"][: len(due) - shift], due[shift:]
        ) + torch.nn.functional.cross_entropy(
            inner[:, :count].flatten(0, 1), codes[:, shift:].flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = place / "base"
    shutil.copytree(tiny, folder)
    state = load_file(folder / "model.safetensors")
    state |= {f"talker.{name}": t for name, t in found.speech.talker.state_dict().items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


def checks(*arguments: object, code: int = 0) -> dict[str, dict[str, Any]]:
    """The figures by their names."""
    report = json.loads(sheen(*CHECK, *arguments, "--json", code=code).stdout)
    assert report["passed"] is (code == 0)
    return {each["name"]: each for each in report["checks"]}


def test_an_untrained_base_passes_with_notices(tiny: Path) -> None:
    """With the speech that is built in. What holds of any weights is found to hold."""
    found = checks(tiny)
    good = ["opened", "tokens", "clone-xvector", "clone-icl", "lora", "saved"]
    good += ["export-custom-voice", "export-base"]
    assert [found[name]["ok"] for name in good] == [True] * len(good), found
    assert [found[name]["ok"] for name in ("losses", "aligned", "codes")] == [None] * 3
    assert "the base is untrained" in found["losses"]["text"]
    assert found["tokens"]["figures"] == {"x_vector": 24, "in_context": 24}
    assert found["lora"]["figures"]["after"] < found["lora"]["figures"]["before"]
    assert 3 < found["codes"]["figures"]["frames"] * codec.FRAME / codec.RATE < 10


def test_a_base_that_was_taught_rightly_passes(tiny: Path, clip: Path, tmp_path: Path) -> None:
    folder = taught(tiny, clip, tmp_path, 0)
    lines = sheen(*CHECK, folder, "--clip", clip, "--clip-text", TEXT, code=1).stdout.splitlines()
    found = {line.split()[1]: line for line in lines[:-1]}
    for name in ("losses", "aligned", "tokens", "lora", "saved"):
        assert found[name].startswith("ok "), lines
    assert "14 of 14 heads" in found["aligned"]
    assert found["codes"].startswith("failed")  # its codec is noise, though its talker is not
    assert lines[-1].startswith(f"{folder} fails codes")


def test_a_base_that_was_taught_ahead_of_itself_fails(
    tiny: Path, clip: Path, tmp_path: Path
) -> None:
    folder = taught(tiny, clip, tmp_path, 1)
    found = checks(folder, "--clip", clip, "--clip-text", TEXT, code=1)
    assert found["aligned"]["ok"] is False
    figures = found["aligned"]["figures"]
    assert figures["next"] > figures["after_next"] and figures["own"] > figures["next_codebook"]


def test_one_head_that_says_the_next_codebook_fails_as_before_a_training(
    tiny: Path, clip: Path, tmp_path: Path
) -> None:
    found = trial(tiny, tmp_path / "trial", clip)
    low, chance = 0.5, float(np.log(found.base.codes))
    heads, ahead = [low] * 15, [chance] * 14
    found.__dict__["scores"] = basetrial.Scores(1.0, 2.0, tuple(heads), tuple(ahead))
    assert basecheck.aligned(found).ok is True
    heads[4], ahead[4] = 2.0, 1.0
    found.__dict__["scores"] = basetrial.Scores(1.0, 2.0, tuple(heads), tuple(ahead))
    said = basecheck.aligned(found)
    assert said.ok is False and "not heads 5" in said.text
    assert crossed(heads, ahead, found.base.codes) == [(5, 2.0, 1.0)]
    heads[4], ahead[4] = chance, chance - 0.1  # neither is known
    assert crossed(heads, ahead, found.base.codes) == []


def test_where_two_speeches_part(tiny: Path) -> None:
    codes = torch.arange(12).view(3, 4)
    logits = {"talker": torch.zeros(4, 32), "subtalker": torch.zeros(9, 32)}
    logits["talker"][1, 4], logits["subtalker"][8, 11] = 2.0, 3.0

    def said(codes: torch.Tensor) -> Audio:
        return Audio(np.zeros(1, np.float32), codec.RATE, codes.numpy(), logits=logits)

    def other(frame: int, book: int) -> torch.Tensor:
        changed = codes.clone()
        changed[frame, book] = 31
        return changed

    assert basecheck.agreeing(said(codes), codes) == (3, None)
    assert basecheck.agreeing(said(codes), other(1, 0)) == (1, 2.0)
    assert basecheck.agreeing(said(codes), other(2, 3)) == (2, 3.0)
    assert basecheck.agreeing(said(codes[:2]), codes) == (2, None)
    assert basecheck.agreeing(said(codes), codes[:2]) == (1, None)  # it went on, where they ended


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["qwen3-tts", "--clip", "x.wav"], "name it with --base"),
        (["demo", "--base", "x"], "backbone 'demo' has no check of a base model"),
        (["qwen3-tts", "--base", "nowhere"], "neither a folder nor a Hub id"),
        (["qwen3-tts", "--base", "x", "--clip-text", "a"], "--clip FILE and --clip-text"),
        (["qwen3-tts", "--base", "x", "--clip", "n.wav", "--clip-text", "a"], "missing-audio"),
    ],
)
def test_what_cannot_be_measured_is_one_line(arguments: list[str], said: str) -> None:
    assert said in sheen("plugins", "check", *arguments, code=2).stderr


# --- weights in several files ---------------------------------------------------------------------


@pytest.fixture
def sharded(tiny: Path, tmp_path: Path) -> Path:
    """The base as large ones come: its tensors over three files, the speaker encoder's over all."""
    folder = tmp_path / "sharded"
    shutil.copytree(tiny, folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]
    places = {name: names[number % 3] for number, name in enumerate(sorted(state))}
    for file in names:
        part = {name: state[name] for name, place in places.items() if place == file}
        assert any(name.startswith("speaker_encoder.") for name in part)
        save_file(part, folder / file, {"format": "pt"})
    size = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_a_base_in_several_files_is_the_same_base(tiny: Path, sharded: Path) -> None:
    sound = speech(TEXT, codec.RATE)
    whole, parts = (codec.vector(codec.speaker_encoder(each), sound) for each in (tiny, sharded))
    assert torch.equal(whole, parts)
    ours = [model.load(each, {}).state_dict() for each in (tiny, sharded)]
    assert ours[0].keys() == ours[1].keys()
    assert all(torch.equal(ours[0][name], ours[1][name]) for name in ours[0])
    theirs = stock.load().Qwen3TTSModel.from_pretrained(str(sharded)).model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours[1].items())


def test_training_on_it_leaves_one_whole_file(sharded: Path, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    lines = ["file_name|text"]
    for number, text in enumerate(("one two", "three", "four five")):
        soundfile.write(tmp_path / "set" / f"{number}.wav", speech(text, 24_000), 24_000)
        lines.append(f"{number}.wav|{text}")
    (tmp_path / "set" / "metadata.csv").write_text("\n".join(lines))
    recipe = ["--recipe", "qwen3tts-full", f"model.base={sharded}"]
    data = ["--out", tmp_path / "data", "data.validation=0"]
    sheen("prepare", "--dataset", tmp_path / "set", *recipe, *data)
    sheen("train", *recipe, "--data", tmp_path / "data", "--out", tmp_path / "run",
          "--max-steps", 1, "train.precision=fp32", "train.weights=fp32")  # fmt: skip
    best = tmp_path / "run" / "best"
    assert [file.name for file in best.glob("model*")] == ["model.safetensors"]
    stock.load().Qwen3TTSModel.from_pretrained(str(best.resolve()))


def test_a_file_that_was_not_downloaded_is_named(sharded: Path) -> None:
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(Exception, match="no Qwen3-TTS checkpoint: model-00002-of-00003"):
        base.read(sharded)
