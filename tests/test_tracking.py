"""What is told of a training: samples by the model in training, and a copy at W&B."""

import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import TINY, sheen
from safetensors.torch import load_file

from sheen_cli import Recipe, SheenError, jobs, mirror, samples
from sheen_cli.backbones import HOOKS, resolve
from sheen_cli.logins import KEYS, URLS
from sheen_cli.rows import Rows
from sheen_cli.samples import undisturbed

KEY = "ca9a11ce5eed" * 3 + "cafe"  # of the form that W&B's keys have


def train(data: Path, out: Path, *settings: str, resume: bool = False, **hooks: Any) -> None:
    """A tiny run, with some of the backbone's hooks replaced."""
    recipe, backbone = resolve("demo", [*TINY, "train.batch_size=4", *settings])
    if hooks:
        known = {name: getattr(backbone.hook, name) for name in HOOKS}
        backbone = replace(backbone, hook=SimpleNamespace(**{**known, **hooks}))
    jobs.train(recipe, backbone, data, out, resume)


def listing(run: Path, step: int) -> list[dict[str, Any]]:
    facts = json.loads((run / "samples" / f"step-{step}" / "samples.json").read_text())
    assert facts["step"] == step
    return list(facts["samples"])


# --- samples -------------------------------------------------------------------------------------


def test_samples_are_spoken_at_every_validation_and_at_the_end(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(data, out, "log.samples=2", "train.max_steps=5", "train.validate_every=2")
    assert {path.name for path in (out / "samples").iterdir()} == {"step-2", "step-4", "step-5"}
    rows = Rows(data / "validation.jsonl")
    for number, facts in enumerate(listing(out, 5)):
        assert facts["text"] == rows[number]["text"]
        sound, rate = soundfile.read(out / "samples" / "step-5" / facts["wav"])
        assert rate == 16_000 and len(sound) / rate == pytest.approx(facts["seconds"], abs=1e-3)
        assert facts["frames"] == pytest.approx(facts["seconds"] * 20, abs=1e-6)
        assert facts["peak"] == pytest.approx(np.abs(sound).max(), abs=1e-3)
        assert facts["seconds"] <= 2 * rows[number]["duration"] + 2 and facts["stop"] in (
            "end",
            "length",
        )
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == 5 + 3  # as without samples


def test_a_sample_is_what_the_saved_model_says(data: Path, tmp_path: Path) -> None:
    """The checkpoint of the same step, loaded by `sheen synth`, speaks the same sound."""
    out = tmp_path / "run"
    train(data, out, "log.sentences=[two one, four]")
    for number, text in enumerate(["two one", "four"], 1):
        again = tmp_path / f"{number}.wav"
        limit = f"{samples.LONGEST:g}"
        sheen("synth", out / "last", "--text", text, "--max-seconds", limit, "-o", again)
        spoken = out / "samples" / "step-3" / f"{number:02}.wav"
        assert spoken.read_bytes() == again.read_bytes()
    assert [facts["text"] for facts in listing(out, 3)] == ["two one", "four"]


def test_without_validation_rows_the_first_training_rows_are_spoken(
    folder: Path, tmp_path: Path
) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    settings = ["data.validation=0", f"data.dataset={folder}"]
    sheen("prepare", "--recipe", "demo", "--out", data, *settings)
    train(data, out, *settings, "log.samples=1")
    (facts,) = listing(out, 3)
    assert facts["text"] == Rows(data / "train.jsonl")[0]["text"]


NOISE = ["model.dropout=0.1", "train.accumulate=2", "train.schedule=constant"]


def test_samples_change_nothing_of_the_training(data: Path, tmp_path: Path) -> None:
    """Weights after 4 steps: without samples, with, and with, stopped half way and resumed; by a
    synthesis that draws from every global generator and turns the modules' modes.
    """
    real = resolve("demo", TINY)[1].hook.synth

    def unruly(**arguments: Any) -> Iterator[Any]:
        random.random(), np.random.rand(), torch.rand(3)
        arguments["model"].train()
        yield from real(**arguments)
        arguments["model"].eval()

    steps, spoken = ["train.max_steps=4", "train.validate_every=1", *NOISE], ["log.samples=2"]
    train(data, tmp_path / "silent", *steps)
    train(data, tmp_path / "spoken", *steps, *spoken, synth=unruly)
    train(data, tmp_path / "parts", *steps, *spoken, "train.max_steps=2", synth=unruly)
    train(data, tmp_path / "parts", *steps, *spoken, synth=unruly, resume=True)
    silent = load_file(tmp_path / "silent" / "last" / "model.safetensors")
    for other in ("spoken", "parts"):
        weights = load_file(tmp_path / other / "last" / "model.safetensors")
        assert all(torch.equal(weights[name], tensor) for name, tensor in silent.items())
        assert listing(tmp_path / other, 4) == listing(tmp_path / "spoken", 4)


def test_modes_and_generators_are_as_before() -> None:
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout().eval())
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    with pytest.raises(KeyboardInterrupt), undisturbed(model, torch.device("cpu")):
        model.eval()
        model[1].train()
        random.random(), np.random.rand(), torch.rand(3)
        raise KeyboardInterrupt
    assert [module.training for module in model] == [True, False]
    found = float(torch.rand(())), random.random(), np.random.rand()
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    assert found == (float(torch.rand(())), random.random(), np.random.rand())


@pytest.mark.parametrize("error", [RuntimeError("no memory"), SheenError("unknown word")])
def test_an_error_in_speaking_costs_the_samples_alone(
    error: Exception, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(**_: Any) -> Iterator[Any]:
        raise error
        yield

    out = tmp_path / "run"
    train(data, out, "log.samples=1", synth=broken)
    assert f"no samples of step 3: {type(error).__name__}: {error}" in capsys.readouterr().err
    assert (out / "last").readlink() == Path("checkpoint-3")
    assert not list((out / "samples").iterdir()) if (out / "samples").exists() else True


def test_ctrl_c_while_speaking_stops_with_the_checkpoint_kept(data: Path, tmp_path: Path) -> None:
    def stopped(**_: Any) -> Iterator[Any]:
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "run", "log.samples=1", synth=stopped)
    assert (tmp_path / "run" / "last").readlink() == Path("checkpoint-3")


def test_a_voice_and_language_are_asked_for_where_they_are_heeded(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And without the language where the model lacks it, as training lays such rows out."""
    recipe, backbone = resolve("demo", [*TINY, "train.batch_size=4", "log.samples=2"])
    real, asked = backbone.hook.synth, []

    def selective(requests: Any, **arguments: Any) -> Iterator[Any]:
        asked.append([(each.speaker, each.language) for each in requests])
        if any(each.language for each in requests):
            raise SheenError("the model has no language 'en'")
        yield from real(requests=requests, **arguments)

    known = {name: getattr(backbone.hook, name) for name in HOOKS}
    hooks = SimpleNamespace(**{**known, "synth": selective})
    spec = replace(backbone.spec, reads=("speaker", "language"))
    jobs.train(recipe, replace(backbone, hook=hooks, spec=spec), data, tmp_path / "run", False)
    rows = Rows(data / "validation.jsonl")[:2]
    named = [(row["speaker"], row["language"]) for row in rows]
    assert all(speaker and language == "en" for speaker, language in named)
    assert asked == [named, [(speaker, None) for speaker, _ in named]]
    assert [facts["speaker"] for facts in listing(tmp_path / "run", 3)] == [s for s, _ in named]


# --- W&B -----------------------------------------------------------------------------------------


def records(file: Path) -> Iterator[Any]:
    """What an offline .wandb file holds: LevelDB's log format around protobuf messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, parts = file.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while at + 7 <= len(content):
        left = 32_768 - at % 32_768
        if left < 7:  # no header fits in the block's rest
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", content, at)
        parts += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def history(run: Path) -> dict[int, dict[str, Any]]:
    """step -> what W&B has of it, over all sessions."""
    found: dict[int, dict[str, Any]] = {}
    for file in sorted(run.glob("wandb/*run-*/*.wandb")):
        for record in records(file):
            if record.HasField("history"):
                values = found.setdefault(record.history.step.num, {})
                for item in record.history.item:
                    *outer, name = [item.key, *item.nested_key] if item.key else item.nested_key
                    inner = values.setdefault(outer[0], {}) if outer else values
                    inner[name] = json.loads(item.value_json)
    return found


def wandb_env(**more: str) -> dict[str, str]:
    """An environment without anybody's logins, and with the key that no byte may hold."""
    hidden = {*KEYS, *URLS, *map(str.lower, URLS)}
    kept = {k: v for k, v in os.environ.items() if k not in hidden and not k.startswith("WANDB")}
    return {**kept, "NO_PROXY": "127.0.0.1", "NETRC": "/nowhere", **more}


@pytest.fixture
def lonely(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The same for a run in this process."""
    for name in set(os.environ) - set(wandb_env()):
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", "/nowhere")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return monkeypatch


def test_w_and_b_has_what_the_log_has_and_the_samples(
    data: Path, tmp_path: Path, lonely: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    lonely.setenv("WANDB_MODE", "offline")
    out, settings = tmp_path / "run", ["train.validate_every=2", "log.samples=2", "log.project=dig"]
    arguments = ["train", "--recipe", "demo", "--data", data, "--out", out, *TINY, *settings]
    sheen(*arguments, "--wandb", "train.max_steps=3")
    sheen(*arguments, "--wandb", "train.max_steps=5", "--resume")
    found, expected = history(out), dict[int, dict[str, Any]]()
    for line in (out / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        expected.setdefault(values.pop("step"), {}).update(values)
    assert set(found) == set(expected) == {1, 2, 3, 4, 5}
    for step, values in expected.items():
        assert {name: found[step][name] for name in values} == values
    spoken = {step for step, values in found.items() if "samples/01" in values}
    assert spoken == {2, 3, 4, 5}
    for step in spoken:
        for facts in listing(out, step):
            media = found[step][f"samples/{facts['wav'][:2]}"]
            assert media["_type"] == "audio-file" and media["caption"] == facts["text"]
            (copy,) = out.glob(f"wandb/*/files/{media['path']}")
            original = out / "samples" / f"step-{step}" / facts["wav"]
            assert copy.read_bytes() == original.read_bytes()
    (about,) = {
        (record.run.run_id, record.run.project, record.run.display_name)
        for file in out.glob("wandb/*/*.wandb")
        for record in records(file)
        if record.HasField("run")
    }
    assert about == (json.loads((out / "wandb.json").read_text())["id"], "dig", "run")
    said = capfd.readouterr().err
    assert "W&B is offline: WANDB_MODE=offline" in said
    assert said.count("send it with `wandb sync ") == 2
    for part in said.split("`wandb sync ")[1:]:
        assert Path(part.partition("`")[0]).is_dir()


def test_w_and_b_is_off_unless_asked(data: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("backbone: demo\nlog:\n  wandb: true\n")
    for arguments in (["--recipe", "demo"], ["--recipe", recipe, "--no-wandb"]):
        out = tmp_path / str(len(arguments))
        sheen("train", *arguments, "--data", data, "--out", out, *TINY)
        assert not (out / "wandb").exists() and not (out / "wandb.json").exists()


def test_a_missing_package_is_one_line_at_once(data: Path, tmp_path: Path) -> None:
    """In an environment without it: its folder is hidden from the search path."""
    script = (
        "import importlib.machinery, sys\n"
        "find = importlib.machinery.PathFinder.find_spec\n"
        "hide = lambda name, *a: None if name == 'wandb' else find(name, *a)\n"
        "importlib.machinery.PathFinder.find_spec = hide\n"
        "from sheen_cli.cli import main; main()"
    )
    arguments = ["train", "--recipe", "demo", "--data", data, "--out", tmp_path / "run", "--wandb"]
    out = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True
    )
    assert out.returncode == 2 and out.stderr.count("\n") == 1
    assert 'pip install "sheen-tts[wandb]"' in out.stderr and not (tmp_path / "run").exists()


class Server(BaseHTTPRequestHandler):
    """A server that refuses every key, or says nothing at all."""

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.silent:
            return time.sleep(30)
        self.send_response(401 if self.command == "POST" else 200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_POST = do_HEAD = do_PUT = answer

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as real:
        real.silent, real.daemon_threads, real.block_on_close = False, True, False
        threading.Thread(target=real.serve_forever, args=(0.05,), daemon=True).start()
        yield real
        real.shutdown()


def recorded_offline(run: Path, said: str, reason: str) -> None:
    """All is there, the reason was said, and no secret stands in any byte that was written."""
    assert f"warning: W&B is offline: {reason}" in said
    found = history(run)
    assert set(found) == {1, 2, 3} and "samples/01" in found[3]
    written = [path.read_bytes() for path in run.rglob("*") if path.is_file()]
    for secret in (KEY, "pass-canary", "hf_canary"):
        assert all(secret.encode() not in each for each in [*written, said.encode()])


@pytest.mark.parametrize("fault", ["silent", "refuses", "unreachable"])
def test_a_server_that_is_no_use_costs_nothing(
    fault: str, server: ThreadingHTTPServer, data: Path, tmp_path: Path,
    lonely: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    port = 9 if fault == "unreachable" else server.server_address[1]
    server.silent = fault == "silent"
    lonely.setenv("WANDB_BASE_URL", f"http://user:pass-canary@127.0.0.1:{port}")
    lonely.setenv("WANDB_API_KEY", KEY)
    lonely.setenv("HF_TOKEN", "hf_canarycanarycanary")
    train(data, tmp_path / "run", "log.wandb=true", "log.samples=1")
    silent = f"127.0.0.1:{port} does not answer"
    reason = "it could not start: " if fault == "refuses" else silent
    recorded_offline(tmp_path / "run", capfd.readouterr().err, reason)


def test_nobody_is_asked_for_a_login(data: Path, warm: Path, tmp_path: Path) -> None:
    """On a terminal, which has somebody who could be asked; in bf16, whose samples are spoken as
    validation computes.
    """
    import pty

    out, (ours, theirs) = tmp_path / "run", pty.openpty()
    settings = [*TINY, "log.samples=1", "train.precision=bf16"]
    arguments = ["train", "--recipe", "demo", "--data", data, "--out", out, *settings, "--wandb"]
    done = subprocess.run(
        [warm, "-m", "sheen_cli", *map(str, arguments)],
        stdin=theirs, capture_output=True, text=True, timeout=120, env=wandb_env(),
    )  # fmt: skip
    for end in (ours, theirs):
        os.close(end)
    assert done.returncode == 0, done.stderr
    recorded_offline(out, done.stderr, "no login: `wandb login`")
    assert listing(out, 3)[0]["rms"] > 0


def test_a_service_that_is_killed_or_hangs_does_not_hold_up_the_training(
    data: Path, tmp_path: Path, lonely: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    lonely.setattr(mirror, "WAIT", 4.0)
    real = resolve("demo", TINY)[1].hook.loss
    for kind in (signal.SIGKILL, signal.SIGSTOP):
        out, hit = tmp_path / kind.name, list[int]()

        def loss(kind: int = kind, hit: list[int] = hit, **arguments: Any) -> Any:
            while not hit:  # W&B's service is up by now, or will be
                hit += services(os.getpid())
                time.sleep(0.05)
                for process in hit:
                    os.kill(process, kind)
            return real(**arguments)

        train(data, out, "log.wandb=true", loss=loss)
        for process in hit:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        assert (out / "last").readlink() == Path("checkpoint-3")
    said = capfd.readouterr().err
    assert "warning: W&B stopped, training goes on" in said
    assert "warning: W&B was not done within 4 s" in said


def services(parent: int) -> list[int]:
    """The processes of W&B's own service among a process's descendants."""
    parents, names = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, _, rest = stat.read_text().partition(" (")
        except OSError:
            continue
        name, _, rest = rest.rpartition(") ")
        parents[int(number)], names[int(number)] = int(rest.split()[1]), name
    known, grown = {parent}, True
    while grown:
        more = {child for child, above in parents.items() if above in known} - known
        known, grown = known | more, bool(more)
    return [number for number in known if names.get(number, "").startswith("wandb-core")]


def test_nothing_about_the_machine_is_sent(
    data: Path, tmp_path: Path, lonely: pytest.MonkeyPatch
) -> None:
    import getpass
    import socket

    lonely.setenv("WANDB_MODE", "offline")
    train(data, tmp_path / "run", "log.wandb=true")
    (file,) = (tmp_path / "run").glob("wandb/*/*.wandb")
    sent = b"".join(record.SerializeToString() for record in records(file))
    recipe = json.dumps([record.run.config.update for record in records(file)], default=str)
    assert "learning_rate" in recipe
    assert not re.search(rb"\b%s\b" % re.escape(socket.gethostname().encode()), sent)
    for private in (sys.executable, str(Path.cwd()), str(tmp_path), str(data.parent)):
        assert private.encode() not in sent, private
    assert f"/{getpass.getuser()}/".encode() not in sent
    assert not list((tmp_path / "run").glob("wandb/*/files/*.txt"))  # packages
    assert not list((tmp_path / "run").glob("wandb/*/files/*.json"))


def test_a_recipe_of_before_is_still_read() -> None:
    recipe: Recipe[Any] = resolve("demo", [])[0]
    assert recipe.log.wandb is False and recipe.hub.push_to is None and recipe.hub.private is True
