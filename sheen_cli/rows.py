"""Prepared rows on disk: one JSON object a line, an index beside it, and a manifest that is
written last.

`train.jsonl` stays readable by anything. The index holds offset, size, checksum and seconds of
each row, so opening and bucketing parse nothing and memory does not grow with the corpus; it is
derived and rebuilt at will.
"""

import json
import os
import struct
import weakref
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from sheen_cli.errors import SheenError
from sheen_cli.files import read_json, replacing
from sheen_cli.types import Row

MANIFEST = "dataset.json"
INDEX = np.dtype([("offset", "<u8"), ("size", "<u4"), ("crc", "<u4"), ("seconds", "<f4")])


def write(path: Path, lines: Iterator[bytes]) -> int:
    """Write encoded rows and their index; returns the number of rows."""
    entries, offset = bytearray(), 0
    with replacing(path) as stream:
        for line in lines:
            stream.write(line)
            seconds = json.loads(line).get("duration") or 0.0
            entries += struct.pack("<QIIf", offset, len(line), zlib.crc32(line), seconds)
            offset += len(line)
    return len(write_index(path, np.frombuffer(entries, INDEX)))


def encode(row: Row) -> bytes:
    """One line of a rows file. Raises ValueError for what JSON cannot hold (NaN, arrays,
    tensors).
    """
    try:
        return (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
    except (TypeError, UnicodeEncodeError) as error:
        raise ValueError(str(error)) from None


def write_index(path: Path, index: np.ndarray) -> np.ndarray:
    with replacing(index_path(path)) as stream:
        np.save(stream, index)
    return index


def index_path(path: Path) -> Path:
    return path.with_name(path.name + ".idx")


def read_index(path: Path, keep: bool = True) -> np.ndarray:
    """The rows file's index, rebuilt where it is missing, older than the rows or of another
    length, and then written beside it if it is to `keep`.
    """
    beside, size = index_path(path), path.stat().st_size
    if beside.is_file() and beside.stat().st_mtime_ns >= path.stat().st_mtime_ns:
        try:
            index = np.asarray(np.load(beside, allow_pickle=False))
        except (ValueError, EOFError, OSError):
            index = np.array([], INDEX)
        if index.dtype == INDEX and (
            int(index[-1]["offset"]) + int(index[-1]["size"]) == size if len(index) else not size
        ):
            return index
    entries, offset = [], 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                seconds = parse(line, path, number).get("duration") or 0.0
                if not isinstance(seconds, (int, float)):
                    raise SheenError(f"{path}:{number}: duration is {seconds!r}, not a number")
                entries.append((offset, len(line), zlib.crc32(line), float(seconds)))
            offset += len(line)
    if keep:
        with suppress(OSError):  # a read-only folder: the index is only a convenience
            return write_index(path, np.array(entries, INDEX))
    return np.array(entries, INDEX)


def parse(line: bytes, path: Path, number: int) -> Row:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except ValueError as error:
        raise SheenError(f"{path}:{number}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise SheenError(f"{path}:{number}: not a JSON object")
    return row


class Rows(Sequence[Row]):
    """A rows file by position. Each process opens its own handle; `codebooks` (sizes) bounds the
    codes. With `keep`, an index is left beside the file for the next time.
    """

    def __init__(
        self, path: Path, codebooks: tuple[int, ...] | None = None, keep: bool = True
    ) -> None:
        self.path, self.codebooks = path, codebooks
        self.table = read_index(path, keep)
        self._stream: Any = None
        self._owner = 0  # the process that opened the stream

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stream": None, "_owner": 0}

    def __len__(self) -> int:
        return len(self.table)

    @property
    def seconds(self) -> np.ndarray:
        """Duration of each row, float32 (n,)."""
        return np.asarray(self.table["seconds"])

    def __getitem__(self, position: Any) -> Any:
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        entry = self.table[position]
        if self._owner != os.getpid():  # a forked process shares no file position with its parent
            self._stream, self._owner = self.path.open("rb"), os.getpid()
            weakref.finalize(self, self._stream.close)
        self._stream.seek(int(entry["offset"]))
        line = self._stream.read(int(entry["size"]))
        if zlib.crc32(line) != int(entry["crc"]):
            raise SheenError(
                f"{self.path}: row {position + 1} is not what was indexed; if the file was "
                f"edited on purpose, "
                f"delete {index_path(self.path).name}, else prepare it again"
            )
        row = parse(line, self.path, position + 1)
        if (
            self.codebooks
            and "audio_codes" in row
            and (problem := bad_codes(row["audio_codes"], self.codebooks))
        ):
            raise SheenError(f"{self.path}:{position + 1}: {problem}")
        if "beside" in row:  # kept relative, so that a data folder can be moved
            row["beside"] = str(self.path.parent / row["beside"])
        return row


def bad_codes(codes: Any, codebooks: tuple[int, ...]) -> str | None:
    """What is wrong with codes (frames x codebooks) for codebooks of these sizes, or None."""
    try:
        array = np.asarray(codes)
    except ValueError:
        return "audio_codes: the frames differ in length"
    if array.ndim != 2 or array.shape[1] != len(codebooks) or array.dtype.kind not in "iu":
        return (
            f"audio_codes: whole numbers, frames x {len(codebooks)} are wanted, not "
            f"{array.dtype} {array.shape}"
        )
    wrong = np.argwhere((array < 0) | (array >= np.array(codebooks)))
    if not len(wrong):
        return None
    frame, book = (int(i) for i in wrong[0])
    return (
        f"audio_codes: frame {frame}, codebook {book}: {array[frame, book]} is not in "
        f"0..{codebooks[book] - 1}"
    )


def manifest(folder: Path) -> dict[str, Any]:
    """The data folder's dataset.json. Raises SheenError where preparation has not finished."""
    path = folder / MANIFEST
    if not path.is_file():
        raise SheenError(
            f"{folder} holds no prepared data ({MANIFEST} is missing); run `sheen prepare "
            f"--out {folder}`, or name a data set with --dataset"
        )
    return read_json(path)
