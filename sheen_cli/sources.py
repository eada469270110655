"""Data sets as entries: a folder with metadata.csv, a .jsonl, or what the backbone's package
embeds.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from sheen_cli.audio import Rejected
from sheen_cli.errors import SheenError
from sheen_cli.files import sha256
from sheen_cli.recipe import Recipe
from sheen_cli.types import BackboneSpec, Entry

# Column names that people already use, the first found wins; `data.columns` overrides them.
ALIASES = {
    "audio": (
        "audio",
        "file_name",
        "audio_file",
        "audio_filepath",
        "path",
        "wav",
        "filename",
        "file",
        "id",
    ),
    "text": ("text", "normalized_text", "sentence", "transcription", "transcript"),
    "speaker": ("speaker", "speaker_id", "speaker_name", "spk", "client_id"),
    "language": ("language", "lang", "locale"),
    "split": ("split",),
}
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval"), "validation"),
    "test": "test",
}
ENDINGS = ("", ".wav", ".flac", ".mp3", ".ogg", ".opus")

Listed = Entry | Rejected  # a bad line is an item of its own, so that it can be named and counted


class Source:
    """The entries of one data set, which can be listed again and again. `where` names it for
    people.
    """

    def __init__(self, dataset: str, recipe: Recipe[Any], spec: BackboneSpec) -> None:
        self.where, self.recipe, self.spec = dataset, recipe, spec
        self.path = Path(dataset).expanduser()
        self.embedded = dataset in spec.datasets
        if not self.embedded and not self.path.exists():
            known = (
                f", nor a data set that the backbone embeds ({', '.join(spec.datasets)})"
                if spec.datasets
                else ""
            )
            raise SheenError(f"--dataset {dataset}: neither a folder nor a .jsonl file{known}")
        if self.path.is_dir() and not self.embedded and not (self.path / "metadata.csv").is_file():
            raise SheenError(f"--dataset {dataset}: the folder has no metadata.csv")
        if self.path.is_file() and not self.embedded and self.path.suffix != ".jsonl":
            raise SheenError(
                f"--dataset {dataset}: a file must be a .jsonl; for others give the folder"
            )

    def fingerprint(self) -> str | None:
        """Hash of the file that lists the entries; None for embedded data."""
        if self.embedded:
            return None
        return sha256(self.path / "metadata.csv" if self.path.is_dir() else self.path)

    def __iter__(self) -> Iterator[Listed]:
        if self.embedded:
            return iter(self.spec.datasets[self.where](self.recipe))
        return self._lines()

    def _lines(self) -> Iterator[Listed]:
        folder = self.path if self.path.is_dir() else self.path.parent
        file = self.path / "metadata.csv" if self.path.is_dir() else self.path
        rows: Iterable[tuple[int, dict[str, Any] | Rejected]]
        rows = (
            read_csv(file, self.recipe.data.columns) if file.suffix == ".csv" else read_jsonl(file)
        )
        for line, row in rows:
            if isinstance(row, Rejected):
                yield row
                continue
            try:
                yield entry(
                    row,
                    folder,
                    self.recipe.data.columns,
                    self.recipe.data.language,
                    contained=folder == self.path,
                )
            except Rejected as rejected:
                yield Rejected(rejected.reason, f"{file.name}:{line}: {rejected.detail}")


def read_csv(
    path: Path, columns: Mapping[Any, str]
) -> Iterator[tuple[int, dict[str, Any] | Rejected]]:
    """Rows of a metadata.csv with their line numbers: LJSpeech's `id|text|normalised`, or with a
    header, `|` or `,`.
    """
    with path.open(encoding="utf-8-sig", newline="") as stream:
        try:
            yield from csv_rows(path, stream, columns)
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
            raise SheenError(
                f"{path}: no header names an audio and a text column; known names: "
                f"{known_columns()}"
            )
        elif names is None and cells:
            yield reader.line_num, ljspeech(cells)
        elif names is not None and len(cells) == len(names):
            yield reader.line_num, dict(zip(names, cells, strict=True))
        elif names is not None and cells:
            problem = f"{path.name}:{reader.line_num}: {len(cells)} cells, not {len(names)}"
            yield reader.line_num, Rejected("bad-row", problem)


def headed(cells: list[str], columns: Mapping[Any, str]) -> bool:
    """Whether a first line names columns: one of the recipe's, or an audio and a text column."""
    names = [cell.lower() for cell in cells]
    known = all(any(alias in names for alias in ALIASES[field]) for field in ("audio", "text"))
    return known or any(name in cells for name in columns.values())


def ljspeech(cells: list[str]) -> dict[str, Any]:
    """`id|text` or `id|text|normalised text`; the last non-empty text is the one that is spoken."""
    texts = [cell for cell in cells[1:3] if cell.strip()]
    return {"audio": cells[0], "text": texts[-1] if texts else ""}


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any] | Rejected]]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
                if not isinstance(row, dict):
                    raise ValueError("not a JSON object")
                yield number, row
            except ValueError as error:
                yield number, Rejected("bad-row", f"{path.name}:{number}: {error}")


def entry(
    row: Mapping[str, Any],
    folder: Path,
    columns: Mapping[Any, str],
    language: str | None,
    contained: bool,
) -> Entry:
    """One row as an Entry; audio is found relative to the row's file. Raises Rejected."""
    values, used = {}, set()
    if missing := [name for name in columns.values() if name not in row]:
        have = ", ".join(map(str, row))
        raise Rejected("missing-column", f"no column '{missing[0]}'; the columns are {have[:200]}")
    for field, aliases in ALIASES.items():
        names = (
            [columns[field]]
            if field in columns
            else [name for name in row if name.lower() in aliases]
        )
        names.sort(key=lambda name: aliases.index(name.lower()) if name.lower() in aliases else 0)
        if names and names[0] in row:
            values[field] = row[names[0]]
            used.add(names[0])
    audio, text = values.get("audio"), values.get("text")
    if not isinstance(audio, str) or not audio:
        raise Rejected(
            "missing-audio", f"no audio column; known names: {', '.join(ALIASES['audio'])}"
        )
    if not isinstance(text, str):
        raise Rejected("empty-text", f"no text column; known names: {', '.join(ALIASES['text'])}")
    return Entry(
        text=text,
        audio=locate(audio, folder, contained),
        name=Path(audio).stem,
        speaker=word(values.get("speaker")),
        language=word(values.get("language")) or language,
        split=split(word(values.get("split"))),
        extra={key: value for key, value in row.items() if key not in used},
    )


def word(value: Any) -> str | None:
    """A cell as text; None for one that is missing or empty."""
    return None if value is None or value == "" else str(value)


def split(name: str | None) -> str | None:
    if name is not None and name.lower() not in SPLITS:
        raise Rejected("bad-row", f"unknown split '{name}'; known: {', '.join(SPLITS)}")
    return None if name is None else SPLITS[name.lower()]


def locate(audio: str, folder: Path, contained: bool) -> Path:
    """The file that a row means: as written, under wavs/, or with an ending added. A folder's
    rows stay inside it.
    """
    try:
        for base in (folder, folder / "wavs"):
            for ending in ENDINGS:
                path = base / f"{audio}{ending}"
                if path.is_file():
                    if contained and not path.resolve().is_relative_to(folder.resolve()):
                        raise Rejected("outside-folder", f"{audio} leads out of the data set")
                    return path.resolve()
    except (OSError, ValueError) as error:  # a name that no file can have
        raise Rejected("missing-audio", f"{audio[:60]!r}: {error}") from None
    raise Rejected("missing-audio", f"no file {folder / audio}")


def known_columns() -> str:
    return "; ".join(f"{field}: {', '.join(ALIASES[field])}" for field in ("audio", "text"))
