"""Data set -> clips -> the backbone's rows -> train, validation and test files, with every
refused clip on record.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sheen_cli import __version__, console, locks, rejects, rows
from sheen_cli.backbones import Backbone
from sheen_cli.clips import Clips, Pending
from sheen_cli.errors import SheenError
from sheen_cli.files import (
    FORMAT,
    building,
    delete,
    digests,
    remove,
    replacing,
    sha256,
    sweep,
    write_json,
    write_text,
)
from sheen_cli.recipe import Recipe
from sheen_cli.sources import Source
from sheen_cli.splits import SPLITS, Kept, assign
from sheen_cli.types import Corpus, Row, Skip

UNFINISHED = ".unfinished"  # marks a folder that sheen is filling
CORPUS = "corpus"  # the folder of what a corpus's rows point to
AUDIO, OURS = "audio", ".sheen"  # the folder of kept recordings, and what marks it as ours


def prepare(
    recipe: Recipe[Any], backbone: Backbone, out: Path, overwrite: bool = False
) -> dict[str, Any]:
    """Fill `out` with rows, artifacts, rejected.jsonl and, last, dataset.json, which is returned.

    A finished folder made from the same settings is kept; one made from others is refused unless
    `overwrite`.
    """
    if backbone.spec.corpus is not None:
        return prepare_corpus(recipe, backbone, backbone.spec.corpus(recipe), out, overwrite)
    if recipe.data.dataset is None:
        raise SheenError(
            "which data? give --dataset PATH (the recipe's data.dataset is empty); see "
            "`sheen prepare --help`"
        )
    source = Source(recipe.data.dataset, recipe, backbone.spec)
    try:
        made_from = {**request(recipe, backbone), **source.origin()}
    except SheenError as error:
        if overwrite or not is_prepared(out, recipe, backbone):
            raise
        console.say(f"{error}; {out} is already prepared from it, and stays as it is")
        return rows.manifest(out)
    finished = already(out, made_from, overwrite)
    if finished is not None:
        return finished
    guard(out, source)
    clips = Clips(source, recipe, backbone.spec.sample_rate)
    # a backbone is not asked to fit anything to nothing
    if next(iter(clips), None) is None:
        raise rejects.nothing_usable(clips)
    with locks.hold(out):
        # another process may have finished it since we looked
        finished = already(out, made_from, overwrite)
        return finished or fill(recipe, backbone, clips, out, made_from)


def prepare_corpus(
    recipe: Recipe[Any], backbone: Backbone, corpus: Corpus, out: Path, overwrite: bool
) -> dict[str, Any]:
    """The same of a corpus, which the backbone reads by itself."""
    if recipe.data.dataset is not None:
        raise SheenError(
            f"--dataset {recipe.data.dataset}: by this recipe {backbone.name} reads what its "
            f"section `model` names; leave the data set out"
        )
    made_from = {**request(recipe, backbone), "source": dict(corpus.origin)}
    if (finished := already(out, made_from, overwrite)) is not None:
        return finished
    refuse_foreign(out)
    with locks.hold(out):
        if (finished := already(out, made_from, overwrite)) is not None:
            return finished
        overwrite = overwrite or left_by_overwrite(out, made_from)
        write_text(out / UNFINISHED, json.dumps(made_from) if overwrite else "")
        (out / rows.MANIFEST).unlink(missing_ok=True)  # from here on the old data is being replaced
        sweep(out / CORPUS)
        with building(out / "artifacts") as artifacts:
            filled = corpus.fill(out / CORPUS, artifacts, overwrite)
        report = {}
        for name in SPLITS:
            clear_rows(out / f"{name}.jsonl")
            if name in filled.rows:
                lines = map(rows.encode, filled.rows[name])
                report[name] = write_rows(out / f"{name}.jsonl", lines)
        (out / "rejected.jsonl").unlink(missing_ok=True)  # of clips; a corpus counts its own
        value = {
            **head(backbone, made_from),
            "splits": report,
            "read": filled.read,
            "rejected": dict(filled.rejected),
            "artifacts": digests(out / "artifacts"),
            "corpus": dict(filled.facts),
        }
        write_json(out / rows.MANIFEST, value)
        (out / UNFINISHED).unlink()
        return value


def left_by_overwrite(out: Path, made_from: dict[str, Any]) -> bool:
    """Whether an --overwrite by these settings ended early; it may then be gone on with as such."""
    path = out / UNFINISHED
    return path.is_file() and path.read_text("utf-8") == json.dumps(made_from)


def ensure(recipe: Recipe[Any], backbone: Backbone, out: Path) -> None:
    """Prepare, unless `out` holds finished data of these settings; the Hub is not asked whether its
    set has changed since. Of several processes the first works and the others wait.
    """
    dataset = recipe.data.dataset or ""
    while console.mute() and not is_prepared(out, recipe, backbone):
        time.sleep(1)  # the launcher ends us if the first one fails
    if is_prepared(out, recipe, backbone) and Source(dataset, recipe, backbone.spec).remote:
        console.say(f"training on {out}, which was prepared from {dataset}")
    elif not console.mute():
        console.say(f"preparing {dataset} in {out}")
        manifest = prepare(recipe, backbone, out)
        (console.warn if manifest["rejected"] else console.say)(rejects.outcome(manifest, out))


def fill(
    recipe: Recipe[Any], backbone: Backbone, clips: Clips, out: Path, made_from: dict[str, Any]
) -> dict[str, Any]:
    """Do the work of `prepare` in a folder that is ours to write to."""
    write_text(out / UNFINISHED, "")
    if recipe.data.keep_audio:
        write_text(out / AUDIO / OURS, "")
        clips.folder = (out / AUDIO).resolve()
    kept = spool(recipe, backbone, clips, out)
    refused = rejects.write(out / "rejected.jsonl", clips.rejected)
    value = {
        **head(backbone, made_from),
        "splits": write_splits(recipe, kept, out),
        "read": len(kept) + sum(refused.values()),
        "rejected": refused,
        "artifacts": digests(out / "artifacts"),
    }
    clear_audio(out / AUDIO, clips.used if clips.folder else set())
    write_json(out / rows.MANIFEST, value)
    (out / UNFINISHED).unlink()
    return value


def head(backbone: Backbone, made_from: dict[str, Any]) -> dict[str, Any]:
    """What dataset.json says of where the rows come from."""
    return {
        "format": FORMAT,
        "sheen": __version__,
        "backbone": backbone.name,
        "made_from": made_from,
        "sample_rate": backbone.spec.sample_rate,
        "frame_rate": backbone.spec.frame_rate,
        "codebooks": backbone.spec.codebooks,
    }


def already(out: Path, made_from: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """The manifest of data that is there and was made from the same; None where there is none, or
    it is to be replaced. Raises SheenError for data made from other settings.
    """
    if overwrite or not (out / rows.MANIFEST).is_file():
        return None
    finished = rows.manifest(out)
    # the model's keys are there by their whole names
    before, now = (
        {**each, **each["model"], "model": {}} for each in (finished["made_from"], made_from)
    )
    if changed := differences(before, now):
        raise SheenError(
            f"{out} holds data made otherwise ({changed}); choose another folder, or replace it "
            f"with `sheen prepare --overwrite`"
        )
    console.say(f"{out} is already prepared from this; nothing to do (--overwrite makes it anew)")
    return finished


def guard(out: Path, source: Source) -> None:
    """Refuse to write over what sheen did not make: the data set itself, or somebody's files."""
    if source.path is not None and source.path.resolve().is_relative_to(out.resolve()):
        raise SheenError(f"--out {out} holds the data set {source.where}; choose another folder")
    if (
        source.recipe.data.keep_audio
        and (out / AUDIO).exists()
        and any(path.name != f".{OURS}.part" for path in (out / AUDIO).iterdir())
        and not (out / AUDIO / OURS).exists()
    ):
        raise SheenError(f"{out / AUDIO} holds what sheen did not write; choose another folder")
    refuse_foreign(out)


def refuse_foreign(out: Path) -> None:
    """Refuse to write over what lies in `out` under our names and is not ours."""
    ours = (out / rows.MANIFEST).is_file() or (out / UNFINISHED).is_file()
    names = [*(f"{name}.jsonl" for name in SPLITS), "rejected.jsonl", "artifacts", "spool", CORPUS]
    if not ours and (there := [name for name in names if (out / name).exists()]):
        raise SheenError(
            f"{out} holds {', '.join(there)} that sheen did not make; choose another folder"
        )


def is_prepared(out: Path, recipe: Recipe[Any], backbone: Backbone) -> bool:
    """Whether `out` holds finished data of just these settings."""
    if not (out / rows.MANIFEST).is_file():
        return False
    made_from = rows.manifest(out)["made_from"]
    return all(made_from.get(key) == value for key, value in request(recipe, backbone).items())


def request(recipe: Recipe[Any], backbone: Backbone) -> dict[str, Any]:
    """Everything that decides what the rows are."""
    return {
        "backbone": backbone.name,
        "data": recipe.data.model_dump(mode="json"),
        "model": prepared_by(recipe, backbone),
    }


def prepared_by(recipe: Recipe[Any], backbone: Backbone) -> dict[str, Any]:
    """The values of the recipe keys that the backbone says change its rows."""
    values = recipe.model_dump(mode="json")
    found = {}
    for key in backbone.spec.prepared_by:
        value: Any = values
        for part in key.split("."):
            value = value[part]
        found[key] = value
    return found


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The keys in which two nested mappings differ, as `key: old -> new`; the first few of many."""
    before, after = flat(old), flat(new)
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    told = [f"{key}: {short(before.get(key))} -> {short(after.get(key))}" for key in keys[:4]]
    return ", ".join(told) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")


def short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= (
            flat(inner, f"{prefix}{key}.") if isinstance(inner, dict) else {f"{prefix}{key}": inner}
        )
    return found


def spool(recipe: Recipe[Any], backbone: Backbone, clips: Clips, out: Path) -> list[Kept]:
    """Run the backbone's prepare hook; all rows go to one spool file, since their split needs
    their number.
    """
    kept: list[Kept] = []
    offset = 0
    with (
        building(out / "artifacts") as artifacts,
        replacing(out / "spool") as stream,
        console.progress("preparing clips", None) as tick,
    ):
        clips.tick = tick
        produced = backbone.hook.prepare(recipe=recipe, clips=clips, artifacts=artifacts)
        for row in produced:
            if not clips.pending:
                raise AssertionError(
                    f"backbone {backbone.name}: prepare() gave more rows than it read clips"
                )
            pending = clips.pending.popleft()
            line = finish(row, pending, backbone)
            if isinstance(line, Skip):
                clips.reject(pending.position, pending.entry.name, line.reason, line.detail)
                continue
            stream.write(line)
            clip = pending.clip
            clips.used |= {path for path in (clip.path, clip.ref_audio) if path is not None}
            by_speaker = recipe.data.split_by == "speaker"
            group = (clip.speaker or "") if by_speaker else clip.text.casefold()
            kept.append(Kept(offset, len(line), pending.seconds, clip.split, group))
            offset += len(line)
        if clips.pending:
            raise AssertionError(
                f"backbone {backbone.name}: prepare() gave no row for {len(clips.pending)} clips"
            )
        if not kept:
            raise rejects.nothing_usable(clips)
        (out / rows.MANIFEST).unlink(missing_ok=True)  # from here on the old data is being replaced
    return kept


def finish(row: Row | Skip, pending: Pending, backbone: Backbone) -> bytes | Skip:
    """The backbone's row with the host's fields, encoded; or why it cannot be used."""
    if isinstance(row, Skip):
        return row
    clip, entry, spec = pending.clip, pending.entry, backbone.spec
    if spec.codebooks and (problem := rows.bad_codes(row.get("audio_codes"), spec.codebooks)):
        return Skip("bad-codes", problem)
    base = {
        "id": clip.id,
        "audio": entry.extra.get("audio") if clip.path is None else str(clip.path),
        "text": clip.text,
        "duration": round(pending.seconds, 4),
        "speaker": clip.speaker,
        "language": clip.language,
    }
    if clip.ref_audio is not None:
        base["ref_audio"] = str(clip.ref_audio)
    if clip.ref_text is not None:
        base["ref_text"] = clip.ref_text
    extra = {key: value for key, value in entry.extra.items() if key not in base and key not in row}
    try:
        return rows.encode({**base, **extra, **row})
    except ValueError as error:
        return Skip("bad-row", str(error))


def write_splits(recipe: Recipe[Any], kept: list[Kept], out: Path) -> dict[str, Any]:
    """Write the spool's rows to the splits' files and remove it; rows, seconds and hash of each."""
    places = assign(recipe.data, kept)
    report = {}
    with (out / "spool").open("rb") as stream:
        for name in SPLITS:
            mine = [row for row, place in zip(kept, places, strict=True) if place == name]
            if not mine:
                clear_rows(out / f"{name}.jsonl")
                continue

            def lines(mine: list[Kept] = mine) -> Iterator[bytes]:
                for row in mine:
                    stream.seek(row.offset)
                    yield stream.read(row.size)

            report[name] = write_rows(
                out / f"{name}.jsonl", lines(), sum(row.seconds for row in mine)
            )
    (out / "spool").unlink()
    return report


def write_rows(path: Path, lines: Iterator[bytes], seconds: float | None = None) -> dict[str, Any]:
    """Write one split's rows; their number, hours (by the index, where not given) and hash."""
    count = rows.write(path, lines)
    if seconds is None:
        seconds = float(rows.read_index(path)["seconds"].sum(dtype=float))
    return {"rows": count, "hours": round(seconds / 3600, 4), "sha256": sha256(path)}


def clear_rows(path: Path) -> None:
    path.unlink(missing_ok=True)
    rows.index_path(path).unlink(missing_ok=True)


def clear_audio(folder: Path, used: set[Path]) -> None:
    """Delete the recordings that no row names: those of an earlier preparation, or refused ones."""
    if not (folder / OURS).is_file():
        return
    for path in folder.iterdir():
        if path.resolve() not in used and path.name != OURS:
            delete(path)
    if not used:
        remove(folder)
