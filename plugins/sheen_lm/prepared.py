"""How prepared rows were written, beside their codec: whose names they hold, and by which tokenizer
and convention their length was judged.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sheen_cli import Row, SheenError
from sheen_lm import batches, pretraining
from sheen_lm.layout import Ids

FACTS = "sequences.json"
MOST = 1000  # names that are kept, those of the most rows


@dataclass(frozen=True)
class Voices:
    """The names in the rows that a model learnt from, and whether some rows had none."""

    names: tuple[str, ...]
    unnamed: bool

    def doubt(self, speaker: str | None) -> str | None:
        """What is to be said of a wish for that speaker; None where rows were like it."""
        if not self.names:
            return None
        shown = ", ".join(self.names[:8]) + (", ..." if len(self.names) > 8 else "")
        if speaker is None and not self.unnamed:
            return f"all rows that the model learnt from name their speaker: ask for one of {shown}"
        if speaker is not None and speaker not in self.names and len(self.names) < MOST:
            return f"no row that the model learnt from names {speaker}; it knows {shown}"
        return None


def note(ids: Ids, speakers: Counter[str | None], artifacts: Path) -> None:
    known = pretraining.encoding(ids, None)
    named = [name for name, _ in speakers.most_common() if name is not None]
    facts = {
        "tokenizer": known.tokenizer, "convention": known.convention,
        "speakers": named[:MOST], "unnamed": speakers[None] > 0,
    }  # fmt: skip
    (artifacts / FACTS).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", "utf-8")


def read(artifacts: Path) -> dict[str, Any] | None:
    """What was noted; None for windows of a corpus."""
    path = artifacts / FACTS
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else None


def voices(artifacts: Path) -> Voices | None:
    facts = read(artifacts)
    return Voices(tuple(facts["speakers"]), facts["unnamed"]) if facts else None


def check_lengths(rows: Iterable[Row], ids: Ids, longest: int, artifacts: Path) -> None:
    """Before a training whose rows are to be left out where they are longer than `longest` tokens:
    raises SheenError where some are, since they were prepared for another tokenizer or convention.
    """
    facts, known = read(artifacts), pretraining.encoding(ids, None)
    if facts is None or (facts["tokenizer"], facts["convention"]) == (
        known.tokenizer, known.convention
    ):  # fmt: skip
        return
    over = [row["id"] for row in rows if length(row, ids) > longest]
    if over:
        raise SheenError(
            f"{len(over)} rows, {over[0]} the first, have more than model.longest={longest} tokens "
            f"as this recipe writes them (they were prepared for another base or family): prepare "
            f"them with this recipe, or set model.too_long=trim"
        )


def length(row: Row, ids: Ids) -> int:
    return len(batches.whole(ids, row, batches.prompt_of(row)).tokens)


def check_positions(wanted: int, name: str, config: Any, base: str) -> None:
    """Raise SheenError where a base has fewer positions than tokens that it is to see at once."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and wanted > positions:
        raise SheenError(
            f"{name}={wanted} tokens are more than the {positions} positions of model.base={base}; "
            f"set {name}={positions} or less"
        )
