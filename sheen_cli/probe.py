"""Jobs that may hang or crash, in a process of their own: `Child` on this side, `python -m
sheen_cli.probe JOB ARGUMENT...` on the other. It answers in lines of JSON.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Empty, Queue
from threading import Thread
from typing import IO, Any

GRACE = 5.0  # seconds between the end of a child's output and its own end


class Died(Exception):
    """The child hung, or ended before it answered; the message goes on after a subject."""


class Child:
    """A child process at its job, to be used in a `with` block, whose end kills what is left of it.

    It imports from where this process imports. What it prints goes to stderr, or with `quiet` to
    nobody but `Died`'s message.
    """

    def __init__(
        self,
        job: str,
        *arguments: str,
        quiet: bool = False,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.errors: IO[bytes] | None = tempfile.TemporaryFile() if quiet else None  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "sheen_cli.probe", job, *arguments],
            stdin=subprocess.PIPE,  # whose end tells the child that we are gone
            stdout=subprocess.PIPE,
            stderr=self.errors,
            start_new_session=True,  # so that its own children end with it
            env={
                **os.environ,
                **(environment or {}),
                "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
                "SHEEN_STRICT_PLUGINS": "0",  # it reports what is wrong, and goes on
                "SHEEN_PLUGIN_TIMEOUT": "0",  # the time is taken here
            },
        )
        self.lines: Queue[bytes | None] = Queue()
        Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                self.lines.put(line)
        self.lines.put(None)

    def answer(self, seconds: float | None) -> dict[str, Any]:
        """The next answer. Raises Died if none comes in time (None: no limit)."""
        try:
            line = self.lines.get(timeout=seconds)
        except Empty:
            raise Died(f"did not end within {seconds:g} s") from None
        if line is None:
            raise Died(f"ended the process ({self._ending()}){self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _ending(self) -> str:
        try:
            code = self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def _last_words(self) -> str:
        if self.errors is None:
            return ""
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f": {last}" if last else ""

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()
        if self.errors is not None:
            self.errors.close()


def load(*names: str) -> Iterator[dict[str, Any]]:
    """Import and register each backbone: {"error": what is wrong or None}."""
    from sheen_cli import backbones
    from sheen_cli.errors import SheenError

    for name in names:
        try:
            backbones.load(name)
            yield {"error": None}
        except SheenError as error:
            yield {"error": str(error)}


def machine() -> Iterator[dict[str, Any]]:
    from sheen_cli import machine

    yield from machine.checks()


def step(name: str) -> Iterator[dict[str, Any]]:
    from sheen_cli import tiny

    yield from tiny.steps(name)


JOBS: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
    "load": load,
    "machine": machine,
    "step": step,
}


def outlived(parent: int) -> None:
    """End with the process that asked, however it ended; its own limit of time went with it."""
    os.read(parent, 1)
    os._exit(1)


def main() -> None:
    """Do the job, answering on what was standard output; what plugins print goes to stderr."""
    Thread(target=outlived, args=[os.dup(0)], daemon=True).start()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        job, *arguments = sys.argv[1:]
        for answer in JOBS[job](*arguments):
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
        answers.write("{}\n")  # the end of the job


if __name__ == "__main__":
    main()
