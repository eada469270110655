"""Before the first step: does the base predict the next frame, or the one after it?

Trainers that shift labels twice leave checkpoints that look trained and have unlearnt to speak.
"""

import math
from collections.abc import Sequence
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


@torch.no_grad()
def losses(model: Speech, rows: Sequence[Row], artifacts: Path) -> tuple[float, float]:
    """Cross-entropy of code 0 against the frame that is due, and against the one after it."""
    tables = references.load(artifacts)
    batch = collate(model.base, rows, [SPOKEN] * len(rows), tables)
    inputs = {name: tensor.to(model.device) for name, tensor in batch.inputs.items()}
    first, _ = model.eval()(**inputs)
    wanted = inputs["targets"][..., 0]
    due: list[Tensor] = [row[row != IGNORE] for row in wanted]
    scores = first.float().split([len(each) for each in due])
    ahead = torch.cat([score[:-1] for score in scores]), torch.cat([each[1:] for each in due])
    aligned = cross_entropy(torch.cat(scores), torch.cat(due))
    return float(aligned), float(cross_entropy(*ahead))


def check(model: Speech, rows: Sequence[Row], artifacts: Path, name: str) -> str | None:
    """A notice where the base is untrained. Raises SheenError where it speaks ahead of itself."""
    aligned, ahead = losses(model, rows, artifacts)
    chance = math.log(model.base.talker["vocab_size"])
    if min(aligned, ahead) > chance - CLEARLY:
        return (
            f"model.base={name} knows no more than chance (loss {aligned:.2f} of {chance:.2f}): it "
            f"is untrained, or of another language or codec"
        )
    if aligned >= ahead:
        raise SheenError(
            f"model.base={name} predicts the frame after the next one (loss {ahead:.2f}) better "
            f"than the next one ({aligned:.2f}), as trainers leave it that shift labels twice; "
            f"start from the released base, or go on with model.preflight=false"
        )
    return None
