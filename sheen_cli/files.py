"""Writing that a crash cannot half do: a temporary sibling, synced, then renamed. All of sheen's
writes pass here.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from sheen_cli.errors import SheenError

FORMAT = 1  # of dataset.json, run.json and a checkpoint's manifest.json


def sync(path: Path) -> None:
    """Flush a file's contents or a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A binary stream whose contents appear at `path`, whole, when the block ends; not at all if
    it raises.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as stream:
        stream.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of one of sheen's own files. Raises SheenError where it is damaged."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise SheenError(f"{path} is damaged: {error}") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise SheenError(f"{path} is not of this sheen's format {FORMAT}; it was made by another")
    return value


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """A temporary sibling to fill, which becomes `folder` when the block ends; what stood there
    before is replaced.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        for path in sorted(part.rglob("*")):
            sync(path)
        sync(part)
        remove(folder)
        os.rename(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    sync(folder.parent)


def remove(folder: Path) -> None:
    """Delete a folder so that no crash leaves half of it under its name."""
    if folder.exists():
        dying = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(dying, ignore_errors=True)
        os.rename(folder, dying)
        shutil.rmtree(dying)


def point(link: Path, target: str) -> None:
    """Make `link` a relative symlink to its sibling `target`, replacing an older one atomically."""
    part = link.with_name(f".{link.name}.part")
    part.unlink(missing_ok=True)
    part.symlink_to(target)
    os.replace(part, link)
    sync(link.parent)


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digests(folder: Path) -> dict[str, dict[str, int | str]]:
    """Relative path -> size and SHA-256 of every file below the folder, sorted."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in files
    }
