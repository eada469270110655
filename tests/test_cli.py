"""The command line as a user meets it: help, errors, figures, the four commands."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import broken
import pytest
import soundfile
import typer.main
from broken import Plugin, install, recordings, whole
from conftest import TINY, digit_sentences, sheen, write_folder
from test_docs import commands as documented
from test_docs import keys
from typer.testing import CliRunner

from sheen_cli.babble import speech
from sheen_cli.cli import app

SHEEN = [sys.executable, "-m", "sheen_cli"]


def shell(
    *arguments: object,
    cwd: Path,
    code: int = 0,
    python: object = sys.executable,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """A real process, of this Python or another, somewhere else than the checkout."""
    out = subprocess.run(
        [python, "-m", "sheen_cli", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
    )
    assert out.returncode == code, f"exit {out.returncode}\n{out.stdout}\n{out.stderr}"
    return out


def commands(
    group: Any = None, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group, with its words."""
    group = group or typer.main.get_command(app)
    yield path, group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


ALL = list(commands())


def test_the_commands() -> None:
    names = {" ".join(path) for path, _ in ALL}
    assert {
        "demo",
        "prepare",
        "info",
        "train",
        "synth",
        "recipes list",
        "recipes show",
        "plugins list",
        "doctor",
    } <= names


@pytest.mark.parametrize("path", [path for path, _ in ALL], ids=" ".join)
def test_every_command_has_help_in_plain_ascii(path: tuple[str, ...]) -> None:  # S0-17
    text = sheen(*path, "--help").output
    assert text.isascii() and "Usage:" in text
    assert text == sheen(*path, "-h").output


def test_s0_3_every_boolean_can_be_turned_on_and_off() -> None:
    seen = 0
    for path, command in ALL:
        for option in command.params:
            if getattr(option, "is_flag", False) and option.name not in ("help", "show"):
                seen += 1
                name = option.opts[0].removeprefix("--")
                assert option.secondary_opts == [f"--no-{name}"], (path, option.opts)
    assert seen >= 8


def test_help_and_version_import_nothing_heavy(tmp_path: Path) -> None:
    for arguments in (["--help"], ["--version"], ["train", "--help"]):
        script = (
            "import sys; from sheen_cli.cli import app\n"
            "try: app(sys.argv[1:])\nexcept SystemExit: pass\n"
            "heavy = {'torch', 'transformers', 'accelerate', 'numpy', 'rich', 'pluggy', 'yaml'}\n"
            "sys.exit(f'imported {heavy & set(sys.modules)}' if heavy & set(sys.modules) else 0)"
        )
        out = subprocess.run(
            [sys.executable, "-c", script, *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert out.returncode == 0, out.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'?"),
        (["recipes", "lst"], "No such command 'lst'. Did you mean 'list'?"),
        (["plugins", "lst"], "No such command 'lst'. Did you mean 'list'?"),
        (["train", "--max-stepz", "3"], "--max-stepz (Possible options: --max-steps"),
        (["train", "--data", "nowhere"], "nowhere holds no prepared data"),
        (["train", "--recipe", "dmo"], "did you mean 'demo'?"),
        (["prepare", "--dataset", "nowhere"], "neither a folder nor a file, nor USER/NAME on"),
        (["prepare"], "which data?"),
        (["synth", "--text", "one"], "no checkpoint was named and runs/ holds no run"),
        (["synth", "nowhere", "--text", "one"], "no checkpoint at nowhere"),
        (["synth", ".", "--text", "one"], "holds no model: neither a checkpoint (manifest"),
        (["synth", "--text", " "], "there is no text to speak"),
        (["synth", "--text-file", "nowhere.txt"], "no text file nowhere.txt"),
        (["synth", "--text", "a", "--text-file", "b"], "not both"),
        (["info", "nowhere"], "nothing at nowhere"),
        (["info", "."], "neither a .jsonl file"),
        (["recipes", "show"], "Missing argument"),
        (["plugins", "check", "dmo"], "no backbone named 'dmo'; did you mean 'demo'?"),
        (["doctor", "--timeout", "soon"], "Invalid value for '--timeout'"),
    ],
)  # fmt: skip
def test_s0_16_a_mistake_is_one_clear_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = sheen(*arguments, code=2)
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("dmo", "no recipe named 'dmo'; did you mean 'demo'?"),
        ("demo trian.max_steps=3", "trian: unknown key; did you mean 'train'?"),
        ("demo max_steps=3", "max_steps: unknown key; did you mean 'train.max_steps'?"),
        ("demo train.max_stepz=3", "train.max_stepz: unknown key; did you mean 'max_steps'?"),
        ("demo train.hiden=3", "train.hiden: unknown key; did you mean 'model.hidden'?"),
        ("demo backbone=dmo", "no backbone named 'dmo'; did you mean 'demo'?"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest(arguments: str, message: str) -> None:
    assert message in sheen("recipes", "show", *arguments.split(), code=2).output


def test_misspelt_names_in_a_recipe_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    for text, message in (
        ("backbone: dmo", "no backbone named 'dmo'; did you mean 'demo'?"),
        ("backbone: demo\ntrian: {epochs: 1}", "trian: unknown key; did you mean 'train'?"),
        ("backbone: demo\ntrain: {epoch: 1}", "train.epoch: unknown key; did you mean 'epochs'?"),
        ("backbone: demo\nlayer: 1", "layer: unknown key; did you mean 'model.layers'?"),
    ):
        path.write_text(text)
        assert message in sheen("recipes", "show", path, code=2).output
    near = sheen("recipes", "show", tmp_path / "mien.yaml", code=2).output
    assert f"no recipe file {tmp_path}/mien.yaml; did you mean 'mine.yaml'?" in near


TYPES = {
    "string": str, "boolean": bool, "list": list, "object": dict, "null": type(None),
    "number": (int, float),
}  # fmt: skip


def agrees(value: Any, table: dict[str, str]) -> None:
    """Fails unless an object has just the documented keys, of the documented types."""
    optional = {key for key, kind in table.items() if kind.endswith(", optional")}
    assert set(table) - optional <= set(value) <= set(table)
    for key, inner in value.items():
        kinds = table[key].removesuffix(", optional").split(" or ")
        assert any(isinstance(inner, TYPES[kind]) for kind in kinds), (key, inner)
        assert "number" not in kinds or "boolean" in kinds or not isinstance(inner, bool), key


def test_json_is_one_value_with_the_documented_keys(data: Path, tmp_path: Path) -> None:
    def one(*arguments: object) -> Any:
        """The command's answer; anything else on stdout would not parse."""
        out = sheen(*arguments, "--json").stdout
        assert out.count("\n") == 1
        return json.loads(out)

    tables = {name: keys(section) for name, section in documented().items()}
    rows, rejected, folder, run, checkpoint = tables["info"]
    kinds = {
        "rows": rows,
        "rejected": rejected,
        "data": folder,
        "run": run,
        "checkpoint": checkpoint,
    }
    source = write_folder(tmp_path / "set", digit_sentences(6))
    agrees(
        one("prepare", "--recipe", "demo", "--dataset", source, "--out", tmp_path / "out"),
        tables["prepare"][0],
    )
    runs = tmp_path / "run"
    trained = one("train", "--recipe", "demo", "--data", data, "--out", runs, *TINY)
    agrees(trained, run)
    assert trained == one("info", runs)
    (tmp_path / "rejected.jsonl").write_text('{"reason": "silent"}\n')
    for path in (data / "train.jsonl", tmp_path / "rejected.jsonl", data, runs, runs / "best"):
        facts = one("info", path)
        agrees(facts, kinds[facts["kind"]])
        for inner in facts.get("splits", {}).values():
            agrees({"kind": "rows", "path": "", **inner}, rows)
    say = ("synth", runs, "--text", "one", "--max-seconds", 0.5, "-o", tmp_path / "x.wav")
    agrees(one(*say), tables["synth"][0])
    for recipe in one("recipes", "list"):
        agrees(recipe, tables["recipes list"][0])
    agrees(one("recipes", "show", "demo"), tables["recipes show"][0])
    for plugin in one("plugins", "list"):
        agrees(plugin, tables["plugins list"][0])


def test_json_of_demo(tmp_path: Path) -> None:
    # a few recordings in place of the demo's own, two of them held out
    folder = write_folder(tmp_path / "set", digit_sentences(8))
    table = (folder / "metadata.csv").read_text().splitlines()
    ends = ["split", *["train"] * 6, *["test"] * 2]
    lines = [f"{line}|{end}\n" for line, end in zip(table, ends, strict=True)]
    (folder / "metadata.csv").write_text("".join(lines))
    small = [f"data.dataset={folder}", "model.vocoder_rounds=4", *TINY[:3]]
    places = ["--out", tmp_path / "run", "--data", tmp_path / "data"]
    spoken = json.loads(sheen("demo", *places, "--max-steps", 1, "--json", *small).stdout)
    assert len(spoken) == 2
    for each in spoken:
        agrees(each, keys(documented()["synth"])[0])


def test_json_stays_json_where_a_plugin_prints(tmp_path: Path) -> None:
    source = "print('imported')\n" + whole("talks", prepare="print('working'); yield {}")
    install(tmp_path, Plugin("talks", source, ""))
    recordings(tmp_path / "set")
    arguments = ("prepare", "--recipe", "talks", "--dataset", "set", "data.max_samples=1", "--json")
    out = broken.sheen(tmp_path, *arguments)
    assert out.returncode == 0, out.stderr
    assert json.loads(out.stdout)["backbone"] == "talks"
    assert "imported" in out.stderr and "working" in out.stderr


def test_a_folder_without_metadata(tmp_path: Path) -> None:
    assert "has no metadata.csv" in sheen("prepare", "--dataset", tmp_path, code=2).output
    (tmp_path / "x.txt").write_text("")
    assert (
        "must be one of .jsonl, .csv, .parquet"
        in sheen("prepare", "--dataset", tmp_path / "x.txt", code=2).output
    )
    (tmp_path / "metadata.csv").write_text("")
    assert (
        "metadata.csv is empty"
        in sheen("prepare", "--dataset", tmp_path, "--out", tmp_path / "o", code=2).output
    )
    (tmp_path / "metadata.csv").write_text("a,b\n1,2\n")
    assert (
        "no header names"
        in sheen("prepare", "--dataset", tmp_path, "--out", tmp_path / "o", code=2).output
    )
    (tmp_path / "metadata.csv").write_bytes(b"a|caf\xe9\n")
    assert (
        "is not UTF-8"
        in sheen("prepare", "--dataset", tmp_path, "--out", tmp_path / "o", code=2).output
    )


def test_the_four_commands_from_a_shell_somewhere_else(  # S0-6, S1-G1
    tmp_path: Path, warm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "my set", digit_sentences(16))
    home = tmp_path / "elsewhere"
    home.mkdir()
    out = shell("prepare", "--dataset", folder, "--recipe", "demo", cwd=home)
    assert "data/train.jsonl  15 rows" in out.stdout and "16 read, 0 rejected" in out.stdout
    out = shell("info", "data/train.jsonl", cwd=home, NO_COLOR="1")
    assert (
        "rows" in out.stdout and "voice 0" in out.stdout and "\x1b" not in out.stdout + out.stderr
    )
    out = shell("train", *TINY, cwd=home, python=warm)
    assert "'demo' fits the data" in out.stderr and "runs/demo/best -> checkpoint-3" in out.stdout
    (home / "lines.txt").write_text("one two\n\nthree\n")
    out = shell(
        "synth",
        "--text-file",
        "lines.txt",
        "-o",
        "said.wav",
        "--json",
        "--max-seconds",
        1,
        cwd=home,
        python=warm,
    )
    facts = [json.loads(line) for line in out.stdout.splitlines()]
    assert [line["text"] for line in facts] == ["one two", "three"]
    for line in facts:
        assert {"frames", "seconds", "rms", "peak", "stop", "nll", "real_time_factor"} <= set(line)
        assert soundfile.info(home / line["wav"]).duration == pytest.approx(
            line["seconds"], abs=0.01
        )
    assert "runs/demo/best, the newest run's best" in out.stderr
    assert all(stream.isascii() for stream in (out.stdout, out.stderr))
    monkeypatch.chdir(home)
    for path in ("data", "runs/demo", "runs/demo/best"):
        assert json.loads(sheen("info", path, "--json").stdout)["backbone"] == "demo"


def test_synth_reads_standard_input(data: Path, tmp_path: Path) -> None:
    sheen("train", "--recipe", "demo", "--data", data, "--out", tmp_path / "run", *TINY)
    command = ["synth", tmp_path / "run", "-o", tmp_path / "x.wav", "--max-seconds", 1]
    out = CliRunner().invoke(app, [str(each) for each in command], input="four\n")
    assert out.exit_code == 0, out.output
    assert f"{tmp_path}/x.wav: " in out.stdout and "RMS" in out.stdout and "peak" in out.stdout


def test_s0_4_a_model_that_stops_at_once_is_a_clear_error(data: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from sheen_cli.checkpoints import seal
    from sheen_cli.files import digests
    from sheen_demo.layout import END

    sheen("train", "--recipe", "demo", "--data", data, "--out", tmp_path / "run", *TINY)
    folder = (tmp_path / "run" / "best").resolve()
    weights = load_file(folder / "model.safetensors")
    # all-equal logits but for END's, so whatever the state END or its opposite wins; the norm's
    # weight picks the sign

    weights["heads.weight"] = torch.zeros_like(weights["heads.weight"])
    weights["heads.weight"][END] = 1.0
    weights["heads.weight"][:END] = -1.0
    for sign in (1.0, -1.0):
        weights["trunk.norm.weight"] = torch.full_like(weights["trunk.norm.weight"], sign)
        save_file(weights, folder / "model.safetensors")
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"] = {k: v for k, v in digests(folder).items() if k != "manifest.json"}
        del manifest["seal"]
        manifest["seal"] = seal(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))
        command = ["synth", folder, "--text", "one", "-o", tmp_path / "x.wav", "--max-seconds", 1]
        out = CliRunner().invoke(app, [str(each) for each in command])
        if out.exit_code:
            break
    assert out.exit_code == 2 and "it stopped at once" in out.stderr
    assert "Traceback" not in out.stderr
    assert not (tmp_path / "x.wav").exists()


def test_s0_10_many_lines_load_the_model_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sheen_demo.voice

    loads = []
    real = sheen_demo.voice.DemoModel.__init__
    monkeypatch.setattr(
        sheen_demo.voice.DemoModel,
        "__init__",
        lambda self, *a: (loads.append(1), real(self, *a))[1],
    )
    sheen("train", "--recipe", "demo", "--data", data, "--out", tmp_path / "run", *TINY)
    loads.clear()
    (tmp_path / "t.txt").write_text("one\ntwo\nthree\nfour\n")
    lines = ["--text-file", tmp_path / "t.txt", "-o", tmp_path / "x.wav", "--max-seconds", 0.5]
    result = sheen("synth", tmp_path / "run", *lines)
    assert len(loads) == 1
    assert len(list(tmp_path.glob("x-*.wav"))) == 4, result.output


def test_resume_needs_no_recipe_and_says_when_there_is_nothing_to_do(
    data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    sheen("train", "--recipe", "demo", "--data", data, "--out", run, *TINY)
    arguments = ["train", "--data", data, "--out", run, "--resume"]
    assert "nothing to do: the run stands at step 3" in sheen(*arguments).output
    assert "last is checkpoint-5" in sheen(*arguments, "--max-steps", 5).output


def test_train_takes_the_data_as_it_is(data: Path, tmp_path: Path) -> None:
    arguments = ["train", "--recipe", "demo", "--data", data, "--out", tmp_path / "run"]
    assert "`sheen prepare` settles the data" in sheen(*arguments, "data.seed=3", code=2).output


def test_a_run_that_never_reached_a_checkpoint_is_begun_anew(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ["train", "--recipe", "demo", "--data", data, "--out", run, *TINY]
    sheen(*arguments, "train.learning_rate=1e30", "train.clip_norm=null", "--max-steps", 20, code=6)
    assert (run / "run.json").is_file()
    assert "last is checkpoint-3" in sheen(*arguments).output


def test_heads_must_fit_the_width() -> None:
    text = sheen("recipes", "show", "demo", "model.heads=3", code=2).output
    assert "hidden (160) must be a multiple of twice the heads (3)" in text
    text = sheen("recipes", "show", "demo", "train.threads=0", code=2).output
    assert "has 1 error:" in text and "constrained" not in text


def test_sound_goes_to_wav_files_that_can_be_written(data: Path, tmp_path: Path) -> None:
    sheen("train", "--recipe", "demo", "--data", data, "--out", tmp_path / "run", *TINY)
    say = ["synth", tmp_path / "run", "--text", "one", "--max-seconds", 0.5, "-o"]
    for out in ("x.mp3", "-", tmp_path):
        assert "ending in .wav" in sheen(*say, out, code=2).output
    assert "error: " in sheen(*say, "/proc/x.wav", code=2).output
    (tmp_path / "latin.txt").write_bytes(b"one\xe9\n")
    lines = ["synth", tmp_path / "run", "--text-file", tmp_path / "latin.txt"]
    assert "latin.txt is not UTF-8 (byte 3)" in sheen(*lines, code=2).output


def test_synth_takes_settings(data: Path, tmp_path: Path) -> None:
    sheen("train", "--recipe", "demo", "--data", data, "--out", tmp_path / "run", *TINY)
    say = ["synth", "--text", "one", "-o", tmp_path / "x.wav", tmp_path / "run"]
    short = json.loads(sheen(*say, "synth.max_seconds=0.5", "--json").stdout)
    assert short["seconds"] <= 0.5
    assert "synth.max_second: unknown key" in sheen(*say, "synth.max_second=1", code=2).output
    assert "one checkpoint speaks at a time" in sheen(*say, tmp_path, code=2).output


def test_damaged_files_of_ours_are_one_line(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    run = tmp_path / "run"
    sheen("train", "--recipe", "demo", "--data", copy, "--out", run, *TINY)
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4, "los')
    assert "checkpoint-3" in sheen("info", run).output
    for content, message in (("{}", "is not of this sheen's format"), ("{", "is damaged")):
        (run / "run.json").write_text(content)
        assert message in sheen("info", run, code=2).output
        (copy / "dataset.json").write_text(content)
        for command in (["info", copy], ["train", "--data", copy, "--out", tmp_path / "r2"]):
            assert message in sheen(*command, code=2).output
    (tmp_path / "odd.jsonl").write_text('{"audio_codes": [[1], [1, 2]]}\n{"audio_codes": 3}\n')
    assert (
        json.loads(sheen("info", tmp_path / "odd.jsonl", "--json").stdout)["unreadable_codes"] == 2
    )


def test_what_a_backbone_does_not_heed_is_refused(data: Path, tmp_path: Path) -> None:
    run, wav = tmp_path / "run", tmp_path / "ref.wav"
    sheen("train", "--recipe", "demo", "--data", data, "--out", run, *TINY)
    soundfile.write(wav, speech("one two three", 16_000), 16_000)
    synth = ["synth", run, "--text", "one", "-o", tmp_path / "out.wav"]
    for flags in (["--speaker", "anna"], ["--language", "en"], ["--instruct", "slowly"]):
        said = sheen(*synth, *flags, code=2).output
        assert f"backbone 'demo' does not heed {flags[0]}; it heeds none of these" in said
    assert "does not heed --ref" in sheen(*synth, "--ref", wav, code=2).output
    assert "no such file" in sheen(*synth, "--ref", tmp_path / "no.wav", code=2).output
    assert "--icl needs the words" in sheen(*synth, "--ref", wav, "--icl", code=2).output
    assert "belong to a recording" in sheen(*synth, "--icl", code=2).output
    wav.with_suffix(".txt").write_text("one two three\n")
    assert "does not heed --ref" in sheen(*synth, "--ref", wav, "--icl", code=2).output
    assert not (tmp_path / "out.wav").exists()


def test_a_resumed_run_finds_its_data_and_a_wrong_name_shows_what_there_is(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "run"
    sheen("train", "--recipe", "demo", "--data", data, "--out", out, *TINY)
    resumed = sheen("train", "--out", out, "--resume", "--max-steps", 4, "--json")
    assert json.loads(resumed.stdout)["last"] == "checkpoint-4"
    other = tmp_path / "other"
    folder = write_folder(tmp_path / "set", digit_sentences(6))
    sheen("prepare", "--recipe", "demo", "--dataset", folder, "--out", other)
    said = sheen("train", "--out", out, "--resume", "--data", other, "--max-steps", 5, code=2)
    assert f"trained on other data than {other}; resume with the same --data" in said.output
    said = sheen("synth", out / "checkpoint-9", "--text", "one", code=2).output
    assert f"no checkpoint at {out / 'checkpoint-9'}; there are checkpoint-3, checkpoint-4" in said
    weights = out / "checkpoint-4" / "model.safetensors"
    assert weights.stat().st_mode & 0o044 == 0o044 & ~umask()  # not for the owner alone
    weights.write_bytes(weights.read_bytes()[:-1])
    said = sheen("synth", out / "checkpoint-4", "--text", "one", code=2).output
    assert f"; {out / 'checkpoint-3'} is whole" in said


def umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


def test_ctrl_c_is_exit_code_130_and_keeps_what_is_finished(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train = ["train", "--recipe", "demo", "--data", data, "--out", out, *TINY, "train.save_every=1"]
    process = subprocess.Popen(
        [*SHEEN, *map(str, train), "train.max_steps=1000000"],
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background jobs ignore Ctrl-C, and so would what they start
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with process:
        limit = time.monotonic() + 60
        while not (out / "last").exists() and time.monotonic() < limit:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert "what was finished is kept" in said and "Traceback" not in said
    done = int((out / "last").readlink().name.removeprefix("checkpoint-"))
    sheen(*train, "--resume", f"train.max_steps={done + 1}")
    assert (out / "last").readlink() == Path(f"checkpoint-{done + 1}")


def test_several_texts_and_settings_that_do_not_fit(data: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out.wav"
    sheen("train", "--recipe", "demo", "--data", data, "--out", run, *TINY)
    synth = ["synth", run, "-o", out, "--max-seconds", 0.5]
    said = sheen(*synth, "--text", "one two", "--text", "three", "--json").stdout.splitlines()
    assert [json.loads(line)["text"] for line in said] == ["one two", "three"]
    said = sheen(*synth, "--text", "one", "model.hidden=64", code=2).output
    assert "does not fit model.hidden=64" in said and len(said.splitlines()) == 1
    said = sheen(*synth, "--text", "one", "model.hiden=64", code=2).output
    assert "recipe.yaml with your settings has 1 error" in said and "'hidden'" in said


def test_the_hub_is_not_asked_for_what_would_lie_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path, or a name in a folder that is here; what is most like it is said. The Hub is out of
    reach here, so that whoever asks it says so.
    """
    for name in ("checkpoint-3", "best"):
        (tmp_path / "runs" / "demo" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name, hint in {
        "runs/dmo": "; did you mean runs/demo?",
        "./rusn/demo/best": "; did you mean runs/demo/best?",
        f"{tmp_path}/runs/demmo": f"; did you mean {tmp_path}/runs/demo?",
        "runs/demo/bst": "; there are checkpoint-3",
        "rnus": "; did you mean runs?",
        "~/nothing": "",
        "runs/zzz": "",
        "a/b/c": "",
    }.items():
        said = sheen("synth", name, "--text", "one", code=2).output
        assert said == f"error: no checkpoint at {Path(name)}{hint}\n"
    said = sheen("synth", "rusn/demo", "--text", "one", code=2).output  # the Hub may have that
    assert said.startswith("rusn/demo is no folder here; did you mean runs/demo? Asking the Hub")
    assert "error: model.base=rusn/demo is not on this machine" in said


def test_info_writes_nothing(data: Path, tmp_path: Path) -> None:
    """Neither beside somebody's file, nor where the rows' index is lost."""
    (tmp_path / "theirs.jsonl").write_text('{"text": "one", "duration": 1.5}\n')
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "train.jsonl.idx").unlink()
    before = sorted(tmp_path.rglob("*"))
    facts = json.loads(sheen("info", tmp_path / "theirs.jsonl", "--json").stdout)
    assert facts["rows"] == 1 and facts["seconds"]["p50"] == 1.5
    sheen("info", tmp_path / "data")
    assert sorted(tmp_path.rglob("*")) == before


def test_info_counts_what_was_refused(tmp_path: Path) -> None:
    (tmp_path / "rejected.jsonl").write_text('{"reason": "silent"}\n{"reason": "silent"}\n')
    assert "silent 2" in sheen("info", tmp_path / "rejected.jsonl").output


def test_demo_overwrites_runs_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("years")
    result = sheen("demo", "--overwrite", "--out", tmp_path / "thesis", "--max-steps", 1, code=2)
    assert "is no run" in result.output and (tmp_path / "thesis" / "thesis.txt").is_file()
