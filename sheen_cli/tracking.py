"""metrics.jsonl: one line an event, and on resume none that the checkpoint does not know."""

import json
import math
from pathlib import Path
from typing import Any

from sheen_cli.files import sync, write_text, writing


def append(path: Path, record: dict[str, Any]) -> None:
    """Add one line to the log. It is the one file that is not replaced as a whole: see `settle`."""
    with writing(path), path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record, allow_nan=False) + "\n")


def settle(path: Path) -> None:
    """Bring the log to the disk, before a checkpoint that counts on its lines."""
    if path.is_file():
        with writing(path):
            sync(path)
            sync(path.parent)


def read(path: Path) -> list[dict[str, Any]]:
    """All lines but one that a crash cut off."""
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if step_of(line) < math.inf]


def take_back(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`, and one that a crash cut off."""
    if path.is_file():
        kept = [line for line in path.read_text("utf-8").splitlines() if step_of(line) <= step]
        write_text(path, "".join(f"{line}\n" for line in kept))


def step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return math.inf  # a line that a crash cut off
