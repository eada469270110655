"""From requests to sound: which words, after which recording, how long at most; how likely."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from sheen_cli import Audio, Reference, Request, SheenError, warn
from sheen_lm.generate import Spoken, Wish, generate, wish
from sheen_lm.layout import TERM, Prompt
from sheen_lm.model import CodesLM
from sheen_lm.sampling import Sampling

if TYPE_CHECKING:
    from sheen_lm.codecs import Codec

SPARE, EACH = 4.0, 0.2  # seconds that any text may take, and more for each byte of it in UTF-8
TIMES, SLOWEST = 3.0, 1.0  # or so many times a reference's seconds for each byte; at most so many

Heard = tuple[str, np.ndarray]  # a reference's text and codes (frames, codebooks)


class Options(Protocol):
    """What is read of a recipe's `model:`; see `Sampling`."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    repetition_window: int


def speak(
    options: Options, model: CodesLM, codec: "Codec", requests: Sequence[Request],
    trace: bool = False,
) -> list[Audio]:  # fmt: skip
    """One Audio a request; all are generated together, then decoded one by one. Raises SheenError
    for a request that the model cannot follow.
    """
    model.eval()
    references = {id(each.reference): each.reference for each in requests if each.reference}
    heard = {key: hear(codec, reference) for key, reference in references.items()}
    befores = [heard.get(id(each.reference)) for each in requests]
    wishes = [
        asked(model, codec, each, before) for each, before in zip(requests, befores, strict=True)
    ]
    sampling = Sampling(
        options.temperature, options.top_k, options.top_p, options.min_p,
        options.repetition_penalty, options.repetition_window,
    )  # fmt: skip
    for doubt in doubts(model, requests):
        warn(doubt)
    spoken = generate(model, wishes, sampling, trace)
    for request, each in zip(requests, spoken, strict=True):
        judge(request, each)
    return [audio(codec, each, before) for each, before in zip(spoken, befores, strict=True)]


def doubts(model: CodesLM, requests: Sequence[Request]) -> list[str]:
    """Of speakers that are asked for, or not, what a model of these rows makes doubtful."""
    if model.learnt is None or not model.ids.convention.speaker:
        return []
    said = [model.learnt.doubt(each.speaker) for each in requests if each.reference is None]
    return list(dict.fromkeys(each for each in said if each))


def hear(codec: "Codec", reference: Reference) -> Heard:
    """A reference's words and codes, once for all that goes on from it. Raises SheenError where its
    voice alone is wanted.
    """
    if not reference.in_context or not reference.text:
        raise SheenError(
            "--ref: this model takes no voice from a recording alone, it goes on from the"
            " recording's speech: add --icl and --ref-text"
        )
    return reference.text, codec.encode(reference.audio)


def asked(model: CodesLM, codec: "Codec", request: Request, heard: Heard | None) -> Wish:
    """What to generate. Raises SheenError for a text or instruction that cannot be spoken, or for
    which the model has no room.
    """
    if not request.text.strip():
        raise SheenError(f"the text {request.text!r} holds nothing to say")
    if request.instruct and not model.ids.convention.instruct:
        raise SheenError("--instruct: prompts of this family hold no instruction")
    prompt = Prompt(request.text, request.speaker, request.instruct or None, heard)
    seconds = longest(request.text, heard, codec.frame_rate)
    if request.max_seconds is not None:
        seconds = min(seconds, request.max_seconds)
    limit = max(1, int(seconds * codec.frame_rate))
    found = wish(prompt, model.ids, limit, request.seed, request.greedy)
    return fitted(found, model)


def longest(text: str, heard: Heard | None, frame_rate: float) -> float:
    """The seconds that a text may take: many times what people need, or by the pace of the
    recording that is gone on from, so that a model that never ends is stopped.
    """
    each = EACH
    if heard is not None:
        each = min(SLOWEST, TIMES * len(heard[1]) / frame_rate / len(heard[0].encode()))
    return SPARE + each * len(text.encode())


def fitted(found: Wish, model: CodesLM) -> Wish:
    """As long as the model has positions for. Raises SheenError where it has none for a frame."""
    positions = getattr(model.lm.config, "max_position_embeddings", None)
    if positions is None:
        return found
    room = (positions - len(found.prompt) - 1 - len(found.after)) // model.ids.places
    if room < 1:
        raise SheenError(
            f"the text, with a reference's text and codes, takes {len(found.prompt)} tokens of the"
            f" {positions} that the model holds, and leaves no room for speech; make it shorter"
        )
    return replace(found, limit=min(found.limit, room))


def judge(request: Request, spoken: Spoken) -> None:
    """Say if something had to be left out. Raises SheenError for what is no speech at all."""
    if math.isnan(spoken.nll):
        raise SheenError(
            f"{request.text!r}: the model's scores are no numbers: its weights are broken, or"
            " training has diverged; take an earlier checkpoint"
        )
    if spoken.mute:
        warn(
            f"{request.text!r}: the model would have ended the speech before it began; what is "
            f"spoken instead may be no speech"
        )
    if spoken.trimmed:
        warn(f"{request.text!r}: {spoken.trimmed} tokens made no whole frame and are left out")


def audio(codec: "Codec", spoken: Spoken, heard: Heard | None) -> Audio:
    """The speech alone; a reference is decoded before it, so that it begins as it goes on."""
    samples = np.zeros(0, np.float32)
    if len(spoken.codes):
        before = spoken.codes[:0] if heard is None else heard[1]
        whole = codec.decode(np.concatenate([before, spoken.codes]))
        samples = whole[len(before) * codec.samples :]
    logits = {} if spoken.logits is None else {TERM: spoken.logits}
    return Audio(samples, codec.rate, spoken.codes, {TERM: spoken.nll}, spoken.stop, logits)
