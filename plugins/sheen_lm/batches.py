"""Rows as one batch: each laid out, then right-padded, or several of them in one window."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sheen_cli import Batch, Row, SheenError
from sheen_lm.layout import IGNORE, TERM, Ids, Prompt, build, cut
from sheen_lm.packing import PADDING, best_fit
from sheen_lm.references import Heard

Policy = Literal["drop", "trim"]


@dataclass(frozen=True)
class Laid:
    """A row's tokens (n,) and targets (n,), up to the last token that predicts one."""

    tokens: np.ndarray
    targets: np.ndarray


def whole(ids: Ids, row: Row, prompt: Prompt) -> Laid:
    """All of a row. Raises SheenError that names the row."""
    try:
        tokens, targets = build(prompt, row["audio_codes"], ids)
    except SheenError as error:
        raise SheenError(f"row {row.get('id')}: {error}") from None
    end = int(np.flatnonzero(targets != IGNORE)[-1]) + 1
    return Laid(tokens[:end], targets[:end])


def lay(ids: Ids, row: Row, prompt: Prompt, longest: int, policy: Policy = "drop") -> Laid:
    """A row of at most `longest` tokens. With `trim` a longer one is cut behind its last frame that
    fits, without an end; with `drop` it should not be here. Raises SheenError that names the row.
    """
    laid = whole(ids, row, prompt)
    if len(laid.tokens) <= longest:
        return laid
    about = f"row {row.get('id')}: {len(laid.tokens)} tokens, more than model.longest={longest}"
    if policy == "drop":
        raise SheenError(
            f"{about}; prepare the data with that (--overwrite), or set model.too_long=trim"
        )
    end = cut(prompt, ids, longest)
    if end is None:
        raise SheenError(f"{about}, and its prompt leaves no room for a frame")
    return Laid(laid.tokens[:end], laid.targets[:end])


def prompt_of(row: Row, reference: Heard | None = None) -> Prompt:
    """What a row says; after a recording without a name, since `synth --ref` gives none."""
    instruct = row.get("instruct") or None
    if reference is None:
        return Prompt(row["text"], row.get("speaker"), instruct)
    return Prompt(row["text"], None, instruct, (reference.text, reference.codes))


def prompts(
    rows: Sequence[Row],
    pool: Mapping[str, Sequence[Heard]],
    share: float,
    seed: int | None,
    fits: Callable[[Row, Prompt], bool],
) -> list[Prompt]:
    """A prompt for each row; a share of them, drawn with `seed`, go on from another recording of
    the speaker in `pool`, where there is one with which the row `fits`: rows that name no speaker
    have none. Without a seed none does.
    """
    if seed is None:
        return [prompt_of(row) for row in rows]
    chance, found = Random(seed), []
    for row in rows:
        wanted, place = chance.random() < share, chance.random()
        prompt = prompt_of(row)
        others = [heard for heard in pool.get(row.get("speaker") or "", ()) if differs(heard, row)]
        if wanted and others:
            paired = prompt_of(row, others[int(place * len(others))])
            prompt = paired if fits(row, paired) else prompt
        found.append(prompt)
    return found


def differs(heard: Heard, row: Row) -> bool:
    """Not the same recording, under whatever name, which would teach to copy."""
    return heard.name != row.get("id") and not np.array_equal(heard.codes, row["audio_codes"])


def collate(
    ids: Ids, rows: Sequence[Row], prompts: Sequence[Prompt], longest: int,
    policy: Policy = "drop", window: int | None = None,
) -> Batch:  # fmt: skip
    """Rows as `tokens` and `targets` (B, n). With a `window` rows lie one after another in windows
    of at most so many tokens, and `segments` (B, n) tells them apart.
    """
    laid = [lay(ids, row, prompt, longest, policy)
            for row, prompt in zip(rows, prompts, strict=True)]  # fmt: skip
    inputs = padded(laid, ids.pad) if window is None else packed(laid, ids.pad, window)
    return Batch(inputs, {TERM: int((inputs["targets"] != IGNORE).sum())})


def padded(laid: Sequence[Laid], pad: int) -> dict[str, Tensor]:
    return filled([[one] for one in laid], pad)


def packed(laid: Sequence[Laid], pad: int, window: int) -> dict[str, Tensor]:
    """The longest first, each into the fullest window that still holds it."""
    lengths = [len(one.tokens) for one in laid]
    fitted = best_fit(lengths, max(window, *lengths))
    windows = [[laid[number] for number in mine] for mine in fitted]
    inputs = filled(windows, pad)
    segments = torch.full_like(inputs["tokens"], PADDING)
    for row, mine in enumerate(windows):
        counts = torch.tensor([len(one.tokens) for one in mine])
        numbers = torch.arange(1, len(mine) + 1).repeat_interleave(counts)
        segments[row, : len(numbers)] = numbers
    return {**inputs, "segments": segments}


def filled(windows: Sequence[Sequence[Laid]], pad: int) -> dict[str, Tensor]:
    """Tokens and targets (B, n), right-padded; padding is no target, whatever token it is."""
    width = max(sum(len(one.tokens) for one in mine) for mine in windows)
    tokens = torch.full((len(windows), width), pad)
    targets = torch.full((len(windows), width), IGNORE)
    for row, mine in enumerate(windows):
        said = np.concatenate([one.tokens for one in mine])
        tokens[row, : len(said)] = torch.from_numpy(said)
        targets[row, : len(said)] = torch.from_numpy(np.concatenate([one.targets for one in mine]))
    return {"tokens": tokens, "targets": targets}
