"""A very small base and codec of the real classes, with random weights: for tests, `sheen doctor`
and the contract kit.
"""

import json
from pathlib import Path
from typing import Any, Literal

SHAPE = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 4096,
}  # fmt: skip
MIMI = {
    "sampling_rate": 24_000, "num_filters": 2, "hidden_size": 16, "num_hidden_layers": 1,
    "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
    "codebook_size": 64, "codebook_dim": 8, "vector_quantization_hidden_dimension": 8,
    "num_quantizers": 4, "num_semantic_quantizers": 1, "upsample_groups": 16,
}  # fmt: skip
SNAC = {
    "sampling_rate": 24_000, "encoder_dim": 4, "encoder_rates": [2, 4, 8, 8], "decoder_dim": 32,
    "decoder_rates": [8, 8, 4, 2], "attn_window_size": None, "codebook_size": 4096,
    "codebook_dim": 8, "vq_strides": [4, 2, 1], "noise": True, "depthwise": True,
}  # fmt: skip


def base(folder: Path, kind: Literal["qwen3", "llama"]) -> Path:
    """A language model of 300 tokens, a byte-level tokenizer among them."""
    import torch
    import transformers

    words = tokenizer(kind)
    config: Any = {"qwen3": transformers.Qwen3Config, "llama": transformers.LlamaConfig}[kind]
    maker: Any = {"qwen3": transformers.Qwen3ForCausalLM, "llama": transformers.LlamaForCausalLM}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = maker[kind](config(vocab_size=300, tie_word_embeddings=True, **SHAPE))
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def tokenizer(kind: Literal["qwen3", "llama"]) -> Any:
    """Bytes, and the family's own special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    special = {
        "qwen3": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        "llama": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    }[kind]
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


def snac(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """As hubertsiuzdak/snac_24khz lies on the Hub. Needs the package snac."""
    import torch
    from snac import SNAC as Model

    config = {**SNAC, **changes}
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = enlivened(Model(**config))
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def mimi(folder: Path, seed: int = 0, **changes: Any) -> Path:
    import torch
    from transformers import MimiConfig, MimiModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = enlivened(MimiModel(MimiConfig(**{**MIMI, **changes})))
    model.save_pretrained(folder)
    return folder


def enlivened(codec: Any) -> Any:
    """Make different sounds different codes: no biases, which would drown out the sound, and
    codebooks of noise as loud as what they are compared with.
    """
    import torch

    with torch.no_grad():
        for name, tensor in [*codec.named_parameters(), *codec.named_buffers()]:
            if (name.startswith("encoder") and name.endswith("bias")) or ".in_proj.bias" in name:
                tensor.zero_()
            elif name.endswith(".embed_sum"):  # Mimi's
                tensor.normal_()
            elif name.endswith(".embed"):  # EnCodec's
                tensor.normal_(std=5e-4)
            elif name.endswith(("cluster_usage", "cluster_size")):
                tensor.fill_(1.0)
    return codec
