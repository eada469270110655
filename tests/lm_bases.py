"""Tokenizers as Qwen3 and Llama 3.2 have them, every id in its place, but with words of one letter;
and models of those architectures, very small.
"""

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

QWEN_ADDED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # from 151643 on, 26 of them
LLAMA_ADDED = {
    0: "<|begin_of_text|>", 1: "<|end_of_text|>", 4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>", 7: "<|end_header_id|>", 9: "<|eot_id|>",
}  # fmt: skip


def letters() -> list[str]:
    """The 256 bytes in the order of their ids: "H" is 39, "i" 72, a space 220."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [*map(chr, kept), *(chr(256 + number) for number in range(256 - len(kept)))]


def tokenizer(size: int, added: list[str], **own: str | None) -> Any:
    """A byte-level one of `size` tokens, most of which no text comes to, and `added`."""
    vocabulary = {letter: number for number, letter in enumerate(letters())}
    vocabulary |= {f"word {number}": number for number in range(256, size)}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    found = PreTrainedTokenizerFast(tokenizer_object=backend)
    found.add_tokens(added, special_tokens=True)
    found.add_special_tokens({name: token for name, token in own.items() if token is not None})
    return found


def qwen(size: int = 151_643) -> Any:
    """151,669 tokens, none of them for a beginning."""
    added = [*QWEN_ADDED, *(f"<|other_{number}|>" for number in range(23))]
    return tokenizer(size, added, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def llama(size: int = 128_000) -> Any:
    """128,256 tokens, none of them for padding."""
    added = [LLAMA_ADDED.get(number, f"<|reserved_{number}|>") for number in range(256)]
    return tokenizer(size, added, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")


def qwen_model(rows: int, tied: bool = True, width: int = 16) -> Any:
    return Qwen3ForCausalLM(Qwen3Config(tie_word_embeddings=tied, **_shape(rows, width)))


def llama_model(rows: int, tied: bool = True, width: int = 16) -> Any:
    return LlamaForCausalLM(LlamaConfig(tie_word_embeddings=tied, **_shape(rows, width)))


def _shape(rows: int, width: int) -> dict[str, Any]:
    return {
        "vocab_size": rows, "hidden_size": width, "intermediate_size": 2 * width,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": width // 4, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    }  # fmt: skip
