"""The generation loop: many prompts at once, each with a seed and a limit of its own.

At each place of a frame only that place's ids may be said, and the end only between frames, so that
whatever a model says can be decoded. The head's rows for other ids are not computed while speaking;
what the codes cost the raw model, with all rows, is computed afterwards from the states that the
loop kept, many at a time. What is said is what transformers' `generate` says under the same mask,
token for token in float32; the tests compare them. A speech that is over leaves the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from sheen_lm import layout
from sheen_lm.layers import BLOCK
from sheen_lm.layout import IGNORE, Ids
from sheen_lm.loss import Head, computed_in, entropies
from sheen_lm.model import CodesLM
from sheen_lm.sampling import Dice, Sampling, choose, weaker
from sheen_lm.stack import decoder

PIECE = 256  # states whose logits over the whole vocabulary exist at once
DENSE = 2  # a span of ids is computed as one where it is at most so many times what may be said


@dataclass(frozen=True)
class Wish:
    """One speech to generate: the ids (n,) before its first code, and at most `limit` frames.

    Where the loss counts more than codes and the end, `asked` (n - 1,) is what the prompt's ids but
    the last predict, IGNORE where nothing counts, and `after` are the ids that follow the end.
    """

    prompt: np.ndarray
    limit: int
    seed: int = 0
    greedy: bool = False
    asked: np.ndarray | None = None
    after: tuple[int, ...] = ()

    def targets(self) -> list[int]:
        """What counts before the codes."""
        return [] if self.asked is None else self.asked[self.asked != IGNORE].tolist()


@dataclass(frozen=True)
class Spoken:
    """Codes (frames, codebooks), and whether the model ended the speech ("end") or the limit did
    ("length"); the nats that `loss` has for them and an end; the raw logits (targets, vocabulary)
    behind that, if asked for; how many tokens made no whole frame; whether the model would rather
    have said nothing at all.
    """

    codes: np.ndarray
    stop: str
    nll: float
    logits: Tensor | None
    trimmed: int
    mute: bool


def wish(prompt: layout.Prompt, ids: Ids, limit: int, seed: int, greedy: bool) -> Wish:
    """To speak as training has it: what counts in the loss counts here. Raises SheenError for text
    that cannot be spoken.
    """
    tokens, targets = layout.build(prompt, np.zeros((0, ids.places), np.int64), ids)
    head = layout.head(prompt, ids)  # `tokens` are these, the end and what follows it
    counted = int((targets[len(head) :] != IGNORE).sum())
    after = tokens[len(head) + 1 :][:counted].tolist()
    return Wish(head, limit, seed, greedy, targets[: len(head) - 1], tuple(after))


@dataclass
class Told:
    """What one speech has come to: the states (hidden,) that predict what counts. Once it is over,
    the ids (steps,) that were said, and those of its tail that are still to be fed.
    """

    states: list[Tensor]
    said: Tensor | None = None
    rest: list[int] = field(default_factory=list)
    stop: str = "length"
    mute: bool = False


@torch.inference_mode()
def generate(
    model: CodesLM, wishes: Sequence[Wish], sampling: Sampling, trace: bool = False
) -> list[Spoken]:
    """Speak all wishes together; with `trace`, keep the logits."""
    if not wishes:
        return []
    ids, batch, dice = model.ids, Batch(model, wishes), Dice(wishes, len(model.output_table))
    states = batch.feed(batch.prompts)
    told = [Told(counted(mine, wish)) for mine, wish in zip(states, wishes, strict=True)]
    choices = [Choice.of(model, each, computed_in(states)) for each in layout.allowed(ids)]
    for each, mute in zip(told, choices[0].ends(states[:, -1]), strict=True):
        each.mute = mute
    step = 0
    while batch.alive:
        place, states = step % ids.places, states[:, -1]
        for row, state in zip(batch.alive, states, strict=True):
            told[row].states.append(state)
        chosen = choices[place].draw(states, batch, dice, sampling, first=step == 0)
        if place == 0:  # the one place of a frame where something is asked back from the device
            for number, token in enumerate(chosen.tolist()):
                row, ends = batch.alive[number], token == ids.stop
                if told[row].said is None and (ends or step == wishes[row].limit * ids.places):
                    told[row].said, told[row].rest = batch.said[number], tail(wishes[row], ids)
                    told[row].stop = "end" if ends else "length"
        states = batch.go_on(chosen, told)
        step += 1
    return judged(model, wishes, told, trace)


class Batch:
    """The speeches that are not over yet, `alive` by their numbers, and all that is kept of them
    between tokens: where there is no padding (alive, positions), what was `said` (alive, steps).
    """

    def __init__(self, model: CodesLM, wishes: Sequence[Wish]) -> None:
        self.model, self.alive = model, list(range(len(wishes)))
        lengths = [len(wish.prompt) for wish in wishes]
        width, device = max(lengths), model.device
        prompts = torch.full((len(wishes), width), model.ids.pad)
        for row, wish in enumerate(wishes):
            prompts[row, width - lengths[row] :] = torch.from_numpy(wish.prompt)
        self.prompts = prompts.to(device)
        self.seen = torch.arange(width) >= width - torch.tensor(lengths)[:, None]
        self.seen = self.seen.to(device)
        self.said = torch.zeros(len(wishes), 0, dtype=torch.long, device=device)
        self.decoder = decoder(model.lm.base_model, len(wishes), width + BLOCK)

    def feed(self, tokens: Tensor) -> Tensor:
        """The states (alive, n, hidden) after ids (alive, n), the last of those that are seen."""
        positions = (self.seen.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        return self.decoder(self.model.embed(tokens), positions, self.seen)

    def go_on(self, chosen: Tensor, told: Sequence[Told]) -> Tensor:
        """Feed the ids (alive,) that were chosen, or what is left of a speech's tail. A speech of
        which all is predicted leaves, since a batch costs what it holds.
        """
        stay = []
        for number, row in enumerate(self.alive):
            if told[row].said is not None:
                if len(told[row].rest) == 1:
                    continue
                chosen[number] = told[row].rest.pop(0)
            stay.append(number)
        if len(stay) < len(self.alive):
            self.alive = [self.alive[number] for number in stay]
            rows = torch.tensor(stay, dtype=torch.long, device=chosen.device)
            self.seen, self.said, chosen = self.seen[rows], self.said[rows], chosen[rows]
            self.decoder.keep(rows)
        if not stay:
            return chosen[:, None, None]
        self.said = torch.cat([self.said, chosen[:, None]], 1)
        self.seen = pad(self.seen, (0, 1), value=True)
        return self.feed(chosen[:, None])


@dataclass(frozen=True)
class Choice:
    """What may be said at one place of a frame: `ids` (n,), rising, the head's rows for them
    (n, hidden), and which of them may not be said after all (n,), or not as the first of a speech.
    """

    ids: Tensor
    rows: Tensor
    never: Tensor
    at_first: Tensor
    first: int
    span: int  # from the first id to the last

    @classmethod
    def of(cls, model: CodesLM, allowed: np.ndarray, kind: torch.dtype) -> "Choice":
        """Ids that nearly follow one another are computed with those between them, whose rows of
        the head need not be copied then.
        """
        span = np.arange(allowed.min(), allowed.max() + 1)
        ids = span if len(span) <= DENSE * len(allowed) else np.unique(allowed)
        head = model.head(model.runs(ids))
        parts = [head.weights[run.weight][run.start : run.stop] for run in head.runs]
        rows = parts[0] if len(parts) == 1 else torch.cat(parts)
        never = torch.from_numpy(~np.isin(ids, allowed)).to(rows.device)
        found = torch.from_numpy(ids).to(rows.device)
        at_first = never | (found == model.ids.stop)
        return cls(found, rows.detach().to(kind), never, at_first, int(ids[0]), len(span))

    def ends(self, states: Tensor) -> list[bool]:
        """Of the states (alive, hidden), which would rather end the speech than go on."""
        scores = linear(states, self.rows).float().masked_fill(self.never, float("-inf"))
        found: list[bool] = (self.at_first & ~self.never)[scores.argmax(-1)].tolist()
        return found

    def draw(
        self, states: Tensor, batch: Batch, dice: Dice, sampling: Sampling, first: bool
    ) -> Tensor:
        """The ids (alive,) that come next, given the states (alive, hidden) that predict them."""
        scores = linear(states, self.rows).float()
        if sampling.repetition_penalty != 1:
            said = batch.said[:, -sampling.window :].contiguous()
            columns = torch.searchsorted(self.ids, said).clamp(max=len(self.ids) - 1)
            columns = columns.where(self.ids[columns] == said, len(self.ids))
            scores = weaker(scores, columns, sampling.repetition_penalty)
        scores = scores.masked_fill(self.at_first if first else self.never, float("-inf"))
        noise = dice.throw(batch.alive, self.first, self.span)
        if noise is not None:
            noise = noise if len(self.ids) == self.span else noise[:, self.ids.cpu() - self.first]
            noise = noise.to(scores.device, non_blocking=True)
        return self.ids[choose(scores, sampling, noise)]


def counted(states: Tensor, wish: Wish) -> list[Tensor]:
    """Of the states (n, hidden) of a prompt, padded at the left, those that predict what counts."""
    if wish.asked is None:
        return []
    where = np.flatnonzero(wish.asked != IGNORE) + len(states) - len(wish.prompt)
    return list(states[torch.from_numpy(where)])


def tail(wish: Wish, ids: Ids) -> list[int]:
    """What is predicted after the codes."""
    return [ids.stop, *wish.after]


def judged(
    model: CodesLM, wishes: Sequence[Wish], told: Sequence[Told], trace: bool
) -> list[Spoken]:
    """Codes out of what was said, and what they cost by the loss itself."""
    said = [[] if each.said is None else each.said.tolist() for each in told]
    targets = [
        [*wish.targets(), *tokens, *tail(wish, model.ids)]
        for wish, tokens in zip(wishes, said, strict=True)
    ]
    states = torch.stack([state for each in told for state in each.states])
    flat = torch.tensor([token for each in targets for token in each], device=model.device)
    head = model.head()
    head = Head(tuple(weight.detach() for weight in head.weights), head.runs)  # no gradient
    pieces = [slice(at, at + PIECE) for at in range(0, len(flat), PIECE)]
    scored = [entropies(states[piece], flat[piece], head, trace) for piece in pieces]
    lengths = [len(each) for each in targets]
    nats = torch.cat([each.each for each in scored]).cpu().double().split_with_sizes(lengths)
    traced = [each.logits.cpu() for each in scored if each.logits is not None]
    logits = torch.cat(traced).split_with_sizes(lengths) if trace else [None] * len(told)
    spoken = []
    for tokens, each, nll, scores in zip(said, told, nats, logits, strict=True):
        read = layout.read(tokens, model.ids)
        trimmed = read.partial + read.misplaced
        spoken.append(Spoken(read.codes, each.stop, float(nll.sum()), scores, trimmed, each.mute))
    return spoken
