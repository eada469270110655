"""Rows as one batch: each row's prompt laid out, frames and targets behind it, right-padded."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sheen_cli import Batch, Row, SheenError
from sheen_qwen3_tts.base import Base
from sheen_qwen3_tts.layout import IGNORE, NONE, VECTOR, Prompt, build
from sheen_qwen3_tts.references import Tables, frames

if TYPE_CHECKING:
    from sheen_qwen3_tts import Options


@dataclass(frozen=True)
class Form:
    """How a row is laid out: whose vector and what before it (`slot`: its voice's, `xvector`: its
    reference's, `icl`: that and the reference itself), whether its language is named, whether text
    and frames run side by side.
    """

    conditioning: str = "slot"
    named: bool = True
    streaming: bool = False


SPOKEN = Form()  # that in which `synth` speaks with a voice that was taught


def drawn(seed: int | None, count: int, options: "Options") -> list[Form]:
    """A form for each row, by the recipe's shares; without a seed that of a taught voice."""
    if seed is None:
        return [SPOKEN] * count
    chance, shares = Random(seed), options.conditioning.model_dump()
    return [
        Form(
            chance.choices(list(shares), list(shares.values()))[0],
            chance.random() < options.named_language,
            chance.random() < options.streaming,
        )
        for _ in range(count)
    ]


def collate(
    base: Base,
    rows: Sequence[Row],
    forms: Sequence[Form],
    tables: Tables,
    seed: int | None = None,
    share: float = 1.0,
) -> Batch:
    """`vectors` (B, hidden) are the rows' speakers'; ids and targets are as in `layout`. `share` of
    the frames, drawn with `seed`, are the sub-talker's to learn.
    """
    laid = [lay(base, row, form, tables) for row, form in zip(rows, forms, strict=True)]
    width = max(len(one.text) for one in laid)
    groups = base.ids.groups
    text = torch.full((len(rows), width), NONE)
    codec = torch.full((len(rows), width, groups), NONE)
    targets = torch.full((len(rows), width, groups), IGNORE)
    for row, one in enumerate(laid):
        text[row, : len(one.text)] = torch.from_numpy(one.text)
        codec[row, : len(one.text)] = torch.from_numpy(one.codec)
        targets[row, : len(one.text)] = torch.from_numpy(one.targets)
    targets = targets if seed is None else sampled(targets, share, seed)
    vectors = torch.stack([one.vector for one in laid])
    inputs = {"text": text, "codec": codec, "vectors": vectors, "targets": targets}
    asked = targets != IGNORE
    counts = {"talker": int(asked[..., 0].sum()), "subtalker": int(asked[..., 1:].sum())}
    return Batch(inputs, counts)


def sampled(targets: Tensor, share: float, seed: int) -> Tensor:
    """Targets (B, n, groups) with codes 1.. on a share of the frames, at least one, drawn over the
    whole batch; IGNORE on the others, which keep code 0.
    """
    found = (targets[..., 1] != IGNORE).nonzero()
    count = max(1, round(share * len(found)))
    out = np.random.default_rng(seed).permutation(len(found))[count:]
    rows, places = found[torch.from_numpy(out)].unbind(1)
    targets = targets.clone()
    targets[rows, places, 1:] = IGNORE
    return targets


@dataclass(frozen=True)
class Laid:
    text: np.ndarray
    codec: np.ndarray
    targets: np.ndarray
    vector: Tensor


def lay(base: Base, row: Row, form: Form, tables: Tables) -> Laid:
    """One row's ids, targets and vector. A row without a reference, or without its words, takes the
    form that it can. Raises SheenError that names the row.
    """
    words = base.words(row["text"])
    if not words:
        raise SheenError(f"row {row.get('id')}: its text is empty")
    vector, before = tables.voices[row["voice"]], None
    if form.conditioning != "slot" and row.get("reference") is not None:
        heard = tables.references[row["reference"]]
        vector = heard.vector
        if form.conditioning == "icl" and heard.text:
            before = base.said(heard.text), frames(heard.codes)
    language = base.language(row.get("language")) if form.named else None
    prompt = Prompt(words, VECTOR, language, (), before, form.streaming)
    rows, targets = build(prompt, np.array(row["audio_codes"]), base.ids)
    return Laid(rows.text, rows.codec, targets, vector)
