"""Rows as one batch: each row's prompt laid out, frames and targets behind it, right-padded."""

from collections.abc import Sequence
from random import Random

import numpy as np
import torch

from sheen_cli import Batch, Row, SheenError
from sheen_qwen3_tts.base import Base
from sheen_qwen3_tts.layout import IGNORE, NONE, VECTOR, Prompt, build


def collate(base: Base, rows: Sequence[Row], mix: Sequence[tuple[bool, bool]]) -> Batch:
    """`mix` says of each row whether its language is named, and whether it is streaming."""
    laid = [lay(base, row, *how) for row, how in zip(rows, mix, strict=True)]
    width = max(len(text) for text, _, _ in laid)
    groups = base.ids.groups
    text = torch.full((len(rows), width), NONE)
    codec = torch.full((len(rows), width, groups), NONE)
    targets = torch.full((len(rows), width, groups), IGNORE)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for row, (words, codes, wanted) in enumerate(laid):
        text[row, : len(words)] = torch.from_numpy(words)
        codec[row, : len(words)] = torch.from_numpy(codes)
        targets[row, : len(words)] = torch.from_numpy(wanted)
        mask[row, : len(words)] = 1
    voice = torch.tensor([row["voice"] for row in rows])
    inputs = {"text": text, "codec": codec, "voice": voice, "mask": mask, "targets": targets}
    asked = targets != IGNORE
    counts = {"talker": int(asked[..., 0].sum()), "subtalker": int(asked[..., 1:].sum())}
    return Batch(inputs, counts)


def lay(
    base: Base, row: Row, named: bool, streaming: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One row's text ids, codec ids and targets. Raises SheenError that names the row."""
    words = base.words(row["text"])
    if not words:
        raise SheenError(f"row {row.get('id')}: its text is empty")
    language = base.language(row.get("language")) if named else None
    prompt = Prompt(words, VECTOR, language, (), None, streaming)
    laid, targets = build(prompt, np.array(row["audio_codes"]), base.ids)
    return laid.text, laid.codec, targets


def drawn(seed: int | None, count: int, named: float, streaming: float) -> list[tuple[bool, bool]]:
    """For each row whether its language is named and whether it is streaming; without a seed the
    layout in which a taught voice is spoken: named, not streaming.
    """
    if seed is None:
        return [(True, False)] * count
    chance = Random(seed)
    return [(chance.random() < named, chance.random() < streaming) for _ in range(count)]
