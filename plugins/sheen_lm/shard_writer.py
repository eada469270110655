"""A source's documents as packed windows, in shards that are written whole, one after the other.

What decided a shard's bytes and the counts so far are in its header: a writer that was killed goes
on after the last shard. Nothing but the shard being filled is held in memory.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sheen_cli import Row, SheenError, Skip, remove, replacing, say
from sheen_lm.packing import PACKINGS, Piece, Shape
from sheen_lm.shards import (
    FORMAT,
    HEADER,
    MANIFEST,
    digest,
    listed,
    manifest,
    name,
    opened,
    require,
)

LONGEST = 160  # characters of a refusal that are kept


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

    @property
    def facts(self) -> dict[str, Any]:
        """All of it as it is read back from a file."""
        return dict(json.loads(json.dumps(asdict(self))))


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
        return manifest(folder, made.facts)
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
            value = listed(folder, made.facts)
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
    facts = {"format": FORMAT, "number": number, "made": made.facts, "totals": asdict(totals)}
    with replacing(name(folder, number)) as stream:
        stream.write(save(arrays, {HEADER: json.dumps(facts)}))


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
        require(folder, shard.facts["made"], made.facts)
        number, totals = number + 1, Totals(**shard.facts["totals"])
    return number, totals


def finish(folder: Path, number: int, totals: Totals, made: Made) -> dict[str, Any]:
    paths = (name(folder, each) for each in range(number))
    full = totals.tokens / (totals.windows * made.window)
    value = {
        "format": FORMAT,
        "made": made.facts,
        "totals": {**asdict(totals), "fill": round(full, 4)},
        "shards": {path.name: digest(path) for path in paths},
    }
    with replacing(folder / MANIFEST) as stream:
        stream.write((json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())
    return value
