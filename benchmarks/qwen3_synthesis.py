"""Frames a CPU second of our generation loop, against the stock package's `generate`.

Usage: qwen3_synthesis.py [WIDTH] [FRAMES] [SENTENCES] [PRECISION] [SHORTEST]

WIDTH is `small` (real depth, 28 + 5 layers, 128 wide: the time goes into calls, as on a GPU) or
`0.6B` (the real widths: 2.5 GB and minutes); the sentences are of SHORTEST, by default half of
FRAMES, to FRAMES; PRECISION is fp32 or bf16. Weights are random. Both sides run the same modules on
the same prompts, on one thread. Whether they said the same tokens stands beside each ratio; bf16
rounds otherwise wherever the order of a sum changes, so that equality is a matter of fp32 alone.
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
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


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


def theirs_says(theirs: Any, speech: Speech, text: str, wish: Wish) -> list[Tensor]:
    words = torch.tensor([speech.base.tokens(f"{base.ROLE}{text}<|im_end|>\n{base.ROLE}")])
    voice = {
        "x_vector_only_mode": [True], "icl_mode": [False], "ref_code": None,
        "ref_spk_embedding": [wish.vector],
    }  # fmt: skip
    torch.manual_seed(wish.seed)
    codes, _ = theirs.generate(
        input_ids=[words], voice_clone_prompt=voice, languages=["auto"], non_streaming_mode=False,
        max_new_tokens=wish.limit + 1, do_sample=not wish.greedy,
        subtalker_dosample=not wish.greedy,
    )  # fmt: skip
    return list(codes)


def main(width: str, frames: int, count: int, precision: str, shortest: int) -> None:
    torch.set_num_threads(1)
    theirs, speech = models(width)
    if precision == "bf16":
        theirs.bfloat16()
    texts = [" ".join(WORDS[: 3 + number % 8]) for number in range(count)]
    torch.manual_seed(1)
    vector = torch.randn(WIDTHS[width][0]).to(speech.talker.codec_head.weight.dtype)
    print(f"{width}, {count} sentences of {shortest} to {frames} frames, {precision}, one thread")
    print(f"{'sampling':<10}{'who':<22}{'frames/CPU s':>13}{'ratio':>8}  tokens")
    for greedy in (True, False):
        wishes = [
            Wish(
                Prompt(speech.base.words(text), VECTOR, streaming=True), vector,
                frames - (frames - shortest) * number // max(1, count - 1), number, greedy,
            )
            for number, text in enumerate(texts)
        ]  # fmt: skip
        compare(theirs, speech, texts, wishes, "greedy" if greedy else "sampled")


def compare(theirs: Any, speech: Speech, texts: list[str], wishes: list[Wish], name: str) -> None:
    def package(wishes: list[Wish]) -> list[Tensor]:
        pairs = zip(texts, wishes, strict=False)
        return [codes for text, wish in pairs for codes in theirs_says(theirs, speech, text, wish)]

    def ours(wishes: list[Wish]) -> list[Tensor]:
        return [spoken.codes for spoken in generate(speech, wishes, Sampling())]

    def one_by_one(wishes: list[Wish]) -> list[Tensor]:
        return [codes for wish in wishes for codes in ours([wish])]

    for work in (package, ours):  # warm up
        work([replace(wish, limit=3) for wish in wishes[:2]])
    expected, anchor = timed(package, wishes)
    print(f"{name:<10}{'package, one by one':<22}{anchor:>13.2f}{1:>8.2f}", flush=True)
    for who, work in (("ours, one by one", one_by_one), ("ours, together", ours)):
        said, rate = timed(work, wishes)
        same = "equal" if all(map(torch.equal, said, expected)) else "not equal"
        print(f"{name:<10}{who:<22}{rate:>13.2f}{rate / anchor:>8.2f}  {same}", flush=True)


def timed(
    work: Callable[[list[Wish]], list[Tensor]], wishes: list[Wish]
) -> tuple[list[Tensor], float]:
    """What it said, and frames a CPU second."""
    start = time.process_time()
    said = work(wishes)
    seconds = time.process_time() - start
    return said, sum(map(len, said)) / seconds


if __name__ == "__main__":
    given = sys.argv[1:]
    width, frames, count, precision = (*given[:4], *("small", "24", "8", "fp32")[len(given) :])
    shortest = int(given[4]) if len(given) > 4 else int(frames) // 2
    main(width, int(frames), int(count), precision, shortest)
