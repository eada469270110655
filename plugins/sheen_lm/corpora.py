"""What a pretraining reads: folders of prepared speech, and text in .jsonl and .txt files or on the
Hub. Everything streams; text is made NFC and otherwise left as it is.
"""

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from sheen_cli import HubSet, Row, Section, SheenError, Skip
from sheen_lm.mixing import Blend
from sheen_lm.shard_writer import Item, Read

ON_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a")
ENDS = 1 << 16  # bytes of a text file's beginning and end that its fingerprint takes in


class Filters(Section):
    """What is left out, and counted by reason."""

    languages: tuple[str, ...] = ()  # none: all
    min_characters: PositiveInt = 1
    max_characters: PositiveInt | None = None
    min_seconds: float = Field(0.0, ge=0)  # of speech
    max_seconds: PositiveFloat | None = None
    punctuation: bool = True  # texts without a letter or digit of any script
    score: str | None = None  # a column of numbers, as mos or dnsmos
    min_score: float | None = None  # in that column; a row without a number is left out

    @model_validator(mode="after")
    def _both(self) -> "Filters":
        if (self.score is None) != (self.min_score is None):
            raise ValueError("score, a column, and min_score, the least in it, go together")
        return self


class Source(Section):
    """One source of a mixture."""

    name: str = Field(pattern=r"^[A-Za-z0-9][\w-]{0,59}$")
    kind: Literal["speech", "text"]
    path: str  # speech: a prepared folder; text: a .jsonl, a .txt, a folder of these, or USER/NAME
    weight: PositiveFloat | None = None  # among the sources that have no share
    share: float | None = Field(None, gt=0, le=1)  # of all tokens, whatever the others weigh
    language: str | None = None  # of rows that name none
    column: str = "text"  # of .jsonl files and Hub sets
    documents: Literal["paragraphs", "lines"] = "paragraphs"  # of .txt: up to an empty line
    config: str | None = None  # of a Hub set that has several
    revision: str | None = None  # of a Hub set
    split: str | None = None  # of a Hub set: this one alone
    max_documents: NonNegativeInt | None = None
    filters: Filters = Filters()

    @model_validator(mode="after")
    def _one_way(self) -> "Source":
        if self.weight is not None and self.share is not None:
            raise ValueError("weight and share exclude each other")
        return self

    @property
    def blend(self) -> Blend:
        return Blend(self.weight, self.share, self.kind)


class HeldOut(Section):
    """Which documents of text are for validation: a share, by hash, equal ones on one side. Speech
    keeps the side that `sheen prepare` put it on.
    """

    seed: int
    share: float

    def has(self, text: str) -> bool:
        digest = hashlib.sha256(f"{self.seed}:{text.casefold()}".encode()).digest()
        return int.from_bytes(digest[:8]) < self.share * 2**64


def opened(
    source: Source, held_out: HeldOut, codec: str | None, codebooks: Sequence[int] | None = None
) -> tuple[Read, dict[str, Any]]:
    """How to read a source, and what tells it from another of its name. Raises SheenError where
    there is none, or none whose speech is of this codec (its hash) and these codebooks (sizes).
    """
    path = Path(source.path).expanduser()
    if source.kind == "speech":
        origin = prepared(source, path, codec, codebooks)
        listed = partial(speech, source, path)
    elif path.exists():
        files = text_files(source, path)
        origin = {"files": fingerprint(files)}
        listed = partial(texts, source, held_out, files)
    elif ON_HUB.fullmatch(source.path):
        hub = HubSet(source.path, source)
        origin = {"hub": hub.origin()}
        listed = partial(hub_texts, source, held_out, hub)
    else:
        raise SheenError(f"source {source.name}: nothing at {path}, and no USER/NAME on the Hub")
    settings = source.model_dump(mode="json", exclude={"weight", "share", "path"})

    def read(skip: int) -> Iterator[Item | Skip]:
        return islice((kept(each, source.filters) for each in listed()), skip, source.max_documents)

    return read, {**settings, **origin}


def kept(item: Item | Skip, filters: Filters) -> Item | Skip:
    """The item, or why a filter leaves it out."""
    if isinstance(item, Skip):
        return item
    text, longest = item.row["text"], filters.max_characters
    size = len(text)
    name = item.row.get("id")
    if filters.languages and item.language not in filters.languages:
        return Skip("other-language", f"{name}: '{item.language}'")
    if size < filters.min_characters or (longest is not None and size > longest):
        return Skip("text-length", f"{name}: {size} characters")
    if filters.punctuation and not any(map(str.isalnum, text)):
        return Skip("no-words", f"{name}: '{text}'")
    if item.seconds < filters.min_seconds or item.seconds > (filters.max_seconds or item.seconds):
        return Skip("duration", f"{name}: {item.seconds:.2f} s")
    if filters.score is not None and filters.min_score is not None:
        score = number(item.row.get(filters.score))
        if score is None:
            return Skip("no-score", f"{name}: no number in '{filters.score}'")
        if score < filters.min_score:
            return Skip("low-score", f"{name}: {filters.score} {score:g}")
    return item


def number(value: object) -> float | None:
    """The number that a cell holds or, as those of a .csv do, spells; None where there is none."""
    if not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return None if math.isnan(found) else found


# --- speech --------------------------------------------------------------------------------------


def prepared(
    source: Source, folder: Path, codec: str | None, codebooks: Sequence[int] | None
) -> dict[str, Any]:
    """The fingerprint of a folder that `sheen prepare` filled with speech of this codec, and how it
    held out validation there.
    """
    from sheen_lm.codecs import record  # brings in torch

    path, where = folder / "dataset.json", f"source {source.name}: {folder}"
    if not path.is_file():
        raise SheenError(f"{where} {unprepared(folder)}")
    try:
        facts = json.loads(path.read_text("utf-8"))
        splits = {name: about["sha256"] for name, about in facts["splits"].items()}
        sizes = tuple(facts["codebooks"] or ())
        data = facts["made_from"]["data"]
        held_out = {name: data[name] for name in ("seed", "validation", "split_by")}
    except (ValueError, LookupError, TypeError, AttributeError):
        raise SheenError(f"{path} is damaged") from None
    theirs = (record.read(folder / "artifacts") or {}).get("sha256")  # none: the data brought codes
    if theirs is not None and theirs != codec:
        raise SheenError(
            f"{where} holds codes of another codec ({theirs[:12]}, not {str(codec)[:12]}); prepare "
            f"it with this recipe's codec"
        )
    if codebooks is not None and sizes != tuple(codebooks):
        raise SheenError(
            f"{where} holds codes of {books(sizes)}, not of {books(codebooks)}; prepare it with "
            f"this recipe's codec and number of codebooks"
        )
    return {"rows": splits, "codec": theirs, "held_out": held_out}


def unprepared(folder: Path) -> str:
    """What a folder without prepared data lacks, and the command that makes it."""
    command = "sheen prepare --recipe llama-codes-sft --dataset"
    if folder.is_dir() and any(
        path.name == "metadata.csv" or path.suffix.lower() in SOUNDS for path in folder.iterdir()
    ):
        return (
            f"holds recordings; prepare them into another folder first, with `{command} {folder} "
            f"--out OTHER`, and name that one in `path`"
        )
    return f"holds no prepared data; run `{command} RECORDINGS --out {folder}`"


def books(sizes: Sequence[int]) -> str:
    return f"{len(sizes)} codebooks" + (f" ({', '.join(map(str, sizes))})" if sizes else "")


def speech(source: Source, folder: Path) -> Iterator[Item | Skip]:
    """Rows of training and validation as they were prepared; those for tests are not touched."""
    for name in ("train", "validation"):
        path = folder / f"{name}.jsonl"
        if not path.is_file():
            continue
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                row = parsed(line)
                if row is None:
                    raise SheenError(f"{path}:{number}: not a JSON object")
                if not row.get("audio_codes"):
                    yield Skip("no-codes", f"{path}:{number}")
                    continue
                row["text"] = unicodedata.normalize("NFC", row.get("text") or "")
                language = row.get("language") or source.language or ""
                seconds = float(row.get("duration") or 0.0)
                yield Item(row, language, seconds, name == "validation")


def refuse_text_only(rows: Iterable[Row], where: str) -> None:
    """Fine-tuning learns from speech alone. Raises SheenError for a row without codes."""
    for number, row in enumerate(rows, 1):
        if not row.get("audio_codes"):
            raise SheenError(
                f"{where}: row {number} ({row.get('id') or 'without id'}) is text without speech, "
                f"which `stage: sft` does not learn from; leave it out, or pretrain on it with "
                f"`stage: pt`"
            )


def check_stage(stage: str, sources: Sequence[Source]) -> None:
    """The same of a recipe: raises ValueError for what does not go with its stage."""
    names = [source.name for source in sources]
    text = [source.name for source in sources if source.kind == "text"]
    if stage == "sft" and text:
        raise ValueError(f"source {text[0]} is text, which `stage: sft` does not learn from")
    if stage == "sft" and names:
        raise ValueError("`stage: sft` trains on data.dataset; sources are for `stage: pt`")
    if stage == "pt" and not names:
        raise ValueError("`stage: pt` needs sources")
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two sources are named {min(twice)}")


# --- text ----------------------------------------------------------------------------------------


def text_files(source: Source, path: Path) -> list[Path]:
    """The text files at `path`, in order. Raises SheenError where there are none."""
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    files = [file for file in files if file.suffix in READERS and file.is_file()]
    if not files:
        raise SheenError(f"source {source.name}: {path} holds no {' or '.join(READERS)}")
    return files


def fingerprint(files: list[Path]) -> str:
    """A hash of the files' number, sizes, beginnings and ends: whole corpora take hours to read."""
    found = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            found.update(f"{path.suffix} {size} ".encode())
            for at in (0, max(0, size - ENDS)):
                stream.seek(at)
                found.update(stream.read(ENDS))
    return found.hexdigest()


def texts(source: Source, held_out: HeldOut, files: list[Path]) -> Iterator[Item | Skip]:
    for path in files:
        try:
            with path.open(encoding="utf-8-sig", newline="\n") as stream:
                for where, row in READERS[path.suffix](source, stream):
                    yield text_item(row, f"{path}:{where}", source, held_out)
        except UnicodeDecodeError:
            raise SheenError(f"{path} is not UTF-8; save it as UTF-8") from None


def jsonl(source: Source, lines: Iterable[str]) -> Iterator[tuple[int, Row | None]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, parsed(line)


def plain(source: Source, lines: Iterable[str]) -> Iterator[tuple[int, Row | None]]:
    """Documents of a .txt file: its lines, or its paragraphs with their line breaks."""
    document: list[str] = []
    number = 0
    for number, line in enumerate(lines, 1):
        line = line.rstrip("\r\n")
        if source.documents == "lines":
            yield number, {source.column: line}
        elif line.strip():
            document.append(line)
        elif document:
            yield number, {source.column: "\n".join(document)}
            document = []
    if document:
        yield number, {source.column: "\n".join(document)}


READERS = {".jsonl": jsonl, ".txt": plain}


def hub_texts(source: Source, held_out: HeldOut, hub: HubSet) -> Iterator[Item | Skip]:
    """Rows of a Hub set, streamed; its validation split is kept, its test split not touched. One
    without a validation split is held out of as files are.
    """
    validates = "validation" in hub.sides.values()
    for split, where, row in hub:
        if split != "test":
            yield text_item(row, where, source, held_out, split if validates else None)


def text_item(
    row: Row | None, where: str, source: Source, held_out: HeldOut, split: str | None = None
) -> Item | Skip:
    """One row of text as an item, or why it is none."""
    if row is None:
        return Skip("bad-row", f"{where}: not a JSON object")
    text = row.get(source.column)
    if not isinstance(text, str):
        return Skip("no-text", f"{where}: no text in '{source.column}'")
    if not text.strip():
        return Skip("empty-text", where)
    text = unicodedata.normalize("NFC", text)
    try:
        mine = held_out.has(text) if split is None else split == "validation"
    except UnicodeEncodeError:
        return Skip("bad-text", f"{where}: a lone surrogate")
    language = row.get("language") or source.language or ""
    score = {name: row.get(name) for name in [source.filters.score] if name is not None}
    return Item({**score, "id": where, "text": text}, str(language), held_out=mine)


def parsed(line: str | bytes) -> Row | None:
    """A line's JSON object, or None where it is none."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
