"""Before the first step: does the base predict what is due, or what comes after it?

Trainers that shift labels twice leave checkpoints that look trained and have unlearnt to speak: the
talker says the frame after the next one, each head of the sub-talker the next codebook.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sheen_cli import Row, SheenError
from sheen_qwen3_tts import references
from sheen_qwen3_tts.batches import SPOKEN, collate
from sheen_qwen3_tts.layout import IGNORE
from sheen_qwen3_tts.model import Speech

CLEARLY = 0.3  # nats below chance from which a model counts as trained


@dataclass(frozen=True)
class Losses:
    """Cross-entropies in nats: of code 0 against the frame that is due and the one after it, and of
    each head but the last, which has no next codebook, against its own codebook and the next.
    """

    aligned: float
    ahead: float
    heads: tuple[float, ...]
    heads_ahead: tuple[float, ...]


@torch.no_grad()
def losses(model: Speech, rows: Sequence[Row], artifacts: Path) -> Losses:
    tables = references.load(artifacts)
    batch = collate(model.base, rows, [SPOKEN] * len(rows), tables)
    inputs = {name: tensor.to(model.device) for name, tensor in batch.inputs.items()}
    first, found = model.eval()(**inputs, trace=True)
    targets = inputs["targets"]
    due: list[Tensor] = [row[row != IGNORE] for row in targets[..., 0]]
    scores = first.float().split([len(each) for each in due])
    ahead = torch.cat([score[:-1] for score in scores]), torch.cat([each[1:] for each in due])
    codes, inner = (
        targets[targets[..., 1] != IGNORE],
        found.logits.float().transpose(1, 2)[..., :-1],
    )
    own, following = (
        cross_entropy(inner, wanted, reduction="none").mean(0).tolist()
        for wanted in (codes[:, 1:-1], codes[:, 2:])
    )
    aligned = cross_entropy(torch.cat(scores), torch.cat(due))
    return Losses(float(aligned), float(cross_entropy(*ahead)), tuple(own), tuple(following))


def check(model: Speech, rows: Sequence[Row], artifacts: Path, name: str) -> str | None:
    """A notice where the base is untrained. Raises SheenError where it speaks ahead of itself."""
    found = losses(model, rows, artifacts)
    chance = math.log(model.base.talker["vocab_size"])
    if min(found.aligned, found.ahead) > chance - CLEARLY:
        return (
            f"model.base={name} knows no more than chance (loss {found.aligned:.2f} of "
            f"{chance:.2f}): it is untrained, or of another language or codec"
        )
    advice = (
        "as trainers leave it that shift labels twice; start from the released base, or go on with "
        "model.preflight=false"
    )
    if found.aligned >= found.ahead:
        raise SheenError(
            f"model.base={name} predicts the frame after the next one (loss {found.ahead:.2f}) "
            f"better than the next one ({found.aligned:.2f}), {advice}"
        )
    if wrong := crossed(found.heads, found.heads_ahead, model.base.codes):
        head, own, following = wrong[0]
        raise SheenError(
            f"model.base={name}: head {head} of its sub-talker predicts codebook {head + 1} (loss "
            f"{following:.2f}) better than its own ({own:.2f}), and so do {len(wrong)} heads in "
            f"all, {advice}"
        )
    return None


def crossed(
    heads: Sequence[float], heads_ahead: Sequence[float], codes: int
) -> list[tuple[int, float, float]]:
    """The heads, from 1, that predict the next codebook better than their own and clearly better
    than chance among so many codes, each with both losses.
    """
    limit = math.log(codes) - CLEARLY
    pairs = enumerate(zip(heads, heads_ahead, strict=False), 1)
    return [(head, own, ahead) for head, (own, ahead) in pairs if ahead < min(limit, own)]
