"""The figures of `make reliability`, with the seed that it prints: here a quarter of their cases,
all of them in the slow test. And what is too small for a figure: who may write, and the exit codes.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, sheen
from reliability import FIGURES

from sheen_cli import locks
from sheen_cli.errors import Busy

SHARE = 4
PROMISED = {"operations": 60, "resumes": 30, "moments": 20, "exact": 36, "damaged": 30}
PROMISED |= {"disk": 8, "writers": 20}
HERE = [name for name in FIGURES if name != "plugins"]  # which test_plugins has


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    """All of them from one process, which imports torch once and forks its runs."""
    command = [
        sys.executable,
        Path(__file__).with_name("reliability.py"),
        "--json",
        f"--every={SHARE}",
    ]
    command += [f"--only={name}" for name in HERE]
    end = subprocess.run(command, capture_output=True, text=True)
    assert end.stdout, end.stderr[-3000:]
    found = json.loads(end.stdout)
    assert end.returncode == (not all(each["passed"] == each["n"] for each in found)), end.stderr
    return dict(zip(HERE, found, strict=True))


@pytest.mark.parametrize("name", HERE)
def test_s0_12_s2_43_reliability(figures: dict[str, Any], name: str) -> None:
    """s0_12 and s2_43, a resumed run equals an uninterrupted one, are `exact`."""
    figure = figures[name]
    assert figure["passed"] == figure["n"], figure["failures"]
    assert figure["n"] >= figure["promised"] >= PROMISED[name] // SHARE


@pytest.mark.slow
def test_all_cases_of_all_figures() -> None:
    command = [sys.executable, Path(__file__).with_name("reliability.py")]
    end = subprocess.run(command, capture_output=True, text=True)
    assert end.returncode == 0, end.stdout + end.stderr


def test_all_is_synced_before_it_is_renamed_and_the_rename_before_anything_is_deleted(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill loses nothing that was written, a power cut does: so the calls are watched."""
    synced: dict[int, int] = {}  # inode -> its time of change when it was last synced
    owed: set[Path] = set()  # folders in which a rename is not on the disk yet
    renames = []
    fsync, rename, replace, unlink = os.fsync, os.rename, os.replace, os.unlink

    def settled(path: Path) -> bool:
        facts = path.lstat()
        return path.is_symlink() or synced.get(facts.st_ino) == facts.st_mtime_ns

    def watched_sync(handle: int) -> None:
        fsync(handle)
        facts = os.fstat(handle)
        synced[facts.st_ino] = facts.st_mtime_ns
        owed.discard(Path(os.readlink(f"/proc/self/fd/{handle}")))

    def watched(real: Any) -> Any:
        def call(source: Any, target: Any, **more: Any) -> None:
            old, new = Path(source), Path(target)
            if old.name.endswith(".part"):
                loose = [path for path in (old, *old.rglob("*")) if not settled(path)]
                assert not loose, f"{loose} were not synced before {old} became {new}"
                renames.append(new.name)
            real(source, target, **more)
            owed.add(new.parent.resolve())

        return call

    def watched_unlink(path: Any, **more: Any) -> None:
        assert "dir_fd" not in more or not owed, f"{path} goes before {owed} are safe"
        unlink(path, **more)

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(os, "rename", watched(rename))
    monkeypatch.setattr(os, "replace", watched(replace))
    monkeypatch.setattr(os, "unlink", watched_unlink)
    steps = ["train.max_steps=6", "train.save_every=1", "train.validate_every=2", "train.keep=1"]
    sheen("train", "--recipe", "demo", "--data", data, "--out", tmp_path / "run", *TINY, *steps)
    assert renames.count("best") == 6 and "checkpoint-6" in renames and "run.json" in renames
    assert not owed


HOLDER = """
import sys, time
from pathlib import Path
from sheen_cli import locks
with locks.hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_by_another(folder: Path) -> Iterator[int]:
    command = [sys.executable, "-c", HOLDER, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process.pid


def test_a_folder_that_is_being_written_is_refused_by_every_command(
    data: Path, folder: Path, tmp_path: Path
) -> None:
    run, rows = tmp_path / "run", tmp_path / "rows"
    sheen("train", "--recipe", "demo", "--data", data, "--out", run, *TINY)
    before = sorted(run.rglob("*"))
    train = ["train", "--data", data, "--out", run, "--resume"]
    prepare = ["prepare", "--recipe", "demo", "--dataset", folder, "--out", rows]
    demo = ["demo", "--out", run, "--data", tmp_path / "demo", "--overwrite"]
    for place, arguments in ((run, train), (run, demo), (rows, prepare)):
        with held_by_another(place) as pid:
            said = sheen(*arguments, code=3).output
        assert f"{place} is being written by process {pid} on host" in said
        assert "choose another --out" in said
    assert sorted(run.rglob("*")) == before and not (tmp_path / "demo").exists()
    sheen(*prepare)
    assert json.loads((rows / "dataset.json").read_text())["read"] == 24


def test_a_lock_is_free_again_and_says_nothing_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(sys, "argv", ["/usr/bin/sheen", "train", "--out", "a b"])
    for _ in range(2):
        with locks.hold(tmp_path / "new" / "run"):
            facts = json.loads((tmp_path / "new" / "run" / ".lock").read_text())
            assert facts["command"] == "sheen train --out 'a b'"
            assert "hf_secret" not in str(facts)
            with pytest.raises(Busy, match="this very process"), locks.hold(tmp_path / "new/run"):
                pass
    assert not list((tmp_path / "new" / "run").iterdir())


def test_what_is_not_ours_is_refused_without_a_trace(data: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    train = ["train", "--recipe", "demo", "--data", data, "--out", tmp_path, *TINY]
    assert "not empty and holds no run" in sheen(*train, code=2).output
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_exit_codes(data: Path, tmp_path: Path) -> None:
    """5, a full disk, and 3, a second writer, have figures of their own."""
    train = ["train", "--recipe", "demo", "--data", data, "--out", tmp_path / "run", *TINY]
    worse = ["train.learning_rate=1e30", "train.clip_norm=null", "train.max_steps=20"]
    assert "lower train.learning_rate" in sheen(*train, *worse, code=6).output
    assert "nothing at" in sheen("info", tmp_path / "nowhere", code=2).output
