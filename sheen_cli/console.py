"""What a person sees: rich bars on a terminal, plain ASCII lines elsewhere. Results go to stdout,
the rest to stderr.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

Tick = Callable[[float, str], None]  # (done, note)
PLAIN_SECONDS = 10  # between progress lines that are not a bar


def fancy() -> bool:
    return (
        sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    )


def mute() -> bool:
    """Whether this is one of several processes and not the first, which speaks for all."""
    return os.environ.get("RANK", "0") != "0"


def say(text: str) -> None:
    """A line of progress for people."""
    if not mute():
        error(text)


def error(text: str) -> None:
    """A line that every process may say."""
    print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    say(f"warning: {text}")


def result(text: str) -> None:
    """A line that is the command's answer."""
    if not mute():
        print(text, flush=True)


def columns(rows: Iterable[tuple[str, ...]], gap: str = "  ") -> list[str]:
    """Rows of cells as aligned lines."""
    rows = list(rows)
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return [
        gap.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


@contextmanager
def progress(label: str, total: float | None) -> Iterator[Tick]:
    """Report progress of one job; the block calls the yielded function with what is done so far
    and a note.
    """
    with _bar(label, total) if fancy() else _lines(label, total) as tick:
        yield tick


@contextmanager
def _lines(label: str, total: float | None) -> Iterator[Tick]:
    last = time.monotonic()

    def tick(done: float, note: str = "") -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_SECONDS:
            last = time.monotonic()
            say(f"{label}: {done:.0f}{f' of {total:.0f}' if total else ''}  {note}".rstrip())

    yield tick


@contextmanager
def _bar(label: str, total: float | None) -> Iterator[Tick]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    layout = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}" + (f"/{total:.0f}" if total else "")),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*layout, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total, note="")

        def tick(done: float, note: str = "") -> None:
            bar.update(task, completed=done, note=note)

        yield tick
