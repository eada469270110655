"""Writing that a crash cannot half do: a temporary sibling, synced, then renamed. All of sheen's
writes pass here.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from sheen_cli.errors import DISK, SheenError, Unwritable

FORMAT = 1  # of dataset.json, run.json and a checkpoint's manifest.json
LEFT = (".*.part", ".*.old")  # what a crash may leave; the next writer of the folder sweeps it


def sync(path: Path) -> None:
    """Flush a file's contents or a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make(folder: Path) -> None:
    """Make a folder and what lacks above it, so that no crash of the machine takes them back."""
    if not folder.is_dir():
        make(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say of a full disk, met while the block writes `path`, what it is. Raises Unwritable."""
    try:
        yield
    except Exception as error:
        if isinstance(error, SheenError) or (reason := full(error)) is None:
            raise
        there = next(each for each in (path, *path.absolute().parents) if each.is_dir())
        free = shutil.disk_usage(there).free
        raise Unwritable(
            f"cannot write {path}: {reason}, {free / 1e6:.1f} MB free on its disk; make room and "
            f"go on, what was finished before is whole"
        ) from error


def full(error: BaseException) -> str | None:
    """How the disk is at fault, or None where it is not. safetensors gives the number of an
    OSError in its text alone, and torch buries one (or, writing by itself, loses it).
    """
    known = re.search(r"\(os error (\d+)\)", str(error))
    if isinstance(error, OSError) or known:
        number = int(known[1]) if known else getattr(error, "errno", None)
        return os.strerror(number) if number in DISK else None
    if isinstance(error, RuntimeError):
        if error.__context__ is not None and (reason := full(error.__context__)):
            return reason
        if "iostream error" in str(error):
            return "the disk is full or fails"
    return None


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A binary stream whose contents appear at `path`, whole, when the block ends; not at all if
    it raises.
    """
    make(path.parent)
    part = path.with_name(f".{path.name}.part")
    try:
        with writing(path):
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
    """A temporary sibling to fill, which becomes `folder`, synced to the last entry, when the block
    ends. What stood there before is replaced; a crash just then may leave neither, but no half.
    """
    make(folder.parent)
    part, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("part", "old"))
    delete(part)
    part.mkdir()
    try:
        with writing(folder):
            yield part
            for path in sorted(part.rglob("*")):
                sync(path)
            sync(part)
            if folder.exists():
                delete(old)
                os.rename(folder, old)
            os.rename(part, folder)
    finally:
        delete(part)
    sync(folder.parent)
    delete(old)  # not before the new one is safe


def copy(folder: Path, to: Path) -> None:
    """Copy a folder of files; unlike shutil.copytree, it ends with the OSError that it met."""
    to.mkdir(exist_ok=True)
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            copy(path, to / path.name)
        else:
            shutil.copyfile(path, to / path.name)


def remove(path: Path) -> None:
    """Delete a file or folder so that no crash leaves half of it under its name."""
    dying = path.with_name(f".{path.name}.old")
    delete(dying)
    if path.exists() or path.is_symlink():
        os.rename(path, dying)
        sync(path.parent)
        delete(dying)


def delete(path: Path) -> None:
    """Delete what a temporary name stands for, if anything."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Delete what a crash left half written or half deleted in `folder`, which we alone write."""
    for pattern in LEFT:
        for path in folder.glob(pattern):
            delete(path)


def point(link: Path, target: str) -> None:
    """Make `link` a relative symlink to its sibling `target`, replacing an older one atomically."""
    part = link.with_name(f".{link.name}.part")
    with writing(link):
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
