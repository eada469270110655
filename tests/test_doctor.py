"""`sheen doctor`: real processes, real packages, and no secret in any line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from broken import Plugin, install, sheen, whole
from test_cli import agrees
from test_docs import commands as documented
from test_docs import keys

from sheen_cli import logins
from sheen_cli.doctor import Check, absent, disk, lines, report, stack
from sheen_cli.machine import checks, tried, unused

CANARY = "hf_canary0123456789"
# a package with extras: one that is missing, one that is there, one that does not count
EXTRAS = b"""Metadata-Version: 2.1
Name: broken-extras
Version: 1.0
Provides-Extra: codec
Provides-Extra: there
Provides-Extra: dev
Requires-Dist: numpy
Requires-Dist: no-such-codec>=2; extra == "codec"
Requires-Dist: numpy>=1; extra == "there"
Requires-Dist: no-such-linter; extra == "dev"
Requires-Dist: other-system; extra == "codec" and sys_platform == "none"
"""


def test_ready_here_not_ready_with_broken_plugins_and_no_secret_told(
    warm: Path, tmp_path: Path
) -> None:
    secrets = {
        "HF_TOKEN": CANARY,
        "WANDB_API_KEY": f"wandb{CANARY}",
        "HF_ENDPOINT": f"https://somebody:url{CANARY}@hub.example.org/{CANARY}",
    }
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    # a plugin that blurts out what it finds
    source = "import os\nprint(os.environ['HF_TOKEN'])\nraise KeyError(os.environ['HF_TOKEN'])\n"
    install(tmp_path / "b", Plugin("blurts", source, ""))
    # one whose tested versions are not these, and that cannot be tried
    stacks = "stacks=({'torch': '>=2.8', 'numpy': '==0.1'},),"
    source = whole("old", more=stacks).replace("tiny=lambda folder: (),", "")
    install(tmp_path / "b", Plugin("old", source, "", metadata=EXTRAS.replace(b"extras", b"old")))
    good = sheen(tmp_path / "a", "doctor", "--json", python=warm, **secrets)
    assert good.returncode == 0, good.stdout + good.stderr
    facts = json.loads(good.stdout)
    report_keys, check_keys = keys(documented()["doctor"])
    agrees(facts, report_keys)
    for check in facts["checks"]:
        agrees(check, check_keys)
    assert facts["ready"] is True
    found = {check["name"]: check for check in facts["checks"]}
    assert {"python", "torch", "precision", "attention", "disk", "hub login"} <= set(found)
    assert {"backbone demo", "versions for demo", "extras"} <= set(found)
    assert any(name.startswith("device") for name in found)
    assert "one real step in" in found["backbone demo"]["value"]
    assert found["hub login"]["value"] == "logged in"
    assert found["hub endpoint"]["value"].endswith("hub.example.org")
    bad = sheen(tmp_path / "b", "doctor", "--json", "--timeout", 1, **secrets)
    assert bad.returncode == 1
    found = {check["name"]: check for check in json.loads(bad.stdout)["checks"]}
    blurted = found["backbone blurts"]
    assert "broken-blurts 1.0 cannot be used: KeyError: '***'" in blurted["value"]
    assert "pip uninstall broken-blurts" in blurted["remedy"]
    assert "one tiny step did not end within 1 s" in found["backbone demo"]["value"]
    assert found["versions for old"]["ok"] is False
    assert found["versions for old"]["remedy"] == '`pip install "numpy==0.1"`'
    assert found["backbone old"]["ok"] is None
    assert "no tiny settings" in found["backbone old"]["value"]
    extra = found["extra broken-old[codec]"]
    assert extra["remedy"] == '`pip install "broken-old[codec]"`' and extra["ok"] is None
    assert extra["value"] == "not installed: no-such-codec>=2"
    for out in (good, bad):
        assert CANARY not in out.stdout + out.stderr
        assert out.stdout.isascii()


def test_the_nearest_stack_counts() -> None:
    assert stack("x", [{"numpy": ">=99"}, {"numpy": ">=2"}]).ok is True
    torch = stack("x", [{"numpy": ">=2", "torch": "==1.0"}, {"numpy": ">=99"}])
    assert torch.ok is None and torch.remedy == '`pip install "torch==1.0"`'
    assert stack("x", [{"no-such-package": ""}]).ok is False
    assert "no-such-package missing" in stack("x", [{"no-such-package": ""}]).value
    assert stack("x", [{"numpy": "newest"}]).ok is False
    assert stack("x", []).ok is None


def test_extras_of_a_real_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, Plugin("extras", "", "", metadata=EXTRAS))
    monkeypatch.syspath_prepend(tmp_path)
    assert absent("broken-extras") == {"codec": ["no-such-codec>=2"]}


def test_an_extra_that_excludes_the_one_that_is_there_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sets of versions to choose from, of which one is installed."""
    rival = b"""Provides-Extra: rival
Requires-Dist: no-such-fork; extra == "rival"
Requires-Dist: numpy<1; extra == "rival"
"""
    head, _, tail = EXTRAS.partition(b"Requires-Dist")
    install(tmp_path, Plugin("extras", "", "", metadata=head + rival + b"Requires-Dist" + tail))
    monkeypatch.syspath_prepend(tmp_path)
    assert absent("broken-extras") == {"codec": ["no-such-codec>=2"]}


def test_a_full_disk_is_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {})()
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    for free, ok in ((0.5e9, False), (5e9, None), (50e9, True)):
        usage.free = free
        assert disk(tmp_path).ok is ok
    assert disk(tmp_path).value == f"50.0 GB free in {tmp_path}"


def test_what_the_machine_can_do() -> None:
    found = {check["name"].split()[0]: Check(**check) for check in checks()}
    assert found["torch"].ok and found["device"].ok
    assert found["precision"].ok and found["precision"].value.startswith("fp32, bf16")
    assert found["attention"].ok and "sdpa" in found["attention"].value
    works, fails = tried({"good": int, "bad": lambda: 1 / 0})
    assert works == ["good"] and fails == {"bad": "ZeroDivisionError: division by zero"}


def test_a_gpu_that_torch_cannot_use_comes_with_both_commands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for cuda, said in ((None, "built for the CPU alone"), ("12.6", "built for CUDA 12.6")):
        value, remedy = unused("NVIDIA H100, driver 570.1", cuda)
        assert "NVIDIA H100" in value and said in value
        for build in ("cu126", "cpu"):
            assert (
                f"pip install torch --index-url https://download.pytorch.org/whl/{build}" in remedy
            )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert unused("NVIDIA H100", "12.6")[1] == "unset CUDA_VISIBLE_DEVICES"


def test_a_process_without_torch_is_told_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.12: not found')\n")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    script += "from sheen_cli.doctor import machine, lines; print('\\n'.join(lines(machine())))"
    command = [sys.executable, "-c", script]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.startswith("NO  torch  ImportError: libcudart.so.12: not found")
    assert "whl/cu126" in out and "whl/cpu" in out
    (tmp_path / "torch.py").write_text("import os\nos.abort()\n")
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "NO  torch  PyTorch or the GPU's driver ended the process (signal SIGABRT)" in out


@pytest.mark.parametrize(
    "address, host",
    [
        ("https://hub.example.org", "hub.example.org"),
        ("https://me:secret@hub.example.org:8080/path", "hub.example.org:8080"),
        ("https://me:sec/ret@hub.example.org/x", "hub.example.org"),
        ("https://secret@hub.example.org?x=secret", "hub.example.org"),
        ("http://[::1]:80/", "[::1]:80"),
        ("secret words", "no host"),
    ],
)
def test_a_host_is_all_that_is_shown_of_an_address(address: str, host: str) -> None:
    assert logins.host(address) == host


def test_logins_are_found_where_they_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*logins.KEYS, *logins.URLS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not logins.wandb() and logins.values() == []
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password 0123456789\n")
    (tmp_path / "netrc").chmod(0o600)
    assert logins.wandb()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user passwort 0123456789\n")
    assert not logins.wandb()
    monkeypatch.setenv("HF_TOKEN", CANARY)
    monkeypatch.setenv("https_proxy", "http://me:pass%2Fword@proxy:1")
    assert logins.hub() and logins.values() == [CANARY, "pass%2Fword", "pass/word"]
    assert logins.scrub(f"no {CANARY}.", logins.values()) == "no ***."


def test_the_lines_are_aligned_and_notices_do_not_decide() -> None:
    found = [Check("a", True, "good", "unsaid"), Check("long", None, "so so", "do this")]
    assert lines(found) == ["ok  a     good", "--  long  so so", "          do this"]
    assert report(found)["ready"] and not report([*found, Check("b", False, "bad")])["ready"]
