"""From requests to sound: whose voice, which words, how long at most; how likely it was."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sheen_cli import Audio, Reference, Request, SheenError, say
from sheen_qwen3_tts import codec
from sheen_qwen3_tts.codec import FRAME, RATE
from sheen_qwen3_tts.generate import Wish, generate
from sheen_qwen3_tts.layout import VECTOR, Prompt, Tokens
from sheen_qwen3_tts.model import Speech
from sheen_qwen3_tts.sampling import Sampling, Warp

if TYPE_CHECKING:
    from sheen_qwen3_tts import Options

FEWEST, EACH = 50, 12  # frames that any text may take, and more for each of its tokens


@dataclass(frozen=True)
class Heard:
    """What a reference gives: its voice's vector, and in context its words and frames."""

    vector: Tensor
    words: Tokens = ()
    codes: Tensor | None = None


def speak(
    options: "Options", model: Speech, requests: Sequence[Request], trace: bool
) -> Iterator[Audio]:
    """One Audio a request; all are generated together, then decoded one by one."""
    model.eval()
    sounds = codec.load(model.base.folder)
    if any(request.instruct for request in requests) and (notice := deaf(model)):
        say(notice)
    references = {id(each.reference): each.reference for each in requests if each.reference}
    heard = {key: hear(model, sounds, each) for key, each in references.items()}
    wishes = [wish(model, request, heard.get(id(request.reference))) for request in requests]
    warp = Warp(options.temperature, options.top_k, options.top_p)
    sampling = Sampling(warp, warp, options.repetition_penalty)
    for spoken, request in zip(generate(model, wishes, sampling, trace), requests, strict=True):
        samples = np.zeros(0, np.float32)
        if len(spoken.codes):
            before = heard[id(request.reference)].codes if request.reference else None
            samples = codec.decode(sounds, spoken.codes, before)
        nll = {"talker": spoken.talker_nll, "subtalker": spoken.subtalker_nll}
        scores = {"talker": spoken.first, "subtalker": spoken.inner.flatten(0, 1)}
        stop, scores = "end" if spoken.ended else "length", scores if trace else {}
        yield Audio(samples, RATE, spoken.codes.numpy(), nll, stop, scores)


def hear(model: Speech, sounds: Any, reference: Reference) -> Heard:
    """Listen to a reference, once for all that is said in its voice."""
    vector = codec.vector(codec.speaker_encoder(model.base.folder), reference.audio)
    if not reference.in_context:
        return Heard(vector)
    assert reference.text is not None
    codes = codec.encode(sounds, reference.audio)
    return Heard(vector, model.base.said(reference.text), codes)


def deaf(model: Speech) -> str | None:
    """Why an instruction may go unheard, if the model was hardly taught to follow any."""
    kind, size = (model.base.config.get(f"tts_model_{name}") for name in ("type", "size"))
    if kind == "base":
        return "--instruct: Base models, and what was made of them, were hardly taught to follow it"
    return "--instruct: the 0.6B models were not taught to follow it" if size == "0b6" else None


def wish(model: Speech, request: Request, heard: Heard | None) -> Wish:
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
    if heard is None:
        speaker, vector = voice(model, request.speaker)
    else:
        speaker, vector = VECTOR, heard.vector
    reference = None
    if heard is not None and heard.codes is not None:
        reference = heard.words, tuple(map(tuple, heard.codes.tolist()))
    prompt = Prompt(
        words,
        speaker,
        language(model, request.language, speaker),
        model.base.instruction(request.instruct) if request.instruct else (),
        reference,
        heard is not None,
    )
    return Wish(prompt, vector, limit, request.seed, request.greedy)


def language(model: Speech, name: str | None, speaker: int | None) -> int | None:
    """The tag's id; None for auto. A voice of the base that has a dialect speaks it, unless another
    language is asked for. Raises SheenError for a language that the model lacks.
    """
    known, talker = model.base.languages, model.base.talker
    wanted = (name or "auto").strip().lower()
    found = model.base.language(wanted)
    if wanted != "auto" and found is None:
        raise SheenError(
            f"the model has no language '{name}'; it has auto, {', '.join(sorted(known))}"
        )
    named: dict[int | None, str] = {row: voice for voice, row in model.base.voices.items()}
    dialect = (talker.get("spk_is_dialect") or {}).get(named.get(speaker, ""))  # its name, or False
    return known[dialect] if dialect and found in (None, known.get("chinese")) else found


def voice(model: Speech, name: str | None) -> tuple[int | None, Tensor]:
    """The speaker's row of the prompt and its vector: of a voice that was taught, or of one that
    the base has. A model that makes up voices needs none. Raises SheenError where it is not clear
    whose.
    """
    nobody = torch.zeros(model.base.talker["hidden_size"])
    names = {name: number for number, name in enumerate(model.names)}
    wanted = name.strip().lower() if name else None
    if wanted is None and len(names) == 1:
        wanted = model.names[0]
    if wanted in names:
        return VECTOR, model.voices[names[wanted]].cpu()
    if wanted in model.base.voices:
        return model.base.voices[wanted], nobody
    known = ", ".join(sorted({*names, *model.base.voices})) or "none of its own"
    if wanted is not None:
        raise SheenError(f"the model has no voice '{wanted}'; it has {known}")
    if model.base.config.get("tts_model_type") == "voice_design":
        return None, nobody
    raise SheenError(f"whose voice? give --speaker (it has {known}) or --ref")
