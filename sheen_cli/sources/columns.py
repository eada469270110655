"""One row of any table as an Entry: columns known by their usual names, sound and codes found."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from sheen_cli.audio import Rejected
from sheen_cli.errors import SheenError
from sheen_cli.recipe import Data
from sheen_cli.rows import bad_codes
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
    "audio_codes": ("audio_codes",),
    "ref_audio": ("ref_audio", "context_audio_filepath", "prompt_wav"),
    "ref_text": ("ref_text", "context_text", "prompt_text"),
}
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval"), "validation"),
    "test": "test",
}
ENDINGS = ("", ".wav", ".flac", ".mp3", ".ogg", ".opus")

Sound = Path | bytes | tuple[np.ndarray, int]


@dataclass(frozen=True)
class Table:
    """What is the same for all rows of a table. `find` gives the sound that a name in a row means;
    it raises Rejected. `fields` are the columns that sheen reads, by its own names.
    """

    data: Data
    spec: BackboneSpec
    find: Callable[[str], Sound]
    fields: frozenset[str] = frozenset(ALIASES)


def entry(row: Mapping[str, Any], where: str, table: Table) -> Entry:
    """One row, which lies at `where`, as an Entry. Raises Rejected, whose detail says the place."""
    try:
        return read(row, where, table)
    except Rejected as rejected:
        raise Rejected(rejected.reason, f"{where}: {rejected.detail}") from None


def read(row: Mapping[str, Any], where: str, table: Table) -> Entry:
    columns: Mapping[Any, str] = table.data.columns
    if missing := [name for name in columns.values() if name not in row]:
        have = ", ".join(map(str, row))
        raise Rejected("missing-column", f"no column '{missing[0]}'; the columns are {have[:200]}")
    values, used = known(row, columns, table.fields)
    codes = codes_of(values.get("audio_codes"), table.spec)
    for name, made in table.spec.codes_of.items() if codes is None else ():
        if row.get(name) is not None:
            codes = codes_of(framed(row[name], name, made), table.spec)
            used.add(name)
    if codes is None:
        used.discard(columns.get("audio_codes", "audio_codes"))  # kept as a column like any other
    text = values.get("text")
    if "text" not in values:
        raise Rejected("empty-text", f"no text column; known names: {', '.join(ALIASES['text'])}")
    if not isinstance(text, str):
        empty = text is None
        problem = "the cell of text is empty" if empty else f"text is {type(text).__name__}"
        raise Rejected("empty-text", problem)
    extra = {key: plain(value) for key, value in row.items() if key not in used and storable(value)}
    try:
        if "audio" not in values:
            names = ", ".join(ALIASES["audio"])
            raise Rejected("missing-audio", f"no audio column; known names: {names}")
        audio, name = sound(values["audio"], "audio", table)
    except Rejected as rejected:
        if codes is None or rejected.reason != "missing-audio":
            raise
        audio, name = None, title(values.get("audio"))
        extra["audio"] = plain(values.get("audio"))  # as it stands there
    ref_audio, ref_text = reference(values.get("ref_audio"), table), word(values.get("ref_text"))
    if ref_audio is None and table.data.ref_audio is not None:
        ref_audio, ref_text = common(table.data), table.data.ref_text
    return Entry(
        text=text,
        audio=audio,
        name=name or where.replace(":", "-").replace(" ", "-"),
        speaker=word(values.get("speaker")) or table.data.speaker,
        language=word(values.get("language")) or table.data.language,
        split=split(word(values.get("split")), table.data.split),
        extra=extra,
        where=where,
        codes=codes,
        ref_audio=ref_audio,
        ref_text=ref_text,
    )


def known(
    row: Mapping[str, Any], columns: Mapping[Any, str], fields: frozenset[str]
) -> tuple[dict[str, Any], set[str]]:
    """The values of the columns that sheen reads, by its own names for them; and theirs."""
    values, used = {}, set()
    for field, aliases in ALIASES.items():
        if field not in fields and field not in columns:
            continue
        names = (
            [columns[field]]
            if field in columns
            else [name for name in row if name.lower() in aliases]
        )
        names.sort(key=lambda name: aliases.index(name.lower()) if name.lower() in aliases else 0)
        if names and names[0] in row:
            values[field] = row[names[0]]
            used.add(names[0])
    return values, used


def sound(value: Any, column: str, table: Table) -> tuple[Sound, str]:
    """The sound of a cell and its name: the name of a file, or what `datasets` stores, which is the
    bytes of a file beside its name, or samples and their rate.
    """
    if isinstance(value, Mapping):
        if isinstance(value.get("bytes"), bytes):
            return value["bytes"], title(value)
        if value.get("array") is not None and value.get("sampling_rate"):
            samples = np.asarray(value["array"], np.float32)
            return (samples, int(value["sampling_rate"])), title(value)
        value = value.get("path")
    if isinstance(value, bytes):
        return value, ""
    if value is None or value == "":
        raise Rejected(f"missing-{column.replace('_', '-')}", f"the cell of {column} is empty")
    if not isinstance(value, str):
        kind = type(value).__name__
        raise Rejected("bad-row", f"{column} is neither sound nor a file's name but {kind}")
    return table.find(value), title(value)


def title(value: Any) -> str:
    """A name for an utterance from that of its file; empty where there is none."""
    path = value.get("path") if isinstance(value, Mapping) else value
    return Path(path.replace("\0", "")).stem if isinstance(path, str) else ""


def reference(value: Any, table: Table) -> Path | bytes | None:
    """The reference that a row names: a file, or the bytes of one."""
    if value is None or value == "":
        return None
    try:
        found, _ = sound(value, "ref_audio", table)
    except Rejected as rejected:
        raise Rejected("missing-ref-audio", f"ref_audio: {rejected.detail}") from None
    if isinstance(found, tuple):
        raise Rejected("bad-row", "ref_audio: samples cannot be a reference, only a file can")
    return found


def common(data: Data) -> Path | None:
    """The reference of rows that bring none. Raises SheenError where there is no such file."""
    if data.ref_audio is None:
        return None
    path = Path(data.ref_audio).expanduser()
    if not path.is_file():
        raise SheenError(f"--ref {path}: no such file")
    return path.resolve()


def codes_of(value: Any, spec: BackboneSpec) -> np.ndarray | None:
    """Codes that a row brings, (frames, codebooks); None where it brings none, or where the
    backbone does not take any.
    """
    if value is None or not spec.takes_codes or not spec.codebooks or not spec.frame_rate:
        return None
    if problem := bad_codes(value, spec.codebooks):
        raise Rejected("bad-codes", problem)
    return np.asarray(value, np.int64)


def framed(value: Any, name: str, made: Callable[[Any], Any]) -> Any:
    """Another tool's column of codes as frames x codebooks. Raises Rejected."""
    try:
        return made(value)
    except (SheenError, TypeError, ValueError) as error:
        raise Rejected("bad-codes", f"{name}: {error}") from None


def word(value: Any) -> str | None:
    """A cell as text; None for one that is missing or empty."""
    return None if value is None or value == "" else str(value)


def split(name: str | None, wanted: str | None) -> str | None:
    """Our name for a split. Raises Rejected for an unknown one that is not the one wanted."""
    if name is None or name == wanted:
        return name
    if name.lower() not in SPLITS:
        raise Rejected("bad-row", f"unknown split '{name}'; known: {', '.join(SPLITS)}")
    return SPLITS[name.lower()]


def storable(value: Any) -> bool:
    """Whether a column is kept: not what is itself a file (an image, another recording)."""
    if isinstance(value, Mapping):
        return all(map(storable, value.values()))
    return not isinstance(value, bytes | bytearray | memoryview)


def plain(value: Any) -> Any:
    """A cell as JSON has it: dates as text, numbers that are none as null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, date | time | Decimal) else value


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
