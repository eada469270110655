"""Packed tokens on disk: what a shard is, and how it is read. `shard_writer` writes them.

A shard is one safetensors file: `tokens` (n,) uint32 in the order of its windows, `windows` (w, 7)
and `pieces` (p, 3) with the columns named below, and in its header what decided its bytes and the
counts so far. A source's shards are a folder of them; a manifest, which is written last, marks
that they are finished.
"""

import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sheen_cli import Row, SheenError

FORMAT = 1
MANIFEST = "manifest.json"
HEADER = "sheen"  # our one key in a shard's header: of several the order would not be settled
# a window: where its tokens begin in the shard, their number, its first piece, their number, the
# language's number, whether it is for validation, and the milliseconds of speech in it
OFFSET, LENGTH, PIECE, PIECES, LANGUAGE, HELD_OUT, MILLISECONDS = range(7)
# a piece: the number of its document in the source, where in it it begins, its tokens
DOCUMENT, BEGIN, COUNT = range(3)
TYPES = {"U32": "<u4", "I64": "<i8"}  # of a shard's arrays, in safetensors' words and numpy's


def name(folder: Path, number: int) -> Path:
    return folder / f"{number:05}.safetensors"


def digest(path: Path) -> dict[str, Any] | None:
    """A shard's size and SHA-256; None where there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": found}


# --- the manifest --------------------------------------------------------------------------------


def manifest(folder: Path, made: dict[str, Any] | None = None) -> dict[str, Any]:
    """The manifest of finished shards. Raises SheenError where they are not finished, not all
    there, or made of something else than `made` says, which may be a part of `Made.facts`.
    """
    value = listed(folder, made)
    for file, facts in value["shards"].items():
        found = (folder / file).stat().st_size if (folder / file).is_file() else None
        if found != facts["bytes"]:
            size = "is missing" if found is None else f"has {found} bytes, not {facts['bytes']}"
            raise SheenError(f"{folder / file} {size}; prepare the data again with --overwrite")
    return value


def listed(folder: Path, made: dict[str, Any] | None = None) -> dict[str, Any]:
    """The manifest alone, whatever became of its shards."""
    path = folder / MANIFEST
    if not path.is_file():
        raise SheenError(f"{folder} holds no finished shards; run `sheen prepare` (again)")
    try:
        value = dict(json.loads(path.read_text("utf-8")))
    except ValueError as error:
        raise SheenError(f"{path} is damaged: {error}") from None
    if value.get("format") != FORMAT:
        raise SheenError(f"{path} is not of this sheen's format {FORMAT}")
    if made is not None:
        require(folder, value["made"], made)
    return value


def require(folder: Path, before: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse shards of another tokenizer, codec or whatever else is `wanted` of what they are
    `made` from, as a training does that reads them.
    """
    changed = [key for key, value in wanted.items() if before.get(key) != value]
    if changed:
        pairs = [f"{key} {brief(before.get(key))} -> {brief(wanted[key])}" for key in changed]
        raise SheenError(
            f"{folder} holds shards made otherwise ({', '.join(pairs)}); prepare into another "
            f"folder, or replace them with `sheen prepare --overwrite`"
        )


def brief(value: Any) -> str:
    text = json.dumps(value) if isinstance(value, dict) else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


# --- shards --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shard:
    """A shard mapped into memory: what is not read costs nothing."""

    path: Path
    facts: dict[str, Any]
    tokens: np.ndarray
    windows: np.ndarray
    pieces: np.ndarray

    def window(self, number: int) -> tuple[np.ndarray, list[int]]:
        """A window's tokens (n,) and the lengths of its pieces."""
        offset, length, piece, pieces = self.windows[number, : PIECES + 1].tolist()
        return (
            self.tokens[offset : offset + length],
            self.pieces[piece : piece + pieces, COUNT].tolist(),
        )


def opened(path: Path) -> Shard:
    """Raises SheenError where the file is missing, damaged or no shard."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        raise SheenError(f"{path} is missing; prepare the data again") from None
    return _opened(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=64)  # an open map costs no memory, but a file handle
def _opened(path: Path, *stamp: int) -> Shard:
    try:
        with path.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(size, 1 << 26)))
        facts = json.loads(header.pop("__metadata__")[HEADER])
        arrays = {
            each: np.memmap(
                path,
                TYPES[about["dtype"]],
                "r",
                8 + size + about["data_offsets"][0],
                tuple(about["shape"]),
            )
            for each, about in header.items()
        }
        return Shard(path, facts, **arrays)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise SheenError(f"{path} is damaged or no shard of sheen's: {error}") from None


def all_of(folder: Path) -> Iterator[Shard]:
    """A finished folder's shards, in order."""
    for file in manifest(folder)["shards"]:
        yield opened(folder / file)


def documents(folder: Path) -> Iterator[np.ndarray]:
    """Every document's ids as they were encoded, in the order in which they were read."""
    for shard in all_of(folder):
        places = np.cumsum(shard.pieces[:, COUNT]) - shard.pieces[:, COUNT]
        order = np.lexsort((shard.pieces[:, BEGIN], shard.pieces[:, DOCUMENT]))
        edges = np.flatnonzero(np.diff(shard.pieces[order, DOCUMENT])) + 1
        for mine in np.split(order, edges):
            spans = zip(places[mine].tolist(), shard.pieces[mine, COUNT].tolist(), strict=True)
            yield np.concatenate([shard.tokens[at : at + count] for at, count in spans])


def places(folder: Path) -> dict[tuple[str, bool], np.ndarray]:
    """(language, held out) -> the windows of it, (n, 2) uint32: shard and number in the shard."""
    found: dict[tuple[str, bool], list[np.ndarray]] = {}
    for number, shard in enumerate(all_of(folder)):
        names = list(shard.facts["totals"]["languages"])
        kinds = np.asarray(shard.windows[:, [LANGUAGE, HELD_OUT]])
        for language, held_out in np.unique(kinds, axis=0).tolist():
            mine = np.flatnonzero((kinds == (language, held_out)).all(1))
            pairs = np.stack([np.full_like(mine, number), mine], 1).astype(np.uint32)
            found.setdefault((names[language], bool(held_out)), []).append(pairs)
    return {key: np.concatenate(each) for key, each in found.items()}


def lengths(folder: Path) -> list[np.ndarray]:
    """The tokens of each window, an array (w,) a shard."""
    return [np.asarray(shard.windows[:, LENGTH]) for shard in all_of(folder)]


def row(shard: Shard, number: int, beside: str) -> Row:
    """The row of a window, which points into its shard; `beside` is the shard's place below the
    rows' folder. Its tokens are read by `tokens_of`.
    """
    tokens, pieces = shard.window(number)
    facts = shard.windows[number]
    return {
        "id": f"{beside.removesuffix('.safetensors')}/{number}",
        "text": "",
        "duration": int(facts[MILLISECONDS]) / 1000,
        "language": list(shard.facts["totals"]["languages"])[facts[LANGUAGE]] or None,
        "beside": beside,
        "at": int(facts[OFFSET]),
        "pieces": pieces,
        "crc": zlib.crc32(tokens.tobytes()),
    }


def tokens_of(row: Row) -> tuple[np.ndarray, list[int]]:
    """A window's tokens (n,) and the lengths of its pieces, given its row as the host reads it.
    Raises SheenError where the shard is not what it was when the row was written.
    """
    shard, pieces = opened(Path(row["beside"])), row["pieces"]
    tokens = shard.tokens[row["at"] : row["at"] + sum(pieces)]
    if zlib.crc32(tokens.tobytes()) != row["crc"]:
        raise SheenError(
            f"{shard.path} was changed since row {row['id']} was written; prepare again"
        )
    return np.asarray(tokens), pieces
