"""What `synth` is given: a model, a recording; and what it says of what came out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import TINY, sheen

from sheen_cli import SheenError, checkpoints, places, reference, synthesis
from sheen_cli.babble import speech

RATE = 16_000
GOOD = np.concatenate([speech("one two three four five", RATE), speech("six seven", RATE)])
GOOD = np.tile(GOOD, 1 + int(3.5 * RATE / len(GOOD)))[: 4 * RATE]


def warned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sound: np.ndarray, text: str | None = None
) -> list[str]:
    """The warnings about a recording; with a text it is gone on from."""
    soundfile.write(tmp_path / "ref.wav", sound, RATE, subtype="FLOAT")
    reference.read(tmp_path / "ref.wav", text, text is not None)
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith(f"warning: --ref {tmp_path / 'ref.wav'}: ") for line in lines)
    return [line.partition(".wav: ")[2] for line in lines]


def test_a_good_reference_is_taken_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert warned(tmp_path, capsys, GOOD) == []
    assert warned(tmp_path, capsys, GOOD, "one two three four five six seven") == []


@pytest.mark.parametrize(
    "change, text, message",
    [
        (lambda sound: sound[:RATE], None, "1.0 s tell little of a voice; 3 to 15 s are good"),
        (lambda sound: np.tile(sound, 5), None, "20 s are more than helps"),
        (lambda sound: np.tile(sound, 5), "one two three four " * 6, "20 s are more than helps"),
        (lambda sound: np.tile(sound, 8), "one two three four " * 9, "goes on from 32 s, which ta"),
        (lambda sound: np.clip(sound * 30 / sound.max(), -1, 1), None, "of it is clipped"),
        (lambda sound: sound * 2e-3, None, "it is very quiet (-"),
        (lambda sound: np.pad(sound, (0, 10 * RATE)), None, "of it is silence; cut it"),
        (lambda sound: sound, "one", "0.8 characters a second of sound: are these its words?"),
        (lambda sound: sound, "one two three " * 40, "110.0 characters a second"),
    ],
)
def test_each_fault_of_a_reference_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, text: str | None, message: str
) -> None:
    (line,) = warned(tmp_path, capsys, change(GOOD), text)
    assert message in line


def test_ideographs_take_longer_to_speak(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert warned(tmp_path, capsys, GOOD, "今天天气很好我们去") == []


@pytest.mark.parametrize(
    "sound, message",
    [
        (GOOD[: RATE // 10], "too-short: 0.10 s, at least 0.5 s is needed"),
        (np.tile(GOOD, 16), "too-long: 64.00 s, the limit is 60 s"),
        (GOOD * 1e-6, "silent: its peak is below -80 dB"),
    ],
)
def test_what_is_no_reference_is_one_line(tmp_path: Path, sound: np.ndarray, message: str) -> None:
    soundfile.write(tmp_path / "ref.wav", sound, RATE, subtype="FLOAT")
    with pytest.raises(SheenError, match=message) as caught:
        reference.read(tmp_path / "ref.wav", None, False)
    assert str(caught.value).startswith(f"--ref {tmp_path / 'ref.wav'}: ")


def test_stereo_of_another_rate_is_mixed_and_resampled(tmp_path: Path) -> None:
    sound = speech("one two three", 44_100)
    soundfile.write(tmp_path / "ref.wav", np.stack([sound, np.zeros_like(sound)], 1), 44_100)
    found = reference.read(tmp_path / "ref.wav", None, None)
    assert found is not None
    heard = found.at(24_000).audio
    assert heard.ndim == 1 and len(heard) == pytest.approx(len(sound) * 24 / 44.1, abs=2)
    assert np.abs(heard).max() == pytest.approx(np.abs(sound).max() / 2, rel=0.05)


def test_the_words_lie_beside_it_or_are_given(tmp_path: Path) -> None:
    wav = tmp_path / "ref.wav"
    soundfile.write(wav, GOOD, RATE)
    with pytest.raises(SheenError, match=r"--icl needs the words of .*ref\.txt"):
        reference.read(wav, " ", True)
    wav.with_suffix(".txt").write_text("one two three four five six\n")
    for text, expected in ((None, "one two three four five six"), ("seven " * 4, "seven " * 4)):
        found = reference.read(wav, text, True)
        assert found is not None and found.text == expected.strip() and found.in_context
    with pytest.raises(SheenError, match="belong to a recording"):
        reference.read(None, "one", None)


def test_icl_and_x_vector_are_two_names_of_one_choice() -> None:
    expected = {
        (None, None): None, (True, None): True, (False, None): False, (None, True): False,
        (None, False): True, (True, False): True, (False, True): False,
    }  # fmt: skip
    for flags, meaning in expected.items():
        assert reference.in_context(*flags) is meaning
    for flag in (True, False):
        with pytest.raises(SheenError, match="give one of them"):
            reference.in_context(flag, flag)


def test_which_model_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("base", "run/checkpoint-3", "empty"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "run" / "checkpoint-3" / "recipe.yaml").write_text("backbone: demo\n")

    def chosen(*arguments: str, recipe: str | None = None) -> object:
        return places.chosen(arguments, recipe, "usual")

    assert chosen("base", "a.b=1") == (places.Base("base", "usual"), ["a.b=1"])
    assert chosen("base", recipe="mine") == (places.Base("base", "mine"), [])
    for ours in ("run", "run/checkpoint-3", "run/checkpoint-4", "nowhere"):
        assert chosen(ours) == (Path(ours), [])
    with pytest.raises(SheenError, match="--recipe is for a base model; run holds the recipe"):
        chosen("run", recipe="mine")
    with pytest.raises(SheenError, match=r"empty holds no model: neither a checkpoint \(manifest"):
        chosen("empty")
    with pytest.raises(SheenError, match=r"\. holds no model: .*; these do: base$"):
        chosen(".")
    with pytest.raises(SheenError, match="one checkpoint speaks at a time, not base, run"):
        chosen("base", "run")


def test_a_recipe_that_knows_no_bases_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    said = sheen("synth", tmp_path, "--recipe", "demo", "--text", "one", code=2).output
    assert said == f"error: {tmp_path} is no checkpoint, and recipe 'demo' knows no base models\n"


FACTS: dict[str, Any] = {
    "text": "one", "wav": "a.wav", "frames": 25, "seconds": 2.0, "rms": 0.1, "peak": 0.5,
    "stop": "end", "nll": {}, "real_time_factor": 0.5, "seed": 0, "retries": 0,
}  # fmt: skip


def test_a_line_says_all_figures() -> None:
    assert synthesis.line(FACTS) == (
        "a.wav: 25 frames, 2.00 s, RMS 0.100, peak 0.50, 0.50 of real time, ended by itself"
    )
    cut = {**FACTS, "stop": "length", "peak": 0.0, "seed": 5, "retries": 2}
    assert synthesis.line(cut).endswith(
        "CUT OFF at its length limit, SILENT, seed 5 after 2 retries"
    )
    assert "nothing for 'one'" in synthesis.line({**FACTS, "wav": None})


def test_strict_lets_nothing_pass_that_is_cut_off_or_silent(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cut, silent = {**FACTS, "stop": "length"}, {**FACTS, "peak": 0.0}
    assert synthesis.judge([FACTS], strict=True) and synthesis.judge([cut, silent])
    assert capsys.readouterr().err == ""
    assert not synthesis.judge([FACTS, cut, silent], strict=True)
    assert capsys.readouterr().err == "--strict: of 3 outputs 1 cut off, 1 silent\n"
    for strict in (True, False):
        with pytest.raises(SheenError, match="said nothing for 'one': it stopped at once"):
            synthesis.judge([FACTS, {**FACTS, "wav": None}], strict)


def test_strict_from_the_shell_and_a_checkpoint_without_its_training_state(
    data: Path, tmp_path: Path
) -> None:
    sheen("train", "--recipe", "demo", "--data", data, "--out", tmp_path / "run", *TINY)
    best = (tmp_path / "run" / "best").resolve()
    for file in (best / checkpoints.STATE).iterdir():
        file.unlink()
    assert checkpoints.check(best) is not None and checkpoints.check(best, state=False) is None
    synth = ["synth", best, "--text", "one", "-o", tmp_path / "x.wav", "--max-seconds", 0.3]
    assert "CUT OFF" in sheen(*synth, "--no-strict").output
    assert "--strict: of 1 outputs 1 cut off" in sheen(*synth, "--strict", code=1).output
