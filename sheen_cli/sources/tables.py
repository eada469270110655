"""Tables on disk, row by row with the place of each: metadata.csv, .csv, .jsonl and parquet."""

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from sheen_cli.audio import Rejected
from sheen_cli.errors import SheenError
from sheen_cli.files import sha256
from sheen_cli.sources.columns import ALIASES, SPLITS

Rows = Iterator[tuple[str, dict[str, Any] | Rejected]]  # (place, row), as ("set.jsonl:3", {...})

METADATA = ("metadata.csv", "metadata.jsonl")
FILES = (".jsonl", ".csv", ".parquet")
BATCH = 16  # rows of a parquet file in memory at once; each holds a recording


def listing(path: Path) -> list[Path]:
    """The files that list a data set at `path`, in order. Raises SheenError where none do."""
    if path.is_file():
        if path.suffix not in FILES:
            kinds = ", ".join(FILES)
            raise SheenError(f"--dataset {path}: a file must be one of {kinds}; or give the folder")
        return [path]
    for name in METADATA:
        if (path / name).is_file():
            return [path / name]
    if found := sorted(path.rglob("*.parquet")):
        return found
    if (path / "state.json").is_file() or list(path.glob("*/state.json")):
        raise SheenError(
            f"--dataset {path}: saved by `save_to_disk`; write it with `to_parquet` instead, and "
            f"give the folder of that"
        )
    names = ", no ".join(METADATA)
    raise SheenError(f"--dataset {path}: the folder has no {names} and no parquet files")


def fingerprint(files: list[Path]) -> str:
    """A hash of what lists the data. Of parquet, which holds the sound, too, the footers alone:
    they give the size and place of every column.
    """
    if files[0].suffix != ".parquet":
        return sha256(files[0])
    found = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            end = stream.seek(0, 2)
            stream.seek(max(0, end - 8))
            length = int.from_bytes(stream.read(4), "little")
            stream.seek(max(0, end - 8 - length))
            found.update(f"{path.name} {end} ".encode() + stream.read())
    return found.hexdigest()


def read(files: list[Path], columns: Mapping[Any, str]) -> Rows:
    """The rows of one .csv or .jsonl, or of parquet files; these name splits as the Hub's do."""
    if files[0].suffix == ".csv":
        yield from read_csv(files[0], columns)
    elif files[0].suffix == ".jsonl":
        yield from read_jsonl(files[0])
    else:
        splits = [split_of(path) for path in files]
        several = len(set(splits)) > 1
        for path, split in zip(files, splits, strict=True):
            yield from read_parquet(path, split if several else None)


def split_of(path: Path) -> str | None:
    """The split that a parquet file or its folder is named after, as train-00000-of-00002."""
    for name in (path.stem, path.parent.name):
        first = re.split(r"[-._]", name)[0].lower()
        if first in SPLITS:
            return SPLITS[first]
    return None


def read_csv(path: Path, columns: Mapping[Any, str]) -> Rows:
    """Rows of a metadata.csv: LJSpeech's `id|text|normalised`, or with a header, `|` or `,`."""
    with path.open(encoding="utf-8-sig", newline="") as stream:
        try:
            for line, row in csv_rows(path, stream, columns):
                yield f"{path.name}:{line}", row
        except UnicodeDecodeError:
            raise SheenError(f"{path} is not UTF-8; save it as UTF-8") from None


def csv_rows(
    path: Path, stream: TextIO, columns: Mapping[Any, str]
) -> Iterator[tuple[int, dict[str, Any] | Rejected]]:
    first = stream.readline()
    if not first.strip():
        raise SheenError(f"{path} is empty")
    stream.seek(0)
    delimiter = next((each for each in "|\t;" if each in first), ",")
    piped = delimiter == "|"
    reader = csv.reader(
        stream,
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if piped else csv.QUOTE_MINIMAL,
    )
    names: list[str] | None = None
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield reader.line_num, Rejected("bad-row", f"{path.name}:{reader.line_num}: {error}")
            continue
        if cells is None:
            return
        if reader.line_num == 1 and headed([cell.strip() for cell in cells], columns):
            names = [cell.strip() for cell in cells]
        elif names is None and not piped:
            known = "; ".join(f"{field}: {', '.join(ALIASES[field])}" for field in NEEDED)
            raise SheenError(
                f"{path}: no header names an audio and a text column; known names: {known}"
            )
        elif names is None and cells:
            yield reader.line_num, ljspeech(cells)
        elif names is not None and len(cells) == len(names):
            yield reader.line_num, dict(zip(names, cells, strict=True))
        elif names is not None and cells:
            problem = f"{path.name}:{reader.line_num}: {len(cells)} cells, not {len(names)}"
            yield reader.line_num, Rejected("bad-row", problem)


NEEDED = ("audio", "text")


def headed(cells: list[str], columns: Mapping[Any, str]) -> bool:
    """Whether a first line names columns: one of the recipe's, or an audio and a text column."""
    names = [cell.lower() for cell in cells]
    known = all(any(alias in names for alias in ALIASES[field]) for field in NEEDED)
    return known or any(name in cells for name in columns.values())


def ljspeech(cells: list[str]) -> dict[str, Any]:
    """`id|text` or `id|text|normalised text`; the last non-empty text is the one that is spoken."""
    texts = [cell for cell in cells[1:3] if cell.strip()]
    return {"audio": cells[0], "text": texts[-1] if texts else ""}


def read_jsonl(path: Path) -> Rows:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            where = f"{path.name}:{number}"
            try:
                row = json.loads(line.decode("utf-8-sig"))
                if not isinstance(row, dict):
                    raise ValueError("not a JSON object")
                yield where, row
            except ValueError as error:
                yield where, Rejected("bad-row", f"{where}: {error}")


def read_parquet(path: Path, split: str | None) -> Rows:
    """Rows of a parquet file, a few in memory at once. Raises SheenError where it is damaged."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path.name} row {number}", row | ({"split": split} if split else {})
    except (ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise SheenError(
            f"{path}: not readable as parquet from row {number + 1} on: {reason}"
        ) from None
