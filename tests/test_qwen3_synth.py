"""Speaking with Qwen3-TTS: from bases that were never trained here, with all that may go wrong; and
a generation loop whose buffers grow and shrink.
"""

import json
import shutil
import subprocess
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import TINY, sheen
from fakehub import FakeHub
from safetensors.torch import load_file, save_file
from warm import Warm

from sheen_cli import Request, SheenError
from sheen_cli.babble import speech
from sheen_cli.places import Base
from sheen_cli.synthesis import Voice, until_they_end
from sheen_lm import layers
from sheen_qwen3_tts import generate as loop
from sheen_qwen3_tts import miniature, model, voice
from sheen_qwen3_tts.generate import Wish, generate
from sheen_qwen3_tts.layout import VECTOR, Prompt
from sheen_qwen3_tts.sampling import Sampling, Warp, choose

RECIPE = "qwen3tts-lora"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a reference of 4 s with its words beside it, and a base of custom voices."""
    home = tmp_path_factory.mktemp("synth")
    miniature.build(home / "base")
    sound = np.tile(speech("one two three", 44_100), 4)[: 4 * 44_100]
    soundfile.write(home / "ref.wav", np.stack([sound, sound], 1), 44_100)
    (home / "ref.txt").write_text("one two three one two three one two three\n")
    altered(home / "base", home / "custom", "custom_voice", encoder=False)
    return home


def altered(base: Path, folder: Path, kind: str, encoder: bool = True) -> Path:
    """A base of another kind, with the voices Anna and Chuan, who has a dialect."""
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    talker = config["talker_config"]
    config["tts_model_type"] = kind
    rows = miniature.CODES + 20, miniature.CODES + 21
    talker["spk_id"] = dict(zip(("anna", "chuan"), rows, strict=True))
    talker["spk_is_dialect"] = {"anna": False, "chuan": "sichuan_dialect"}
    if not encoder:
        del config["speaker_encoder_config"]
        state = load_file(folder / "model.safetensors")
        kept = {name: each for name, each in state.items() if not name.startswith("speaker_enc")}
        save_file(kept, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def said(home: Path, base: str, *flags: object, code: int = 0) -> str:
    out = home / "out.wav"
    flags = ("--text", "one", "-o", out, "--max-seconds", 0.6, *flags)
    return sheen("synth", home / base, *flags, code=code).output


def test_a_base_clones_without_training(home: Path) -> None:
    ref = ("--ref", home / "ref.wav", "--json")
    facts = {
        name: json.loads(said(home, "base", *ref, *flags).splitlines()[-1])
        for name, flags in {
            "x-vector": ["--x-vector"], "icl": ["--icl"],
            "named": ["--x-vector", "--language", "EN"],
            "other": ["--x-vector", "--language", "German"], "greedy": ["--x-vector", "--greedy"],
            "drawn": ["--x-vector", "model.temperature=0.5", "--no-greedy"],
        }.items()
    }  # fmt: skip
    assert len({json.dumps(each["nll"]) for each in facts.values()}) == len(facts)
    text = said(home, "base", "--ref", home / "ref.wav")
    assert "taking the voice of --ref (x-vector)" in text and "warning" not in text
    assert " of real time, " in text


def test_what_a_base_cannot_do_is_one_line(home: Path) -> None:
    ref = ("--ref", home / "ref.wav", "--x-vector")
    assert "give --speaker (it has none of its own) or --ref" in said(home, "base", code=2)
    assert "no voice 'eve'" in said(home, "base", "--speaker", "Eve", code=2)
    assert "no language 'ha'; it has auto, chi" in said(
        home, "base", *ref, "--language", "ha", code=2
    )
    assert "give one of them" in said(home, "base", *ref, "--icl", code=2)
    for drawn in ("model.temperature=0.5", "model.top_k=3", "model.top_p=0.9"):
        text = said(home, "base", *ref, drawn, "--greedy", code=2)
        wanted = f"error: --greedy draws nothing, and {drawn} is for drawing: give one of them\n"
        assert text == wanted
    soundfile.write(home / "tick.wav", speech("one", 24_000)[:2400], 24_000)
    text = said(home, "base", "--ref", home / "tick.wav", code=2)
    assert text == f"error: --ref {home}/tick.wav: too-short: 0.10 s, at least 0.5 s is needed\n"
    (home / "half").mkdir()
    shutil.copy(home / "base" / "config.json", home / "half")
    assert "half is no Qwen3-TTS checkpoint: generation_config.json, " in said(home, "half", code=2)


def test_an_instruction_to_a_base_is_noticed(home: Path) -> None:
    ref = ("--ref", home / "ref.wav", "--x-vector")
    assert "hardly taught to follow it" in said(home, "base", *ref, "--instruct", "Slowly.")
    assert "hardly" not in said(home, "custom", "--speaker", "anna", "--instruct", "Slowly.")


def test_custom_voices_speak_by_name_and_cannot_clone(home: Path) -> None:
    text = said(home, "custom", "--speaker", "Anna")
    assert "frames" in text and len(soundfile.read(home / "out.wav")[0])
    assert "give --speaker (it has anna, chuan) or --ref" in said(home, "custom", code=2)
    text = said(home, "custom", "--ref", home / "ref.wav", "--x-vector", code=2)
    assert text.splitlines()[-1].endswith("no speaker encoder; voices need a Base checkpoint")
    assert text.startswith("error: ") and len(text.splitlines()) == 1


def test_a_voice_with_a_dialect_speaks_it_unless_told_otherwise(home: Path) -> None:
    custom = model.load(home / "custom", {})
    ids = custom.base.languages
    rows = custom.base.voices
    assert voice.language(custom, None, rows["anna"]) is None
    for name, expected in {
        None: "sichuan_dialect", "auto": "sichuan_dialect", "zh": "sichuan_dialect", "de": "german",
    }.items():  # fmt: skip
        assert voice.language(custom, name, rows["chuan"]) == ids[expected]


def test_a_model_that_designs_voices_needs_none(home: Path) -> None:
    altered(home / "base", home / "design", "voice_design", encoder=False)
    assert "frames" in said(home, "design", "--instruct", "An old man, slowly.")


# --- ends -----------------------------------------------------------------------------------------


def speaking(home: Path) -> Voice:
    return Voice(Base(str(home / "base"), RECIPE))


def requests(home: Path, count: int) -> list[Request]:
    from sheen_cli import reference

    recording = reference.read(home / "ref.wav", None, False)
    assert recording is not None
    heard = recording.at(24_000)
    return [Request("one", seed, reference=heard) for seed in range(count)]


def test_a_runaway_is_retried_with_the_next_seed_and_said(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where ends are rare, some seeds run into the limit that the text gives, and some end."""
    talking = speaking(home)
    with torch.no_grad():
        talking.model.talker.codec_head.weight[talking.model.base.ids.eos] *= 8
    asked = requests(home, 12)
    stops = [speech.stop for speech in talking.speak(asked)]
    first = next(n for n in range(11) if stops[n : n + 2] == ["length", "end"])
    capsys.readouterr()
    (final,), (spoken,) = until_they_end(talking, asked[first : first + 1], 2)
    assert (final.seed, spoken.stop) == (first + 1, "end")
    assert f"of 'one': trying seed {first + 1} (retry 1 of 2)" in capsys.readouterr().err
    for left in (replace(asked[first], greedy=True), replace(asked[first], max_seconds=0.5)):
        (final,), _ = until_they_end(talking, [left], 2)
        assert final.seed == first
    (final,), (spoken,) = until_they_end(talking, [replace(asked[first], max_seconds=60)], 2)
    assert (final.seed, spoken.stop) == (first + 1, "end")  # the text's limit was the nearer one
    (final,), (spoken,) = until_they_end(talking, asked[first : first + 1], 0)
    assert (final.seed, spoken.stop) == (first, "length")


def test_silence_is_named_and_strict_refuses_it(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "base", tmp_path / "mute")
    file = tmp_path / "mute" / "speech_tokenizer" / "model.safetensors"
    state = load_file(file)
    last = [name for name in state if name.startswith("decoder.decoder.")][-2:]
    save_file({k: v * 0 if k in last else v for k, v in state.items()}, file)
    flags = ("--ref", home / "ref.wav", "--x-vector", "--seed", 3)
    assert "SILENT" in said(tmp_path, "mute", *flags)
    assert "1 silent" in said(tmp_path, "mute", *flags, "--strict", code=1)


# --- the loop -------------------------------------------------------------------------------------


def wishes(speech_model: model.Speech, *limits: int) -> list[Wish]:
    vector = torch.linspace(-1, 1, 16)
    words = speech_model.base.words("one two")
    return [
        Wish(Prompt(words, VECTOR, streaming=True), vector, limit, seed, greedy=seed % 2 == 0)
        for seed, limit in enumerate(limits)
    ]


def test_buffers_grow_and_rows_leave_without_a_trace(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speech_model = model.load(home / "base", {}).eval()
    asked = wishes(speech_model, 40, 3, 17, 0, 29)
    whole = [generate(speech_model, [wish], Sampling(), trace=True)[0] for wish in asked]
    for module in (loop, layers):
        monkeypatch.setattr(module, "BLOCK", 2)
    for spoken, expected in zip(generate(speech_model, asked, Sampling()), whole, strict=True):
        assert torch.equal(spoken.codes, expected.codes) and spoken.ended == expected.ended
        assert spoken.talker_nll == pytest.approx(expected.talker_nll, rel=1e-5)
        assert spoken.subtalker_nll == pytest.approx(expected.subtalker_nll, rel=1e-5, abs=1e-6)
        assert not len(spoken.first) and len(expected.first) == len(expected.codes) + 1
    assert not len(whole[3].codes) and not whole[3].ended


def test_several_sentences_read_their_weights_in_another_order(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And say the same. Not in bfloat16, for one sentence, or where the copy would be large."""
    speech_model = model.load(home / "base", {}).eval()
    head = speech_model.talker.code_predictor.lm_head[0]
    states, many = torch.randn(4, 2, head.in_features), layers.packs(torch.device("cpu"))

    def ordered(linear: torch.nn.Module = head, rows: int = 4) -> bool:
        return not isinstance(layers.linear_of(linear, rows), partial)

    assert ordered() is many and not ordered(rows=1)
    for some in (states, states[:1], states[:, :1]):
        found = layers.linear_of(head, 4)(some)
        torch.testing.assert_close(found, head(some), rtol=1e-5, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert not ordered()
    assert not ordered(torch.nn.Linear(4, 4, dtype=torch.bfloat16))
    adapter = torch.nn.Sequential(head)
    assert layers.linear_of(adapter, 4) is adapter

    def query() -> Any:
        return layers.Stack(speech_model.talker.model, 4, 8).layers[0].query

    assert isinstance(query(), partial) is not many
    asked = wishes(speech_model, 9, 7, 8)
    said = generate(speech_model, asked, Sampling())
    monkeypatch.setattr(layers, "TWICE", 0)
    assert isinstance(query(), partial)
    for one, other in zip(said, generate(speech_model, asked, Sampling()), strict=True):
        assert torch.equal(one.codes, other.codes)


def test_a_speech_costs_its_own_length(home: Path) -> None:
    """Once the short ones are over, the long one is computed alone."""
    speech_model = model.load(home / "base", {}).eval()
    rows = []
    head = speech_model.talker.codec_head
    head.register_forward_hook(lambda _, given, out: rows.append(len(out)))
    codes = generate(speech_model, wishes(speech_model, 9, 2, 2), Sampling())[0].codes
    assert rows == [3, 3, 3] + [1] * (len(codes) - 2)


@pytest.mark.parametrize("warp", [Warp(0.7, 5, 1.0), Warp(1.3, 0, 0.8), Warp(0.9, 7, 0.5)])
def test_ids_are_drawn_as_transformers_draws_them(warp: Warp) -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores = torch.randn(6, 40, generator=torch.Generator().manual_seed(1)) * 3
    wanted = TemperatureLogitsWarper(warp.temperature)(None, scores)
    if warp.top_k:
        wanted = TopKLogitsWarper(warp.top_k)(None, wanted)
    if warp.top_p < 1:
        wanted = TopPLogitsWarper(warp.top_p)(None, wanted)
    for seed in range(20):
        one, other = (torch.Generator().manual_seed(seed) for _ in range(2))
        noise = torch.stack([torch.empty(40).exponential_(generator=one) for _ in scores])
        chances = wanted.softmax(-1)
        drawn = [torch.multinomial(row, 1, generator=other) for row in chances]
        assert torch.equal(choose(scores, warp, noise), torch.cat(drawn))


@pytest.mark.parametrize("dtype", ["bf16 weights", "bf16 autocast"])
def test_it_speaks_in_bf16(home: Path, dtype: str) -> None:
    speech_model = model.load(home / "base", {}).eval()
    if dtype == "bf16 weights":
        speech_model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16 autocast"):
        (spoken,) = generate(speech_model, wishes(speech_model, 4), Sampling(), trace=True)
    assert len(spoken.codes) and spoken.first.isfinite().all() and spoken.inner.isfinite().all()


# --- the Hub --------------------------------------------------------------------------------------


def shell(warm: Warm, home: Path, *arguments: object) -> Any:
    command = [warm.python, "-m", "sheen_cli", "synth", *map(str, arguments)]
    command += ["--text", "one", "-o", str(home / "hub.wav"), "--max-seconds", "0.5"]
    return subprocess.run(command, env=warm.environment, capture_output=True, text=True)


def test_models_of_the_hub_speak(home: Path, data: Path, tmp_path: Path) -> None:
    """A base, and a checkpoint that sheen pushed without its training state."""
    sheen("train", "--recipe", "demo", "--data", data, "--out", tmp_path / "run", *TINY)
    pushed = tmp_path / "hub" / "models" / "me" / "voice"
    shutil.copytree(tmp_path / "run" / "best", pushed, ignore=shutil.ignore_patterns("training"))
    shutil.copytree(home / "base", tmp_path / "hub" / "models" / "me" / "base")
    modules = ("sheen_demo.voice", "sheen_qwen3_tts.stock:load")
    with ExitStack() as open_until_the_end:
        with FakeHub(tmp_path / "hub") as hub:
            warm = Warm(tmp_path, *modules, environment=hub.env(tmp_path / "cache"))
            open_until_the_end.enter_context(warm)
            done = shell(warm, tmp_path, "me/voice")
            assert done.returncode == 0 and "hub.wav: " in done.stdout, done.stderr
            done = shell(warm, tmp_path, "me/base", "--ref", home / "ref.wav", "--icl")
            assert done.returncode == 0 and "hub.wav: 6 frames, 0.48 s" in done.stdout, done.stderr
            done = shell(warm, tmp_path, "me/nothing")
            assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
            assert "me/nothing is no folder here, and the Hub shows no such model" in done.stderr
        done = shell(warm, tmp_path, "me/voice")  # the Hub is gone, the copy is here
        assert done.returncode == 0, done.stderr


def test_a_text_that_holds_nothing_is_refused(home: Path) -> None:
    talking = speaking(home)
    with pytest.raises(SheenError, match="holds nothing to say"):
        list(talking.speak([replace(requests(home, 1)[0], text=" ")]))
