"""Real processes that die for real: children forked from a parent that has imported everything,
SIGKILL at a chosen operation on the file system, place in the training, or moment.
"""

import builtins
import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
import torch
from accelerate import Accelerator
from torch.optim.optimizer import register_optimizer_step_post_hook

from sheen_cli import SheenError, tracking, training

LONGEST = 120.0  # seconds that a child may take before it counts as hung

# --- processes -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What a forked child does, and, if it is to be killed from outside, after how long."""

    call: Callable[[], object]
    kill_after: float = LONGEST


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code, or minus the signal that killed it; and all it printed."""

    code: int
    output: str
    pid: int

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL


def fork(call: Callable[[], object], output: Path) -> int:
    """Run `call` in a child whose stdout and stderr go to a file; returns its pid. It exits as the
    command line would: 0, or a SheenError's code.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return pid
    code = 1
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        sink = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        call()
        code = 0
    except SheenError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.code
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int, output: Path, wait: bool = True) -> Ended | None:
    """How the child ended; None where it goes on and we do not wait."""
    done, status = os.waitpid(pid, 0 if wait else os.WNOHANG)
    if not done:
        return None
    return Ended(os.waitstatus_to_exitcode(status), output.read_text("utf-8", "replace"), pid)


Case = Generator[Job, Ended, Any]


def schedule(cases: Sequence[Case], outputs: Path, slots: int = 2) -> list[Any]:
    """Run the cases, each a generator of jobs that is sent how they ended, `slots` children at a
    time; returns what the cases return, in order.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    results: list[Any] = [None] * len(cases)
    waiting = list(enumerate(cases))[::-1]
    running: dict[int, tuple[int, Case, float, Path]] = {}

    def go_on(number: int, case: Case, before: Ended | None) -> None:
        try:
            job = next(case) if before is None else case.send(before)
        except StopIteration as stop:
            results[number] = stop.value
            return
        output = outputs / f"case-{number}.txt"
        running[fork(job.call, output)] = number, case, time.monotonic() + job.kill_after, output

    while waiting or running:
        while waiting and len(running) < slots:
            go_on(*waiting.pop(), None)
        if not running:
            continue
        due = min(limit for _, _, limit, _ in running.values()) - time.monotonic()
        signal.sigtimedwait([signal.SIGCHLD], max(0.0, due))
        for pid, (number, case, limit, output) in list(running.items()):
            if time.monotonic() >= limit:
                os.kill(pid, signal.SIGKILL)
            if (end := ended(pid, output, wait=time.monotonic() >= limit)) is not None:
                del running[pid]
                go_on(number, case, end)
    return results


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


# --- operations on the file system ---------------------------------------------------------------


class Disk:
    """Counts what changes the file system, in a journal outside of it, and dies at operation
    `fatal` (from 1): before it, or half-way through it where it writes.
    """

    def __init__(self, journal: Path, fatal: int | None = None) -> None:
        self.fatal, self.count, self.deep = fatal, 0, False
        self.journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self.pid = os.getpid()  # forked readers of rows count nothing
        for name in ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir", "symlink"):
            setattr(os, name, self.before(name, getattr(os, name)))
        os.ftruncate = self.before("ftruncate", os.ftruncate)
        real_pwrite, real_send = os.pwrite, os.sendfile

        def half_pwrite(handle: int, content: bytes, offset: int) -> None:
            real_pwrite(handle, content[: len(content) // 2], offset)

        def half_send(out: int, source: int, offset: int, count: int) -> None:
            real_send(out, source, offset, os.fstat(source).st_size // 2)

        os.pwrite = self.halfway("pwrite", real_pwrite, half_pwrite)
        os.sendfile = self.halfway("sendfile", real_send, half_send)
        self.open = io.open
        builtins.open = io.open = self.opened  # type: ignore[assignment]
        real_save, real_serialize = torch.save, safetensors.torch.serialize_file

        def half_save(value: object, file: Any) -> None:
            whole = io.BytesIO()
            real_save(value, whole)
            stream = file if hasattr(file, "write") else self.open(file, "wb")
            stream.write(whole.getvalue()[: whole.tell() // 2])
            stream.flush()

        def half_serialize(tensors: Any, path: Any, *rest: Any, **more: Any) -> None:
            real_serialize(tensors, path, *rest, **more)
            os.truncate(path, os.path.getsize(path) // 2)

        torch.save = self.halfway("torch.save", real_save, half_save)
        safetensors.torch.serialize_file = self.halfway(
            "safetensors", real_serialize, half_serialize
        )

    def next(self, what: str) -> bool:
        """Count an operation; whether it is the one to die at."""
        if self.deep or os.getpid() != self.pid:  # a part of one that is counted as a whole
            return False
        self.count += 1
        os.write(self.journal, f"{self.count} {what}\n".encode())
        return self.count == self.fatal

    def before(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            if self.next(" ".join([name, *map(label, given)])):
                die()
            return real(*given, **more)

        return call

    def halfway(
        self, name: str, real: Callable[..., Any], half: Callable[..., Any]
    ) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            fatal, before = self.next(name), self.deep
            self.deep = True
            try:
                if fatal:
                    half(*given, **more)
                    die()
                return real(*given, **more)
            finally:
                self.deep = before

        return call

    def opened(self, file: Any, mode: str = "r", *given: Any, **more: Any) -> Any:
        if not set(mode) & set("wax+"):
            return self.open(file, mode, *given, **more)
        if self.next(f"open {label(file)}"):
            die()
        return Stream(self.open(file, mode, *given, **more), self)


class Stream:
    """A file opened for writing, which may die with half of a write on the disk."""

    def __init__(self, inner: Any, disk: Disk) -> None:
        self._inner, self._disk = inner, disk

    def write(self, content: Any) -> int:
        if self._disk.next("write"):
            self._inner.write(content[: len(content) // 2])
            self._inner.flush()
            die()
        return int(self._inner.write(content))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *problem: object) -> None:
        self._inner.close()


def label(path: object) -> str:
    return path.name if isinstance(path, Path) else str(path)


# --- places in the training ----------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class Stop:
    """Where a training dies: in optimizer step `step` (from 1), right after one of PHASES."""

    step: int
    phase: int


# the first micro-batch's gradient; the optimizer's step; the validation's line; the checkpoint
PHASES = ("mid-accumulation", "stepped", "validated", "saved")


def watch(stop: Stop | None, steps: Path) -> None:
    """Note every optimizer step in a file, and die at `stop`. Nothing that is computed changes."""
    journal = os.open(steps, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    now = 0  # the step that is being done

    def reached(phase: str, step: int | None = None) -> None:
        if stop == Stop(now if step is None else step, PHASES.index(phase)):
            die()

    rate, backward, append = training.learning_rate, Accelerator.backward, tracking.append
    save = training.validate_and_save

    def begun(train: Any, total: Any, progress: Any) -> float:
        nonlocal now
        now = progress.step + 1
        return rate(train, total, progress)

    def gradient(self: Any, *given: Any, **more: Any) -> None:
        backward(self, *given, **more)
        reached("mid-accumulation")

    def stepped(*_: object) -> None:
        os.write(journal, f"{now}\n".encode())
        reached("stepped")

    def appended(path: Path, record: dict[str, Any]) -> None:
        append(path, record)
        if "validation_loss" in record:
            reached("validated")

    def saved(*given: Any, **more: Any) -> None:
        save(*given, **more)
        reached("saved")

    training.learning_rate = begun
    Accelerator.backward = gradient
    tracking.append = appended
    training.validate_and_save = saved
    register_optimizer_step_post_hook(stepped)
