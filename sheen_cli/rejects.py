"""Clips that were left out: the file that names them, and what is said of them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from sheen_cli.clips import Clips
from sheen_cli.errors import SheenError
from sheen_cli.files import replacing
from sheen_cli.types import Row


def write(path: Path, rejected: dict[int, Row]) -> dict[str, int]:
    """rejected.jsonl, one line a refused clip in the source's order; returns counts by reason."""
    with replacing(path) as stream:
        for position in sorted(rejected):
            stream.write((json.dumps(rejected[position]) + "\n").encode())
    return dict(sorted(Counter(row["reason"] for row in rejected.values()).items()))


def outcome(manifest: dict[str, Any], out: Path) -> str:
    """How many clips were read and rejected, why, and where they are named."""
    refused = sum(manifest["rejected"].values())
    return (
        f"{manifest['read']} read, {refused} rejected"
        + (f" ({tally(manifest['rejected'])})" if refused else "")
        + (f", see {out}/rejected.jsonl" if refused and "corpus" not in manifest else "")
    )


def nothing_usable(clips: Clips) -> SheenError:
    reasons = tally(dict(Counter(row["reason"] for row in clips.rejected.values())))
    first = next(iter(clips.rejected.values()), {"name": None, "detail": ""})
    words = " ".join(filter(None, (first["name"], first["detail"])))
    shown = f"; the first: {words}" if reasons else ""
    return SheenError(f"no usable row in {clips.source.where}: {reasons or 'it is empty'}{shown}")


def tally(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())
