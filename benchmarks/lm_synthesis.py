"""Frames a CPU second of our masked generation loop, against transformers' `generate` with the same
mask as a LogitsProcessor.

Usage: lm_synthesis.py [LAYERS] [FRAMES] [BATCH,BATCH...] [PRECISION]

Widths and vocabulary are those of Qwen3-0.6B with SNAC (163,959 rows, tied); its 28 LAYERS take
2.4 GB and minutes, fewer less. Weights are random, and hardly a speech ends before FRAMES. Both
sides run the same modules on the same prompts, on one thread; ours also returns the likelihood of
what it said, over the whole vocabulary. Whether they said the same tokens stands beside each ratio:
in bf16 they need not, since the order of a sum decides near ties; and sampled streams that are
spoken together share one generator in transformers, while each has its own in ours.
"""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    Qwen3Config,
    Qwen3ForCausalLM,
    RepetitionPenaltyLogitsProcessor,
)

from sheen_lm import layout
from sheen_lm.families import family
from sheen_lm.generate import Wish, generate
from sheen_lm.layout import Ids
from sheen_lm.model import CodesLM
from sheen_lm.sampling import Sampling

TEXT, ROWS = 151_669, 163_959  # tokens of Qwen3; with two specials and 12,288 codes
PROMPT = 40  # tokens of the longest prompt
SAMPLING = Sampling(0.6, 0, 0.95, 0.0, 1.1)


def model(layers: int, kind: torch.dtype) -> CodesLM:
    """Of real widths; the ids are where an extended tokenizer of Qwen3 has them."""
    config = Qwen3Config(
        vocab_size=ROWS, hidden_size=1024, intermediate_size=3072, num_hidden_layers=layers,
        num_attention_heads=16, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    lm = Qwen3ForCausalLM(config).to(kind).eval()
    convention = family("sheen")
    first = np.array([layer - 1 for layer in convention.codes.layers]) * 4096 + TEXT + 2
    roles = {"speech_start": TEXT, "speech_end": TEXT + 1}
    codes = first[:, None] + np.arange(4096)
    return CodesLM(lm, Ids(convention, None, roles, codes, 0))


class Mask(LogitsProcessor):
    """The same mask, in the form that transformers asks for."""

    def __init__(self, ids: Ids, start: int) -> None:
        self.start, self.barred = start, []
        for allowed in layout.allowed(ids):
            barred = torch.ones(ROWS, dtype=torch.bool)
            barred[torch.from_numpy(allowed)] = False
            self.barred.append(barred)
        self.at_first = self.barred[0].clone()
        self.at_first[ids.stop] = True

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        step = tokens.shape[1] - self.start
        barred = self.barred[step % len(self.barred)] if step else self.at_first
        return scores.masked_fill(barred, float("-inf"))


def package(model: CodesLM, wishes: Sequence[Wish]) -> list[np.ndarray]:
    """What transformers says, prompts padded at the left."""
    width = max(len(wish.prompt) for wish in wishes)
    prompts = torch.zeros(len(wishes), width, dtype=torch.long)
    for row, wish in enumerate(wishes):
        prompts[row, width - len(wish.prompt) :] = torch.from_numpy(wish.prompt)
    drawn: dict[str, Any] = {"do_sample": False}
    if not wishes[0].greedy:
        drawn = {"do_sample": True, "temperature": SAMPLING.temperature, "top_k": SAMPLING.top_k,
                 "top_p": SAMPLING.top_p}  # fmt: skip
    penalty = RepetitionPenaltyLogitsProcessor(SAMPLING.repetition_penalty, width)
    torch.manual_seed(wishes[0].seed)
    said = model.lm.generate(
        input_ids=prompts, attention_mask=(prompts != model.ids.pad).long(),
        pad_token_id=model.ids.pad, eos_token_id=model.ids.stop,
        max_new_tokens=wishes[0].limit * model.ids.places,
        logits_processor=LogitsProcessorList([penalty, Mask(model.ids, width)]), **drawn,
    )  # fmt: skip
    return [layout.read(row[width:], model.ids).codes for row in said.tolist()]


def ours(model: CodesLM, wishes: Sequence[Wish]) -> list[np.ndarray]:
    return [spoken.codes for spoken in generate(model, wishes, SAMPLING)]


def timed(
    work: Callable[[CodesLM, Sequence[Wish]], list[np.ndarray]], model: CodesLM,
    wishes: Sequence[Wish],
) -> tuple[list[np.ndarray], float]:  # fmt: skip
    """What it said, and frames a CPU second."""
    start = time.process_time()
    said = work(model, wishes)
    return said, sum(map(len, said)) / (time.process_time() - start)


def main(layers: int, frames: int, batches: Sequence[int], precision: str) -> None:
    torch.set_num_threads(1)
    built = model(layers, {"fp32": torch.float32, "bf16": torch.bfloat16}[precision])
    built.lm.get_output_embeddings().weight.data[built.ids.stop] = 0  # is never the likeliest
    generator = np.random.default_rng(0)
    print(f"{layers} layers, {frames} frames, {precision}, one thread")
    print(f"{'batch':<7}{'sampling':<10}{'who':<10}{'frames/CPU s':>13}{'ratio':>8}  tokens")
    for count in batches:
        prompts = [generator.integers(1, TEXT, PROMPT - number % 8) for number in range(count)]
        for greedy in (True, False):
            wishes = [Wish(each, frames, 1 + row, greedy) for row, each in enumerate(prompts)]
            for work in (package, ours):  # warm up
                work(built, [Wish(each.prompt, 1, 0, greedy) for each in wishes])
            expected, anchor = timed(package, built, wishes)
            said, rate = timed(ours, built, wishes)
            same = "equal" if all(map(np.array_equal, said, expected)) else "not equal"
            name = "greedy" if greedy else "sampled"
            print(f"{count:<7}{name:<10}{'generate':<10}{anchor:>13.2f}{1:>8.2f}")
            print(f"{count:<7}{name:<10}{'ours':<10}{rate:>13.2f}{rate / anchor:>8.2f}  {same}",
                  flush=True)  # fmt: skip


if __name__ == "__main__":
    given = sys.argv[1:]
    layers, frames, counts, precision = (*given[:4], *("4", "24", "1,8", "fp32")[len(given) :])
    main(int(layers), int(frames), [int(count) for count in counts.split(",")], precision)
