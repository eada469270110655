"""Packed tokens on disk: a source's documents as windows, in shards that are written whole, one
after the other.

A shard is one safetensors file: `tokens` (n,) uint32 in the order of its windows, `windows` (w, 7)
and `pieces` (p, 3) with the columns named below, and in its header what decided its bytes and the
counts so far. So a writer that was killed goes on after the last shard, and the manifest, which is
written last, marks the end. Nothing but the shard being filled is held in memory.
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sheen_cli import Row, SheenError, Skip, remove, replacing, say
from sheen_lm.packing import PACKINGS, Piece, Shape

FORMAT = 1
MANIFEST = "manifest.json"
LONGEST = 160  # characters of a refusal that are kept
HEADER = "sheen"  # our one key in a shard's header: of several the order would not be settled
# a window: where its tokens begin in the shard, their number, its first piece, their number, the
# language's number, whether it is for validation, and the milliseconds of speech in it
OFFSET, LENGTH, PIECE, PIECES, LANGUAGE, HELD_OUT, MILLISECONDS = range(7)
# a piece: the number of its document in the source, where in it it begins, its tokens
DOCUMENT, BEGIN, COUNT = range(3)
TYPES = {"U32": "<u4", "I64": "<i8"}  # of a shard's arrays, in safetensors' words and numpy's


@dataclass(frozen=True)
class Document:
    """A document's token ids (n,), and where it may be cut: see `packing.Shape`."""

    ids: np.ndarray
    start: int = 0
    stride: int = 1
    tail: int = 0

    @property
    def shape(self) -> Shape:
        return Shape(len(self.ids), self.start, self.stride, self.tail)


@dataclass(frozen=True)
class Item:
    """What a source reads: a row to encode, and what is counted of it."""

    row: Row
    language: str = ""
    seconds: float = 0.0
    held_out: bool = False  # for validation


@dataclass(frozen=True)
class Made:
    """Everything that decides a source's shards. `tokenizer` and `codec` are hashes, `vocabulary`
    is the number of ids, `split` how documents are held out, `origin` what the source holds.
    """

    tokenizer: str
    codec: str | None
    convention: str
    vocabulary: int
    window: int
    packing: str
    split: dict[str, Any]
    origin: dict[str, Any]
    shard: int = 1 << 24  # tokens after which one is closed


Read = Callable[[int], Iterable[Item | Skip]]  # the items of a source, without the first so many
Encode = Callable[[Row], Document | Skip]


@dataclass
class Totals:
    """What has been counted up to the end of a shard."""

    read: int = 0
    documents: int = 0
    tokens: int = 0
    seconds: float = 0.0
    windows: int = 0
    cut: int = 0  # documents that lie in several windows
    held_out: int = 0  # documents
    rejected: dict[str, int] = field(default_factory=dict)  # reason -> items
    details: dict[str, str] = field(default_factory=dict)  # reason -> what the first one's was
    # language -> documents, tokens, seconds; windows number them in this order
    languages: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, item: Item, tokens: int) -> None:
        self.documents += 1
        self.tokens += tokens
        self.seconds += item.seconds
        self.held_out += item.held_out
        none = {"documents": 0, "tokens": 0, "seconds": 0.0}
        mine = self.languages.setdefault(item.language, none)
        mine["documents"] += 1
        mine["tokens"] += tokens
        mine["seconds"] += item.seconds

    def refuse(self, skip: Skip) -> None:
        self.rejected[skip.reason] = self.rejected.get(skip.reason, 0) + 1
        detail = " ".join(skip.detail.encode("utf-8", "backslashreplace").decode().split())
        self.details.setdefault(skip.reason, detail[:LONGEST])


def write(
    folder: Path, read: Read, encode: Encode, made: Made, overwrite: bool = False
) -> dict[str, Any]:
    """Write a source's shards, or go on where a killed writer stopped; returns the manifest. What
    is finished stays as it is. Where `folder` holds shards made otherwise, or damaged ones, they
    are written anew with `overwrite`; else this raises SheenError.
    """
    if overwrite:
        clear(folder, made)
    if (folder / MANIFEST).is_file():
        return manifest(folder, made)
    number, totals = so_far(folder, made)
    if number:
        say(f"{folder.name}: going on after {files(number)}")
    waiting: list[tuple[Item, Document]] = []
    tokens = 0
    for item in read(totals.read):
        totals.read += 1
        document = item if isinstance(item, Skip) else encode(item.row)
        if isinstance(document, Skip):
            totals.refuse(document)
            continue
        assert isinstance(item, Item)
        check(document, item, made)
        totals.add(item, len(document.ids))
        waiting.append((item, replace(document, ids=document.ids.astype("<u4"))))
        tokens += len(document.ids)
        if tokens >= made.shard:
            write_shard(folder, number, waiting, totals, made)
            waiting, number, tokens = [], number + 1, 0
            say(f"{folder.name}: {files(number)}, {totals.tokens / 1e6:.1f} M tokens")
    if waiting:
        write_shard(folder, number, waiting, totals, made)
        number += 1
    if not number:
        why = refused(totals.rejected, totals.details) or "it is empty"
        raise SheenError(f"no usable document for {folder.name}: {why}")
    return finish(folder, number, totals, made)


def files(number: int) -> str:
    return f"{number} shard{'s' if number > 1 else ''}"


def refused(rejected: Mapping[str, int], details: Mapping[str, str]) -> str:
    """How many for which reason, each with the first one's detail."""
    shown = {reason: f" ({detail})" if detail else "" for reason, detail in details.items()}
    return ", ".join(f"{count} {reason}{shown[reason]}" for reason, count in rejected.items())


def clear(folder: Path, made: Made) -> None:
    """Remove all shards if they were made otherwise, else those that are not what was written."""
    wrong = []
    try:
        if (folder / MANIFEST).is_file():
            value = listed(folder, made)
            found = {file: digest(folder / file) for file in value["shards"]}
            wrong = [file for file, about in value["shards"].items() if found[file] != about]
        else:
            so_far(folder, made)
    except SheenError:  # made otherwise, or a manifest that says nothing
        remove(folder)
    for file in wrong:
        (folder / file).unlink(missing_ok=True)
    if wrong:  # not before they are gone: without it they are not looked at so closely
        (folder / MANIFEST).unlink()


def check(document: Document, item: Item, made: Made) -> None:
    """Refuse ids that no model of this vocabulary has a row for."""
    ids = document.ids
    if not len(ids) or int(ids.min()) < 0 or int(ids.max()) >= made.vocabulary:
        wrong = next((int(each) for each in ids if not 0 <= each < made.vocabulary), None)
        raise SheenError(
            f"{item.row.get('id') or 'a document'} becomes "
            + (f"the token {wrong}, beyond the vocabulary of " if len(ids) else "no tokens of ")
            + f"{made.vocabulary}"
        )


def write_shard(
    folder: Path,
    number: int,
    waiting: list[tuple[Item, Document]],
    totals: Totals,
    made: Made,
) -> None:
    """Pack what is waiting, languages and validation apart, and write it as shard `number`."""
    from safetensors.numpy import save

    names = list(totals.languages)
    groups: dict[tuple[bool, int], list[int]] = {}
    for at, (item, _) in enumerate(waiting):
        groups.setdefault((item.held_out, names.index(item.language)), []).append(at)
    first = totals.documents - len(waiting)  # the number of the first document here
    tokens: list[np.ndarray] = []
    windows: list[list[int]] = []
    pieces: list[Piece] = []
    offset = 0
    for (held_out, language), mine in sorted(groups.items()):
        documents = [waiting[at][1] for at in mine]
        shapes = [each.shape for each in documents]
        for packed in PACKINGS[made.packing](shapes, made.window):
            length, seconds, begun = 0, 0.0, len(pieces)
            for document, begin, count in packed:
                tokens.append(documents[document].ids[begin : begin + count])
                pieces.append(Piece(first + mine[document], begin, count))
                share = count / shapes[document].length
                seconds += waiting[mine[document]][0].seconds * share
                length += count
            milliseconds = round(seconds * 1000)
            windows.append([offset, length, begun, len(packed), language, held_out, milliseconds])
            offset += length
    totals.windows += len(windows)
    totals.cut += len({each.document for each in pieces if each.begin})
    arrays = {
        "tokens": np.concatenate(tokens),
        "windows": np.array(windows, "<i8"),
        "pieces": np.array(pieces, "<i8"),
    }
    facts = {"format": FORMAT, "number": number, "made": asdict(made), "totals": asdict(totals)}
    with replacing(name(folder, number)) as stream:
        stream.write(save(arrays, {HEADER: json.dumps(facts)}))


def name(folder: Path, number: int) -> Path:
    return folder / f"{number:05}.safetensors"


def so_far(folder: Path, made: Made) -> tuple[int, Totals]:
    """How many shards are there, one after the other and whole, and what they counted. Raises
    SheenError for those that were made otherwise.
    """
    number, totals = 0, Totals()
    while name(folder, number).is_file():
        try:
            shard = opened(name(folder, number))
        except SheenError:  # a disk's fault: it is written again, as it was
            break
        same(folder, shard.facts["made"], made)
        number, totals = number + 1, Totals(**shard.facts["totals"])
    return number, totals


def finish(folder: Path, number: int, totals: Totals, made: Made) -> dict[str, Any]:
    paths = (name(folder, each) for each in range(number))
    full = totals.tokens / (totals.windows * made.window)
    value = {
        "format": FORMAT,
        "made": asdict(made),
        "totals": {**asdict(totals), "fill": round(full, 4)},
        "shards": {path.name: digest(path) for path in paths},
    }
    with replacing(folder / MANIFEST) as stream:
        stream.write((json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())
    return value


def digest(path: Path) -> dict[str, Any] | None:
    """A shard's size and SHA-256; None where there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": found}


def manifest(folder: Path, made: Made | None = None) -> dict[str, Any]:
    """The manifest of finished shards. Raises SheenError where they are not finished, not all
    there, or, given `made`, made otherwise.
    """
    value = listed(folder, made)
    for file, facts in value["shards"].items():
        found = (folder / file).stat().st_size if (folder / file).is_file() else None
        if found != facts["bytes"]:
            size = "is missing" if found is None else f"has {found} bytes, not {facts['bytes']}"
            raise SheenError(f"{folder / file} {size}; prepare the data again with --overwrite")
    return value


def listed(folder: Path, made: Made | None = None) -> dict[str, Any]:
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
        same(folder, value["made"], made)
    return value


def same(folder: Path, before: dict[str, Any], made: Made) -> None:
    """Refuse shards that were made otherwise, in one line that says how."""
    require(folder, before, json.loads(json.dumps(asdict(made))))


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


# --- reading -------------------------------------------------------------------------------------


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
