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
