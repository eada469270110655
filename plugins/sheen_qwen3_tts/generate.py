"""The generation loop: many prompts at once, each with a seed, a limit and rules of its own.

What it samples is what the stock package's `generate` samples, number for number in float32; the
tests compare them. Every request draws from its own generator, so neighbours change nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from sheen_qwen3_tts.layout import NONE, Prompt, Rows, prefix
from sheen_qwen3_tts.model import Speech

CONTROL = 1024  # ids at the end of the codec table that are no audio
SHORTEST = 2  # frames before which a speech may not end


@dataclass(frozen=True)
class Sampling:
    """As in generation_config.json; the second half is the sub-talker's."""

    temperature: float = 0.9
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.05
    subtalker_temperature: float = 0.9
    subtalker_top_k: int = 50
    subtalker_top_p: float = 1.0


@dataclass(frozen=True)
class Wish:
    """One speech to generate: `vector` (hidden,) of its voice, at most `limit` frames."""

    prompt: Prompt
    vector: Tensor
    limit: int
    seed: int = 0
    greedy: bool = False


@dataclass(frozen=True)
class Spoken:
    """Codes (t, groups); the raw logits (t + 1, vocabulary) of code 0 and of what follows the last
    frame, and (t, groups - 1, codes) of the others; whether it ended by itself.
    """

    codes: Tensor
    first: Tensor
    inner: Tensor
    ended: bool


@torch.inference_mode()
def generate(speech: Speech, wishes: Sequence[Wish], sampling: Sampling) -> list[Spoken]:
    """Speak all wishes together."""
    ids, device, count = speech.base.ids, speech.device, len(wishes)
    starts = [prefix(wish.prompt, ids) for wish in wishes]
    vectors = torch.stack([wish.vector for wish in wishes]).to(device)
    inputs, mask = left_padded(speech, starts, vectors)
    randoms = [torch.Generator().manual_seed(wish.seed) for wish in wishes]
    cache = DynamicCache()
    frames: list[Tensor] = []
    firsts: list[Tensor] = []
    inners: list[Tensor] = []
    ends = [-1] * count  # frames of each speech, once it is over
    ended = [False] * count
    while True:
        step = len(frames)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -inputs.shape[1] :]
        hidden = speech.talker.model(
            inputs_embeds=inputs, attention_mask=mask, position_ids=positions,
            past_key_values=cache, use_cache=True,
        ).last_hidden_state[:, -1:]  # fmt: skip
        logits = speech.talker.codec_head(hidden[:, 0]).float()
        firsts.append(logits)
        allowed = permitted(logits, frames, ids.eos, sampling)
        chosen = choose(
            allowed, wishes, randoms, sampling.temperature, sampling.top_k, sampling.top_p
        )
        for row, wish in enumerate(wishes):
            if ends[row] < 0 and (chosen[row] == ids.eos or step == wish.limit):
                ends[row], ended[row] = step, step < wish.limit or bool(chosen[row] == ids.eos)
        if min(ends) >= 0:
            break
        chosen = chosen.where(chosen < speech.base.codes, 0)  # of speeches that are over
        frame, inner = inside(speech, hidden, chosen, wishes, randoms, sampling)
        frames.append(frame)
        inners.append(inner)
        words = torch.tensor([word(start, step, ids.tts_pad) for start in starts], device=device)
        inputs = speech.embed(words[:, None], frame[:, None], vectors)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return [
        taken(row, ends[row], ended[row], frames, firsts, inners, ids.groups)
        for row in range(count)
    ]


def taken(
    row: int,
    end: int,
    ended: bool,
    frames: list[Tensor],
    firsts: list[Tensor],
    inners: list[Tensor],
    groups: int,
) -> Spoken:
    """One speech out of the batch."""
    first = torch.stack([step[row] for step in firsts[: end + 1]]).cpu()
    if not end:
        return Spoken(
            torch.zeros(0, groups, dtype=torch.long), first, torch.zeros(0, groups - 1, 1), ended
        )
    codes = torch.stack([step[row] for step in frames[:end]]).cpu()
    return Spoken(codes, first, torch.stack([step[row] for step in inners[:end]]).cpu(), ended)


def word(start: Rows, step: int, pad: int) -> int:
    return start.later[step] if step < len(start.later) else pad


def left_padded(speech: Speech, starts: Sequence[Rows], vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs (B, n, hidden) and mask (B, n) of prompts that end together."""
    width = max(len(rows.text) for rows in starts)
    groups = speech.base.ids.groups
    text = torch.full((len(starts), width), NONE)
    codec = torch.full((len(starts), width, groups), NONE)
    mask = torch.zeros(len(starts), width, dtype=torch.long)
    for row, rows in enumerate(starts):
        at = width - len(rows.text)
        text[row, at:] = torch.from_numpy(rows.text)
        codec[row, at:] = torch.from_numpy(rows.codec)
        mask[row, at:] = 1
    device = speech.device
    return speech.embed(text.to(device), codec.to(device), vectors), mask.to(device)


def permitted(logits: Tensor, frames: list[Tensor], eos: int, sampling: Sampling) -> Tensor:
    """Scores (B, vocabulary) of what may come next: a code, or from the third frame on the end."""
    scores = logits.clone()
    if frames and sampling.repetition_penalty != 1:
        said = torch.stack([frame[:, 0] for frame in frames], 1)
        old = scores.gather(1, said)
        weaker = torch.where(
            old < 0, old * sampling.repetition_penalty, old / sampling.repetition_penalty
        )
        scores.scatter_(1, said, weaker)
    end = scores[:, eos].clone()
    scores[:, -CONTROL:] = float("-inf")
    if len(frames) >= SHORTEST:
        scores[:, eos] = end
    return scores


def choose(
    scores: Tensor,
    wishes: Sequence[Wish],
    randoms: Sequence[torch.Generator],
    temperature: float,
    top_k: int,
    top_p: float,
) -> Tensor:
    """One id a row (B,): the likeliest for a greedy wish, else drawn by its own generator."""
    chosen = scores.argmax(-1)
    if all(wish.greedy for wish in wishes):
        return chosen
    warped = scores / temperature
    if top_k:
        least = warped.topk(min(top_k, warped.shape[-1]), -1).values[:, -1:]
        warped = warped.masked_fill(warped < least, float("-inf"))
    if top_p < 1:
        ordered, order = warped.sort(-1)
        drop = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
        drop[:, -1] = False
        warped = warped.masked_fill(drop.scatter(1, order, drop), float("-inf"))
    chances = warped.softmax(-1).cpu()
    drawn = [
        chosen[row].cpu()
        if wish.greedy
        else torch.multinomial(chances[row : row + 1], 1, generator=randoms[row])[0, 0]
        for row, wish in enumerate(wishes)
    ]
    return torch.stack(drawn).to(scores.device)


def inside(
    speech: Speech,
    hidden: Tensor,
    first: Tensor,
    wishes: Sequence[Wish],
    randoms: Sequence[torch.Generator],
    sampling: Sampling,
) -> tuple[Tensor, Tensor]:
    """A frame's codes (B, groups), given its first and the hidden state (B, 1, hidden) of the row
    before it, and the logits (B, groups - 1, codes) of the others.
    """
    predictor = speech.talker.code_predictor
    tables = [speech.talker.model.codec_embedding, *predictor.get_input_embeddings()]
    cache = DynamicCache()
    codes, scores = [first], []
    inputs = torch.cat([hidden, tables[0](first)[:, None]], 1)
    for head, table in zip(predictor.lm_head, tables[1:], strict=True):
        states = predictor.model(
            inputs_embeds=predictor.small_to_mtp_projection(inputs), past_key_values=cache,
            use_cache=True,
        ).last_hidden_state  # fmt: skip
        scores.append(head(states[:, -1]).float())
        codes.append(
            choose(
                scores[-1],
                wishes,
                randoms,
                sampling.subtalker_temperature,
                sampling.subtalker_top_k,
                sampling.subtalker_top_p,
            )
        )
        inputs = table(codes[-1])[:, None]
    return torch.stack(codes, 1), torch.stack(scores, 1)
