"""From requests to sound: whose voice, which words, how long at most; how likely it was."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sheen_cli import Audio, Request, SheenError
from sheen_qwen3_tts import codec
from sheen_qwen3_tts.codec import FRAME, RATE
from sheen_qwen3_tts.generate import Wish, generate
from sheen_qwen3_tts.layout import VECTOR, Prompt, Tokens
from sheen_qwen3_tts.model import Speech
from sheen_qwen3_tts.sampling import Sampling, Warp

if TYPE_CHECKING:
    from sheen_qwen3_tts import Options

FEWEST, EACH = 50, 12  # frames that any text may take, and more for each of its tokens


def speak(
    options: "Options", model: Speech, requests: Sequence[Request], trace: bool
) -> Iterator[Audio]:
    """One Audio a request; all are generated together, then decoded one by one."""
    model.eval()
    sounds = codec.load(model.base.folder)
    heard = [heard_of(sounds, request) for request in requests]
    wishes = [wish(model, *each) for each in zip(requests, heard, strict=True)]
    warp = Warp(options.temperature, options.top_k, options.top_p)
    sampling = Sampling(warp, warp, options.repetition_penalty)
    for spoken, before in zip(generate(model, wishes, sampling, trace), heard, strict=True):
        samples = np.zeros(0, np.float32)
        if len(spoken.codes):
            samples = codec.decode(sounds, spoken.codes, before)
        nll = {"talker": spoken.talker_nll, "subtalker": spoken.subtalker_nll}
        scores = {"talker": spoken.first, "subtalker": spoken.inner.flatten(0, 1)}
        stop, scores = "end" if spoken.ended else "length", scores if trace else {}
        yield Audio(samples, RATE, spoken.codes.numpy(), nll, stop, scores)


def heard_of(sounds: Any, request: Request) -> Tensor | None:
    """The codes of a reference that the speech goes on from."""
    if request.reference is None or not request.reference.in_context:
        return None
    return codec.encode(sounds, request.reference.audio)


def wish(model: Speech, request: Request, heard: Tensor | None) -> Wish:
    """What to generate. Raises SheenError for a text, voice or language that cannot be spoken.

    A cloned voice is laid out streaming and a taught one is not, as the stock package does by
    default.
    """
    words = model.base.words(request.text)
    if not words:
        raise SheenError(f"the text {request.text!r} holds nothing to say")
    limit = FEWEST + EACH * len(words)
    if request.max_seconds is not None:
        limit = min(limit, max(1, int(request.max_seconds * RATE / FRAME)))
    speaker, vector = voice(model, request)
    prompt = Prompt(
        words,
        speaker,
        language(model, request.language),
        model.base.instruction(request.instruct) if request.instruct else (),
        None if heard is None else reference(model, request, heard),
        request.reference is not None,
    )
    return Wish(prompt, vector, limit, request.seed, request.greedy)


def reference(model: Speech, request: Request, heard: Tensor) -> tuple[Tokens, tuple[Tokens, ...]]:
    assert request.reference is not None and request.reference.text is not None
    return model.base.said(request.reference.text), tuple(map(tuple, heard.tolist()))


def language(model: Speech, name: str | None) -> int | None:
    """The tag's id; None for auto. Raises SheenError for a language that the model lacks."""
    if name is None or name.lower() == "auto":
        return None
    found = model.base.language(name)
    if found is None:
        known = ", ".join(sorted(model.base.languages))
        raise SheenError(f"the model has no language '{name}'; it has auto, {known}")
    return found


def voice(model: Speech, request: Request) -> tuple[int, Tensor]:
    """The speaker's row of the prompt and its vector: of the reference, of a voice that was taught,
    or of one that the base has. Raises SheenError where it is not clear whose.
    """
    nobody = torch.zeros(model.base.talker["hidden_size"])
    if request.reference is not None:
        encoder = codec.speaker_encoder(model.base.folder)
        return VECTOR, codec.vector(encoder, request.reference.audio)
    names = {name: number for number, name in enumerate(model.names)}
    wanted = request.speaker.strip().lower() if request.speaker else None
    if wanted is None and len(names) == 1:
        wanted = model.names[0]
    if wanted in names:
        return VECTOR, model.voices[names[wanted]].cpu()
    if wanted in model.base.voices:
        return model.base.voices[wanted], nobody
    known = ", ".join(sorted({*names, *model.base.voices})) or "none of its own"
    if wanted is None:
        raise SheenError(f"whose voice? give --speaker (it has {known}) or --ref")
    raise SheenError(f"the model has no voice '{wanted}'; it has {known}")

