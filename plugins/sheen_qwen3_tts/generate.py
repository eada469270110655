"""The generation loop: many prompts at once, each with a seed, a limit and rules of its own.

What it says is what the stock package's `generate` says, token for token in float32; the tests
compare them. A speech that is over leaves the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from sheen_lm.layers import BLOCK, Stack, Turns, linear_of
from sheen_qwen3_tts.layout import NONE, Prompt, Rows, prefix
from sheen_qwen3_tts.model import Speech
from sheen_qwen3_tts.sampling import Dice, Sampling, choose

CONTROL = 1024  # ids at the end of the codec table that are no audio
SHORTEST = 2  # frames before which a speech may not end


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
    """Codes (t, groups); nats that they cost the raw model, those of code 0 with the end's; whether
    it ended by itself. If asked for, the raw logits (t + 1, vocabulary) of code 0 and of what
    follows the last frame, and (t, groups - 1, codes) of the others.
    """

    codes: Tensor
    talker_nll: float
    subtalker_nll: float
    ended: bool
    first: Tensor
    inner: Tensor


@dataclass
class Told:
    """What one speech has come to: a tensor a frame in each list."""

    codes: list[Tensor] = field(default_factory=list)  # (groups,)
    talker: list[Tensor] = field(default_factory=list)  # () nats of code 0
    subtalker: list[Tensor] = field(default_factory=list)  # (groups - 1,) nats of the others
    first: list[Tensor] = field(default_factory=list)
    inner: list[Tensor] = field(default_factory=list)

    def spoken(self, ended: bool, groups: int) -> Spoken:
        def stacked(tensors: list[Tensor], *shape: int) -> Tensor:
            return torch.stack(tensors).cpu() if tensors else torch.zeros(0, *shape)

        return Spoken(
            stacked(self.codes, groups).long(),
            float(stacked(self.talker).double().sum()),
            float(stacked(self.subtalker).double().sum()),
            ended,
            stacked(self.first),
            stacked(self.inner, groups - 1, 1),
        )


@torch.inference_mode()
def generate(
    speech: Speech, wishes: Sequence[Wish], sampling: Sampling, trace: bool = False
) -> list[Spoken]:
    """Speak all wishes together; with `trace`, keep the logits."""
    ids, device = speech.base.ids, speech.device
    batch = Batch(speech, wishes)
    told = [Told() for _ in wishes]
    ended = [False] * len(wishes)
    dice = Dice(wishes, (batch.vocabulary, *(speech.base.codes,) * (ids.groups - 1)))
    step = 0
    while True:
        hidden = batch.talk(step)
        logits = speech.talker.codec_head(hidden).float()
        noise = dice.throw(batch.alive, device)
        chosen = choose(batch.permitted(logits, sampling, step), sampling.talker, noise[0])
        for row, each in zip(batch.alive, logits if trace else (), strict=False):
            told[row].first.append(each)
        # the one thing that is asked back from the device
        ends = [number for number, code in enumerate(chosen.tolist()) if code == ids.eos]
        over = {
            number
            for number, row in enumerate(batch.alive)
            if number in ends or step == wishes[row].limit
        }
        for number in over:
            row = batch.alive[number]
            told[row].talker.append(nats(logits[number], ids.eos))
            ended[row] = number in ends
        if len(over) == len(batch.alive):
            break
        if over:
            stay = torch.tensor([n for n in range(len(batch.alive)) if n not in over]).to(device)
            batch.keep(stay)
            hidden, logits, chosen = hidden[stay], logits[stay], chosen[stay]
            noise = [None if each is None else each[stay] for each in noise]
        codes, scores = batch.fill(hidden, chosen, sampling, noise[1:])
        outer, inner = nats(logits, chosen), nats(scores, codes[:, 1:])
        for number, row in enumerate(batch.alive):
            told[row].codes.append(codes[number])
            told[row].talker.append(outer[number])
            told[row].subtalker.append(inner[number])
            if trace:
                told[row].inner.append(scores[number])
        step += 1
    return [each.spoken(end, ids.groups) for each, end in zip(told, ended, strict=True)]


class Batch:
    """The speeches that are not over yet, `alive` by their numbers, and all that is kept of them
    between frames.
    """

    def __init__(self, speech: Speech, wishes: Sequence[Wish]) -> None:
        self.speech, self.alive = speech, list(range(len(wishes)))
        ids, device = speech.base.ids, speech.device
        starts = [prefix(wish.prompt, ids) for wish in wishes]
        vectors = torch.stack([wish.vector for wish in wishes]).to(device)
        predictor = speech.talker.code_predictor
        self.vocabulary: int = speech.talker.codec_head.weight.shape[0]
        self.inputs, self.seen = left_padded(speech, starts, vectors)
        self.lengths = self.seen.sum(-1, keepdim=True)
        self.words = later(speech, starts)
        self.said = torch.zeros(len(wishes), self.vocabulary, dtype=torch.bool, device=device)
        codes = torch.arange(self.vocabulary, device=device)
        self.never = (codes >= self.vocabulary - CONTROL) & (codes != ids.eos)
        self.at_first = self.never | (codes == ids.eos)
        self.talker = Stack(speech.talker.model, len(wishes), self.inputs.shape[1] + BLOCK)
        self.predictor = Stack(predictor.model, len(wishes), ids.groups)
        self.heads = [linear_of(head, len(wishes)) for head in predictor.lm_head]
        self.tables = [speech.talker.model.codec_embedding, *predictor.get_input_embeddings()]
        turns = self.predictor.turns(torch.arange(ids.groups, device=device)[None])
        self.turns: list[Turns] = [
            (turns[0][:, part], turns[1][:, part])
            for part in (slice(0, 2), *(slice(at, at + 1) for at in range(2, ids.groups)))
        ]
        self.triangle = torch.ones(2, 2, dtype=torch.bool, device=device).tril()[None, None]

    def talk(self, step: int) -> Tensor:
        """The talker's state (alive, hidden) that predicts the frame of this step."""
        if step == 0:
            count = self.seen.shape[1]
            positions = (self.seen.cumsum(-1) - 1).clamp(min=0)
            causal = torch.ones(count, count, dtype=torch.bool, device=self.seen.device).tril()
            self_ = torch.eye(count, dtype=torch.bool, device=self.seen.device)
            mask = causal & self.seen[:, None, None] | self_  # padding sees itself: no NaN
        else:
            positions, mask = self.lengths + (step - 1), pad(self.seen, (0, step), value=True)
            mask = mask[:, None, None]
        states = self.talker(self.inputs, self.talker.turns(positions), mask)
        return states[:, -1]

    def permitted(self, logits: Tensor, sampling: Sampling, step: int) -> Tensor:
        """Scores (alive, vocabulary) of what may come next: a code, or from the third frame on the
        end; codes that were said are less likely.
        """
        penalty = sampling.repetition_penalty
        if penalty != 1:
            weaker = torch.where(logits < 0, logits * penalty, logits / penalty)
            logits = torch.where(self.said, weaker, logits)
        return logits.masked_fill(self.at_first if step < SHORTEST else self.never, float("-inf"))

    def fill(
        self, hidden: Tensor, first: Tensor, sampling: Sampling, noise: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        """A frame's codes (alive, groups), given its first and the state (alive, hidden) that
        predicts it, and the logits (alive, groups - 1, codes) of the others. The frame is the next
        input.
        """
        predictor = self.speech.talker.code_predictor
        self.predictor.filled = 0
        codes, scores = [first], []
        embedded = [self.tables[0](first)]
        inputs = torch.stack([hidden, embedded[0]], 1)
        mask: Tensor | None = self.triangle
        for number, head in enumerate(self.heads):
            states = self.predictor(
                predictor.small_to_mtp_projection(inputs), self.turns[number], mask
            )
            scores.append(head(states[:, -1]).float())
            codes.append(choose(scores[-1], sampling.subtalker, noise[number]))
            embedded.append(self.tables[number + 1](codes[-1]))
            inputs, mask = embedded[-1][:, None], None
        step = self.talker.filled - self.seen.shape[1]
        words = self.words[:, min(step, self.words.shape[1] - 1)]
        self.inputs = (torch.stack(embedded, 1).sum(1) + words)[:, None]
        self.said.scatter_(1, first[:, None], True)
        return torch.stack(codes, 1), torch.stack(scores, 1)

    def keep(self, rows: Tensor) -> None:
        """Let all others go; a batch costs what it holds."""
        self.alive = [self.alive[row] for row in rows.tolist()]
        self.seen, self.lengths, self.words, self.said = (
            each[rows] for each in (self.seen, self.lengths, self.words, self.said)
        )
        self.talker.keep(rows)
        self.predictor.keep(rows)


def nats(logits: Tensor, chosen: Tensor | int) -> Tensor:
    """Negative log-likelihood of ids (...) under logits (..., n)."""
    ids = torch.as_tensor(chosen, device=logits.device)[..., None]
    return logits.logsumexp(-1) - logits.gather(-1, ids)[..., 0]


def left_padded(speech: Speech, starts: Sequence[Rows], vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs (B, n, hidden) of prompts that end together, and where they are no padding (B, n)."""
    width = max(len(rows.text) for rows in starts)
    text = torch.full((len(starts), width), NONE)
    codec = torch.full((len(starts), width, speech.base.ids.groups), NONE)
    seen = torch.zeros(len(starts), width, dtype=torch.bool)
    for row, rows in enumerate(starts):
        at = width - len(rows.text)
        text[row, at:] = torch.from_numpy(rows.text)
        codec[row, at:] = torch.from_numpy(rows.codec)
        seen[row, at:] = True
    device, weight = speech.device, speech.talker.codec_head.weight
    inputs = speech.embed(text.to(device), codec.to(device), vectors)
    return inputs.to(weight.dtype), seen.to(device)


def later(speech: Speech, starts: Sequence[Rows]) -> Tensor:
    """What the text adds to each frame (B, n, hidden); the last column is that of all frames to
    come.
    """
    longest = max(len(rows.later) for rows in starts)
    ids = torch.full((len(starts), longest + 1), speech.base.ids.tts_pad)
    for row, rows in enumerate(starts):
        ids[row, : len(rows.later)] = torch.tensor(rows.later, dtype=torch.long)
    talker = speech.talker
    words: Tensor = talker.text_projection(talker.model.text_embedding(ids.to(speech.device)))
    return words
