"""A checkpoint of the real architecture that a CPU trains in seconds: every file and module name of
a Base release, random weights, widths that all differ.

It stands in for the released weights where those cannot be had or are not needed: the contract
kit, `sheen doctor`, the tests.
"""

import json
from pathlib import Path
from typing import Any

from sheen_qwen3_tts import stock

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tts_pad>", "<tts_bos>", "<tts_eos>")
WHOLE = ("assistant", "user", "system")  # one token each, as inference counts on
CODES, GROUPS, CONTROL = 32, 16, 1024
# Two clips that begin alike are told apart late; a rate that falls and steps to spare see to it on
# CPUs that round otherwise, too.
SETTINGS = (
    "train.max_steps=400", "train.learning_rate=1e-2", "train.schedule=cosine",
    "model.named_language=1", "model.streaming=0", "model.lora=null", "model.selftest=false",
    "model.conditioning={slot: 1, xvector: 0, icl: 0}",
)  # fmt: skip


def build(folder: Path, seed: int = 0) -> Path:
    """Write the checkpoint to `folder`."""
    stock.load()
    import torch
    from qwen_tts.core.models import Qwen3TTSConfig, Qwen3TTSForConditionalGeneration
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        added = write_tokenizer(folder)
        values = model_values(added)
        copied: dict[str, Any] = json.loads(json.dumps(values))  # the classes edit what they get
        model = Qwen3TTSForConditionalGeneration(Qwen3TTSConfig(**copied))
        # save_pretrained writes a config that cannot be read back, and fails under transformers 5
        save_file(model.state_dict(), folder / "model.safetensors", {"format": "pt"})
        write_codec(folder / "speech_tokenizer")
    finally:
        torch.set_rng_state(state)
    head = {"architectures": ["Qwen3TTSForConditionalGeneration"], "model_type": "qwen3_tts"}
    write(folder / "config.json", {**head, **values})
    sampling = {"do_sample": True, "top_k": 50, "top_p": 1.0, "temperature": 0.9}
    inner = {f"subtalker_{key.removeprefix('do_')}": value for key, value in sampling.items()}
    inner["subtalker_dosample"] = inner.pop("subtalker_sample")
    more = {"repetition_penalty": 1.05, "max_new_tokens": 64}
    write(folder / "generation_config.json", {**sampling, **inner, **more})
    return folder


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), "utf-8")


def write_tokenizer(folder: Path) -> dict[str, int]:
    """A byte-level BPE that merges the role words and, as the real one, two line feeds."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in kept]
    letters = {byte: chr(byte) for byte in kept}
    letters |= {byte: chr(256 + number) for number, byte in enumerate(moved)}
    vocabulary = {letters[byte]: byte for byte in range(256)}
    merges: dict[str, None] = {}
    for word in (*WHOLE, letters[10] * 2):
        for end in range(1, len(word)):
            merges[f"{word[:end]} {word[end]}"] = None
            vocabulary.setdefault(word[: end + 1], len(vocabulary))
    added = {token: len(vocabulary) + number for number, token in enumerate(SPECIALS)}
    write(folder / "vocab.json", vocabulary)
    text = "\n".join(["#version: 0.2", *merges, ""])
    (folder / "merges.txt").write_text(text, "utf-8")
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    decoder = {
        str(number): {"content": token, "special": True, **plain} for token, number in added.items()
    }
    facts = {
        "tokenizer_class": "Qwen2Tokenizer", "processor_class": "Qwen3TTSProcessor",
        "model_max_length": 131_072, "bos_token": None, "unk_token": None,
        "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "errors": "replace",
        "add_prefix_space": False, "split_special_tokens": False,
        "additional_special_tokens": list(SPECIALS[1:]), "added_tokens_decoder": decoder,
    }  # fmt: skip
    write(folder / "tokenizer_config.json", facts)
    return added


def model_values(added: dict[str, int]) -> dict[str, Any]:
    """The whole config.json: text 24, talker 16 and sub-talker 8 wide."""
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "rope_theta": 1_000_000}
    inner = {
        "vocab_size": CODES, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
        "head_dim": 4, "num_code_groups": GROUPS, "max_position_embeddings": 64,
        "pad_token_id": None, **heads,
    }  # fmt: skip
    control = ("pad", "bos", "think", "nothink", "think_bos", "think_eos")
    talker = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8,
        "text_hidden_size": 24, "text_vocab_size": max(added.values()) + 1,
        "vocab_size": CODES + CONTROL, "num_code_groups": GROUPS,
        "max_position_embeddings": 4096, "pad_token_id": None, **heads,
        "rope_scaling": {"interleaved": True, "mrope_section": [2, 1, 1], "rope_type": "default"},
        **{f"codec_{name}_id": CODES + number for number, name in enumerate(control)},
        "codec_eos_token_id": CODES + 7, "spk_id": {}, "spk_is_dialect": {},
        "codec_language_id": {
            "english": CODES + 10, "chinese": CODES + 11, "german": CODES + 12,
            "sichuan_dialect": CODES + 13,
        },
        "code_predictor_config": inner,
    }  # fmt: skip
    voice = {
        "mel_dim": 128, "enc_dim": 16, "enc_channels": [16, 16, 16, 16, 48],
        "enc_kernel_sizes": [5, 3, 3, 3, 1], "enc_dilations": [1, 2, 3, 4, 1],
        "enc_attention_channels": 8, "enc_res2net_scale": 4, "enc_se_channels": 8,
        "sample_rate": 24_000,
    }  # fmt: skip
    return {
        "talker_config": talker, "speaker_encoder_config": voice,
        "tokenizer_type": "qwen3_tts_tokenizer_12hz", "tts_model_size": "1b7",
        "tts_model_type": "base", "im_start_token_id": added["<|im_start|>"],
        "im_end_token_id": added["<|im_end|>"], "tts_pad_token_id": added["<tts_pad>"],
        "tts_bos_token_id": added["<tts_bos>"], "tts_eos_token_id": added["<tts_eos>"],
    }  # fmt: skip


def write_codec(folder: Path) -> None:
    """A 12 Hz codec of random weights."""
    from qwen_tts.core import Qwen3TTSTokenizerV2Config, Qwen3TTSTokenizerV2Model
    from transformers import EncodecFeatureExtractor

    small = {
        "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16,
        "max_position_embeddings": 512, "num_quantizers": GROUPS, "codebook_size": CODES,
    }  # fmt: skip
    encoder = {
        **small, "sampling_rate": 24_000, "frame_rate": 12.5, "audio_channels": 1,
        "num_filters": 2, "num_residual_layers": 1, "upsampling_ratios": [8, 6, 5, 4],
        "codebook_dim": 8, "vector_quantization_hidden_dimension": 8,
        "num_semantic_quantizers": 1, "upsample_groups": 16, "use_cache": False,
    }  # fmt: skip
    decoder = {
        **small, "codebook_dim": 16, "latent_dim": 16, "decoder_dim": 16,
        "upsample_rates": [8, 5, 4, 3], "upsampling_ratios": [2, 2],
    }  # fmt: skip
    config = Qwen3TTSTokenizerV2Config(
        encoder_config=encoder, decoder_config=decoder, encoder_valid_num_quantizers=GROUPS,
        input_sample_rate=24_000, output_sample_rate=24_000, encode_downsample_rate=1_920,
        decode_upsample_rate=1_920,
    )  # fmt: skip
    codec = Qwen3TTSTokenizerV2Model(config)
    fill(codec)
    loudly(codec)
    codec.save_pretrained(folder)
    EncodecFeatureExtractor(
        feature_size=1, sampling_rate=24_000, padding_value=0.0, padding_side="right",
        return_attention_mask=True,
    ).save_pretrained(folder)  # fmt: skip


def fill(codec: Any) -> None:
    """Put noise into a codec's codebooks: those of zeros would make all codes equal."""
    import torch

    with torch.no_grad():
        for name, tensor in [*codec.named_parameters(), *codec.named_buffers()]:
            if name.endswith(("embed_sum", "embedding_sum")):
                tensor.normal_()
            elif name.endswith("cluster_usage"):
                tensor.fill_(1.0)


def loudly(codec: Any) -> None:
    """Scale the decoder's last layer so that its noise can be heard."""
    import torch

    with torch.no_grad():
        codes = torch.arange(GROUPS * 8).view(1, 8, GROUPS) % CODES
        (sound,) = codec.decode(codes).audio_values
        last = [
            module for module in codec.decoder.modules() if isinstance(module, torch.nn.Conv1d)
        ][-1]
        for parameter in last.parameters():
            parameter.mul_(0.1 / sound.abs().max())
