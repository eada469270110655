"""Frames a CPU second of our generation loop, against the stock package's `generate`.

Usage: qwen3_synthesis.py [WIDTH] [FRAMES] [SENTENCES] [PRECISION], where WIDTH is `small` (real depth,
28 + 5 layers, 128 wide: the time goes into calls, as on a GPU) or `0.6B` (the real widths: 2.5 GB
and minutes), and PRECISION fp32 or bf16. Weights are random; both sides run the same modules on the
same prompts, on one thread. Whether they said the same tokens stands beside each ratio; bf16 rounds
otherwise wherever the order of a sum changes, so that equality is a matter of fp32 alone.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sheen_qwen3_tts import base, miniature, stock
from sheen_qwen3_tts.generate import Wish, generate
from sheen_qwen3_tts.layout import VECTOR, Prompt
from sheen_qwen3_tts.model import Speech, json_copy
from sheen_qwen3_tts.sampling import Sampling

WIDTHS = {  # hidden, MLP, heads, heads with keys, head, text; the sub-talker's are the first five
    "small": (128, 384, 4, 2, 32, 256),
    "0.6B": (1024, 3072, 16, 8, 128, 2048),
}
WORDS = "one two three four five six seven eight nine ten".split()


def models(width: str) -> tuple[Any, Speech]:
    """The stock model of real depth, and ours around its very modules."""
    hidden, mlp, heads, keys, head, text = WIDTHS[width]
    with tempfile.TemporaryDirectory() as folder:
        opened = base.read(miniature.build(Path(folder)))
    config = json_copy(opened.config)
    shape = {
        "hidden_size": hidden, "intermediate_size": mlp, "num_attention_heads": heads,
        "num_key_value_heads": keys, "head_dim": head,
    }  # fmt: skip
    codes, first = 2048, miniature.CODES
    talker = config["talker_config"]
    talker["code_predictor_config"] |= {**shape, "num_hidden_layers": 5, "vocab_size": codes}
    moved = {
        key: value + codes - first for key, value in talker.items()
        if key.startswith("codec_") and key.endswith("_id") and isinstance(value, int)
    }  # fmt: skip
    talker |= {**shape, **moved, "num_hidden_layers": 28, "text_hidden_size": text}
    talker["vocab_size"] = codes + miniature.CONTROL
    talker["rope_scaling"]["mrope_section"] = [head // 4, head // 8, head // 8]
    config["speaker_encoder_config"]["enc_dim"] = hidden
    stock.load()
    from transformers import logging

    logging.set_verbosity_error()
    from qwen_tts.core.models import Qwen3TTSConfig, Qwen3TTSForConditionalGeneration

    torch.manual_seed(0)
    theirs = Qwen3TTSForConditionalGeneration(Qwen3TTSConfig(**json_copy(config))).eval()
    ids = type(opened.ids).of(config, opened.ids.role)
    return theirs, Speech(replace(opened, config=config, ids=ids), theirs, {}).eval()


def theirs_says(theirs: Any, speech: Speech, texts: list[str], wishes: list[Wish]) -> list[Tensor]:
    """The stock package, given one sentence or several of one limit."""
    words = [
        torch.tensor([speech.base.tokens(f"{base.ROLE}{text}<|im_end|>\n{base.ROLE}")])
        for text in texts
    ]
    count = len(texts)
    voice = {
        "x_vector_only_mode": [True] * count, "icl_mode": [False] * count,
        "ref_spk_embedding": [wish.vector for wish in wishes], "ref_code": None,
    }  # fmt: skip
    torch.manual_seed(wishes[0].seed)
    sampled = not wishes[0].greedy
    codes, _ = theirs.generate(
        input_ids=words, voice_clone_prompt=voice, languages=["auto"] * count,
        non_streaming_mode=False, max_new_tokens=wishes[0].limit + 1, do_sample=sampled,
        subtalker_dosample=sampled, pad_token_id=speech.base.ids.eos,
    )  # fmt: skip
    return list(codes)


def timed(work: Callable[[], list[Tensor]]) -> tuple[list[Tensor], float]:
    """What it said, and frames a CPU second."""
    start = time.process_time()
    said = work()
    seconds = time.process_time() - start
    return said, sum(map(len, said)) / seconds


def same(one: list[Tensor], other: list[Tensor]) -> str:
    return "equal" if all(map(torch.equal, one, other)) else "NOT EQUAL"


def main(width: str, frames: int, count: int, precision: str) -> None:
    torch.set_num_threads(1)
    theirs, speech = models(width)
    if precision == "bf16":
        theirs.bfloat16()
    texts = [" ".join(WORDS[: 3 + number % 8]) for number in range(count)]
    torch.manual_seed(1)
    vector = torch.randn(WIDTHS[width][0]).to(speech.talker.codec_head.weight.dtype)
    print(f"{width}, {count} sentences of {frames // 2} to {frames} frames, {precision}, one thread")
    print(f"{'sampling':<10}{'who':<34}{'frames/CPU s':>13}{'ratio':>8}  tokens")
    for greedy in (True, False):
        wishes = [
            Wish(
                Prompt(speech.base.words(text), VECTOR, streaming=True), vector,
                frames - frames // 2 * number // max(1, count - 1), number, greedy,
            )
            for number, text in enumerate(texts)
        ]  # fmt: skip

        def alone(pairs: Any) -> list[Tensor]:
            return [code for text, wish in pairs for code in theirs_says(theirs, speech, [text], [wish])]  # fmt: skip

        def ours(wishes: list[Wish]) -> list[Tensor]:
            return [spoken.codes for spoken in generate(speech, wishes, Sampling())]

        short = [replace(wish, limit=3) for wish in wishes[:2]]
        alone(list(zip(texts, short, strict=False)))  # warm up both
        ours(short)
        name = "greedy" if greedy else "sampled"
        expected, anchor = timed(lambda: alone(list(zip(texts, wishes, strict=True))))
        report(name, "package, one by one", anchor, anchor, "")
        for who, work in {
            "ours, one by one": lambda: [code for wish in wishes for code in ours([wish])],
            "ours, together": lambda: ours(wishes),
        }.items():
            said, rate = timed(work)
            report(name, who, rate, anchor, same(said, expected))


def report(name: str, who: str, rate: float, anchor: float, tokens: str) -> None:
    print(f"{name:<10}{who:<34}{rate:>13.2f}{rate / anchor:>8.2f}  {tokens}", flush=True)


if __name__ == "__main__":
    width, frames, count, precision = (
        *sys.argv[1:], *("small", "24", "8", "fp32")[len(sys.argv) - 1 :],
    )  # fmt: skip
    main(width, int(frames), int(count), precision)
