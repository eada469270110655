"""Codecs of random weights in folders, as the Hub holds them: small, but of the real classes and at
the real rates, hops and, for SNAC, codebooks.
"""

import json
from pathlib import Path
from typing import Any

import torch

MIMI = {
    "sampling_rate": 24_000, "num_filters": 2, "hidden_size": 16, "num_hidden_layers": 1,
    "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
    "codebook_size": 64, "codebook_dim": 8, "vector_quantization_hidden_dimension": 8,
    "num_quantizers": 6, "num_semantic_quantizers": 1, "upsample_groups": 16,
}  # fmt: skip
DAC = {
    "sampling_rate": 24_000, "encoder_hidden_size": 4, "decoder_hidden_size": 32, "n_codebooks": 4,
    "codebook_size": 64, "codebook_dim": 4, "downsampling_ratios": [2, 4, 5, 8],
}  # fmt: skip
ENCODEC = {
    "sampling_rate": 24_000, "hidden_size": 16, "num_filters": 2, "codebook_size": 64,
    "num_lstm_layers": 1, "target_bandwidths": [0.9, 1.8, 3.6], "upsampling_ratios": [8, 5, 4, 2],
}  # fmt: skip
SNAC = {
    "sampling_rate": 24_000, "encoder_dim": 4, "encoder_rates": [2, 4, 8, 8], "decoder_dim": 32,
    "decoder_rates": [8, 8, 4, 2], "attn_window_size": None, "codebook_size": 4096,
    "codebook_dim": 8, "vq_strides": [4, 2, 1], "noise": True, "depthwise": True,
}  # fmt: skip


def write_snac(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """As hubertsiuzdak/snac_24khz lies on the Hub: a config and a pickle."""
    from snac import SNAC as Model

    config = {**SNAC, **changes}
    folder.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Model(**config)
        enliven(model)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def write_stock(kind: str, folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Mimi, DAC or EnCodec as transformers saves them."""
    import transformers

    values = {"mimi": MIMI, "dac": DAC, "encodec": ENCODEC}[kind]
    name = {"mimi": "Mimi", "dac": "Dac", "encodec": "Encodec"}[kind]
    config = getattr(transformers, f"{name}Config")(**{**values, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, f"{name}Model")(config)
        enliven(model)
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def enliven(model: Any) -> None:
    """Make different sounds different codes: no biases, which would drown out the sound, and
    codebooks of noise as loud as what they are compared with.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if (name.startswith("encoder") and name.endswith("bias")) or ".in_proj.bias" in name:
            tensor.zero_()
        elif name.endswith(".embed_sum"):
            tensor.normal_()
        elif name.endswith(".embed"):
            tensor.normal_(std=5e-4)
        elif name.endswith(("cluster_usage", "cluster_size")):
            tensor.fill_(1.0)
