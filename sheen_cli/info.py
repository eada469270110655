"""What `sheen info` says of a rows file, a data folder, a run or a checkpoint."""

import json
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from sheen_cli import checkpoints, rows, tracking
from sheen_cli.errors import SheenError
from sheen_cli.files import read_json
from sheen_cli.recipe import read
from sheen_cli.rows import Rows
from sheen_cli.sources.columns import ALIASES

# counted where some row has them; a row without is unknown
FIELDS = ("language", "speaker", "gender", "age", "age_range", "phase")
SHOWN = 8  # values named of a counted field
PERCENTILES = (0, 5, 50, 95, 100)


def describe(path: Path) -> dict[str, Any]:
    """Facts about what lies at `path`. Raises SheenError where sheen knows no such thing."""
    if path.is_file() and path.name == "rejected.jsonl":
        refused = Counter(
            json.loads(line)["reason"] for line in path.read_text("utf-8").splitlines()
        )
        return {"kind": "rejected", "path": str(path), "reasons": dict(refused.most_common())}
    if path.is_file() and path.suffix == ".jsonl":
        return {"kind": "rows", "path": str(path), **describe_rows(path)}
    if (path / rows.MANIFEST).is_file():
        return {"kind": "data", "path": str(path), **describe_data(path)}
    if (path / checkpoints.MANIFEST).is_file():
        return {"kind": "checkpoint", "path": str(path), **describe_checkpoint(path)}
    if (path / "run.json").is_file():
        return {"kind": "run", "path": str(path), **describe_run(path)}
    if not path.exists():
        raise SheenError(f"nothing at {path}")
    raise SheenError(
        f"{path} is neither a .jsonl file, a prepared data folder, a run nor a checkpoint"
    )


def describe_rows(path: Path) -> dict[str, Any]:
    table = Rows(path, keep=False)  # to look at something changes nothing
    counts: dict[str, Counter[str]] = {field: Counter() for field in FIELDS}
    characters, frames, books, odd = [], [], list[tuple[int, int]](), 0
    tokens: list[int] = []  # of a row's whole sequence, where its backbone says that
    for row in table:
        for field in FIELDS:
            for name in ALIASES.get(field, (field,)):
                if name in row:
                    counts[field]["unknown" if row[name] in (None, "") else str(row[name])] += 1
                    break
        characters.append(len(str(row.get("text", ""))))
        if isinstance(row.get("tokens"), int):
            tokens.append(row["tokens"])
        if "audio_codes" in row:
            array = frames_of(row["audio_codes"])
            if array is None:
                odd += 1
                continue
            frames.append(len(array))
            ends = list(zip(array.min(0).tolist(), array.max(0).tolist(), strict=True))
            books = [
                (min(a, c), max(b, d))
                for (a, b), (c, d) in zip_longest(books, ends, fillvalue=(2**63, -1))
            ]
    for counter in counts.values():
        if counter and (lacking := len(table) - counter.total()):
            counter["unknown"] += lacking
    seconds = table.seconds if table.seconds.any() else None  # files of others may not say them
    return {
        "rows": len(table),
        "hours": None if seconds is None else round(float(seconds.sum(dtype=float)) / 3600, 4),
        "seconds": None if seconds is None else spread(seconds.tolist()),
        "characters": spread(characters) if any(characters) else None,
        "frames": spread(frames),
        "tokens": spread(tokens),
        "code_ranges": books,
        "unreadable_codes": odd or None,
        **{field: dict(counter.most_common()) for field, counter in counts.items() if counter},
    }


def frames_of(codes: Any) -> np.ndarray | None:
    """Codes as an array (frames, codebooks), or None where they are no such thing."""
    try:
        array = np.asarray(codes)
    except ValueError:  # frames of different lengths
        return None
    return array if array.ndim == 2 and array.size and array.dtype.kind in "iu" else None


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Percentiles of the values, rounded; None for no values."""
    if not values:
        return None
    return {
        f"p{p}": round(float(value), 2)
        for p, value in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True)
    }


def describe_data(path: Path) -> dict[str, Any]:
    manifest = rows.manifest(path)
    files = {name: describe_rows(path / f"{name}.jsonl") for name in manifest["splits"]}
    keys = ("backbone", "sample_rate", "frame_rate", "codebooks", "read", "rejected")
    corpus = manifest.get("corpus")  # the hashes that it is told by are left out
    facts = {
        "dataset": manifest["made_from"]["data"]["dataset"],
        "source": manifest["made_from"].get("source") if corpus is None else None,
        **{key: manifest[key] for key in keys},
        "splits": files,
    }
    if corpus is None:
        return facts
    for split in files.values():
        split["hours"] = None  # windows come again; the sources say what there is
    return {**facts, "corpus": describe_corpus(corpus)}


def describe_corpus(corpus: dict[str, Any]) -> dict[str, Any]:
    """What the sources gave and how they are mixed, as far as the corpus says it in our words."""
    if not {"window", "sources", "mixture"} <= corpus.keys():
        return {}
    mixture: dict[str, dict[str, Any]] = {}
    for part in corpus["mixture"]:
        mixture.setdefault(part["source"], {})[part["language"] or "unknown"] = {
            "wanted": round(part["wanted"], 4),
            "realised": round(part["realised"], 4),
            "passes": round(part["passes"], 1),
        }
    sources = {name: describe_source(about["totals"]) for name, about in corpus["sources"].items()}
    return {"window": corpus["window"], "sources": sources, "mixture": mixture}


def describe_source(totals: dict[str, Any]) -> dict[str, Any]:
    return {
        "documents": totals["documents"],
        "tokens": totals["tokens"],
        "hours": round(totals["seconds"] / 3600, 4),
        "windows": totals["windows"],
        "full": round(100 * totals["fill"], 1),
        "refused": {
            reason: {"count": count, "first": totals["details"][reason]}
            for reason, count in totals["rejected"].items()
        },
    }


def describe_run(path: Path) -> dict[str, Any]:
    folders = checkpoints.listed(path)
    lines = tracking.read(path / "metrics.jsonl")
    losses = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    return {
        "backbone": read(path / "recipe.yaml")["backbone"],
        "checkpoints": [folder.name for folder in folders],
        "best": (path / "best").readlink().name if (path / "best").is_symlink() else None,
        "last": (path / "last").readlink().name if (path / "last").is_symlink() else None,
        "validation_loss": losses,
        "versions": read_json(path / "run.json")["versions"],
    }


def describe_checkpoint(path: Path) -> dict[str, Any]:
    problem = checkpoints.check(path)
    manifest = read_json(path / checkpoints.MANIFEST)
    progress = path / checkpoints.STATE / "progress.json"
    return {
        "backbone": manifest["backbone"],
        "whole": problem is None,
        "problem": problem,
        "bytes": sum(file["bytes"] for file in manifest["files"].values()),
        "files": list(manifest["files"]),
        "progress": json.loads(progress.read_text("utf-8")) if progress.is_file() else None,
    }


def lines(facts: dict[str, Any], indent: str = "") -> list[str]:
    """The facts as aligned `name  value` lines; nested ones are indented."""
    width = max((len(name) for name, value in facts.items() if not nested(value)), default=0)
    text = []
    for name, value in facts.items():
        if nested(value):
            text += [f"{indent}{name}", *lines(value, indent + "  ")]
        elif value not in (None, [], {}):
            text.append(f"{indent}{name.ljust(width)}  {plain(value)}")
    return text


def nested(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(inner, dict) for inner in value.values())


def plain(value: Any) -> str:
    if isinstance(value, dict):
        shown = [f"{name} {count}" for name, count in list(value.items())[:SHOWN]]
        return ", ".join(shown) + (f", and {len(value) - SHOWN} more" if len(value) > SHOWN else "")
    if isinstance(value, (list, tuple)):
        return ", ".join(
            "-".join(map(str, part)) if isinstance(part, (list, tuple)) else str(part)
            for part in value
        )
    return str(value)
