"""Codecs of random weights in folders: small, but of the real classes and at the real rates and
hops.
"""

from pathlib import Path
from typing import Any

import torch

from sheen_lm.miniature import enlivened, mimi, snac

DAC = {
    "sampling_rate": 24_000, "encoder_hidden_size": 4, "decoder_hidden_size": 32, "n_codebooks": 4,
    "codebook_size": 64, "codebook_dim": 4, "downsampling_ratios": [2, 4, 5, 8],
}  # fmt: skip
ENCODEC = {
    "sampling_rate": 24_000, "hidden_size": 16, "num_filters": 2, "codebook_size": 64,
    "num_lstm_layers": 1, "target_bandwidths": [0.9, 1.8, 3.6], "upsampling_ratios": [8, 5, 4, 2],
}  # fmt: skip


def write(kind: str, folder: Path, seed: int = 0, **changes: Any) -> Path:
    """One of "snac", "mimi", "dac" and "encodec" as it lies on the Hub."""
    from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel

    if kind == "snac":
        return snac(folder, seed, **changes)
    if kind == "mimi":
        return mimi(folder, seed, **{"num_quantizers": 6, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "dac":
            model = DacModel(DacConfig(**{**DAC, **changes}))
        else:
            model = EncodecModel(EncodecConfig(**{**ENCODEC, **changes}))
        enlivened(model).save_pretrained(folder)
    return folder
