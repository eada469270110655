"""The token layout of Qwen3-TTS: two channels, text and codec, whose vectors are added at each row.

A prompt is what stands before the first frame: instruct, role, language tag, speaker, text, and in
in-context cloning the reference. `prefix` builds it for training and for synthesis alike; `build`
adds frames and says what each row must predict; `parse` is their inverse. Everything here is pure,
and every id comes from the checkpoint's own files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NONE = -1  # nothing in this channel
VECTOR = -2  # the codec channel holds the row's speaker vector
IGNORE = -100

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Ids:
    """Control ids. `role` are the three tokens of `<|im_start|>assistant` and a line feed."""

    role: Tokens
    tts_pad: int
    tts_bos: int
    tts_eos: int
    pad: int
    bos: int
    eos: int
    think: int
    nothink: int
    think_bos: int
    think_eos: int
    groups: int  # codebooks

    @classmethod
    def of(cls, config: Mapping[str, Any], role: Sequence[int]) -> "Ids":
        """Those of a checkpoint's config.json."""
        talker = config["talker_config"]
        codec = ("pad", "bos", "think", "nothink", "think_bos", "think_eos")
        return cls(
            role=tuple(role),
            **{f"tts_{name}": config[f"tts_{name}_token_id"] for name in ("pad", "bos", "eos")},
            **{name: talker[f"codec_{name}_id"] for name in codec},
            eos=talker["codec_eos_token_id"],
            groups=talker["num_code_groups"],
        )


@dataclass(frozen=True)
class Prompt:
    """What is said, and how. `speaker` is a row of the codec table, VECTOR, or None for no speaker;
    `language` the id of its tag, or None for auto; `reference` the tokens and frames (n, groups) of
    another speech to go on from; `instruct` all tokens of the instruction's block.
    """

    text: Tokens
    speaker: int | None = None
    language: int | None = None
    instruct: Tokens = ()
    reference: tuple[Tokens, tuple[Tokens, ...]] | None = None
    streaming: bool = False


@dataclass(frozen=True)
class Rows:
    """`text` (n,) and `codec` (n, groups) ids, NONE where there is nothing; a control id stands in
    the codec's first column. `later` are the text ids of the frames to come, tts_pad after them.
    """

    text: np.ndarray
    codec: np.ndarray
    later: Tokens


def prefix(prompt: Prompt, ids: Ids) -> Rows:
    """The rows before the first frame; the last of them predicts it."""
    rows: list[tuple[int, Tokens]] = [(token, ()) for token in (*prompt.instruct, *ids.role)]
    tag = (
        (ids.nothink, ids.think_bos, ids.think_eos)
        if prompt.language is None
        else (ids.think, ids.think_bos, prompt.language, ids.think_eos)
    )
    rows += [(ids.tts_pad, (control,)) for control in tag]
    if prompt.speaker is not None:
        rows.append((ids.tts_pad, (prompt.speaker,)))
    rows.append((ids.tts_bos, (ids.pad,)))
    said, heard = prompt.reference or ((), ())
    words: Tokens = (*said, *prompt.text, ids.tts_eos)
    sounds: list[Tokens] = [(ids.bos,), *heard]
    if prompt.streaming:  # a word a frame, side by side
        ahead, later = words[: len(sounds)], words[len(sounds) :]
        ahead += (ids.tts_pad,) * (len(sounds) - len(ahead))
        rows += list(zip(ahead, sounds, strict=True))
    else:  # all words, then all frames
        rows += [(word, (ids.pad,)) for word in words]
        rows += [(ids.tts_pad, sound) for sound in sounds]
        later = ()
    codec = np.full((len(rows), ids.groups), NONE)
    for number, (_, sound) in enumerate(rows):
        codec[number, : len(sound)] = sound
    return Rows(np.array([token for token, _ in rows]), codec, later)


def build(prompt: Prompt, frames: np.ndarray, ids: Ids) -> tuple[Rows, np.ndarray]:
    """The rows of a speech of `frames` (t, groups), and the targets (n, groups) of each: the codes
    of the frame that follows, at the end `eos` in the first column, IGNORE elsewhere.
    """
    start = prefix(prompt, ids)
    count = len(frames)
    words = (*start.later[:count], *(ids.tts_pad,) * (count - len(start.later)))
    rows = Rows(
        np.concatenate([start.text, np.array(words, start.text.dtype)]),
        np.concatenate([start.codec, frames]),
        start.later[count:],
    )
    targets = np.full(rows.codec.shape, IGNORE)
    first = len(start.text) - 1  # what predicts the first frame
    targets[first : first + count] = frames
    targets[first + count, 0] = ids.eos
    return rows, targets


def parse(rows: Rows, ids: Ids, spoken: int = 0) -> tuple[Prompt, np.ndarray]:
    """The prompt and the last `spoken` frames of rows that `build` or `prefix` made.

    The reference's words cannot be told from the target's, since nothing divides them: all of them
    are returned as text, and the reference as frames alone. Raises ValueError for other rows.
    """
    text, codec = rows.text.tolist(), rows.codec.tolist()
    at = 0
    while tuple(text[at : at + 3]) != ids.role or codec[at][0] != NONE:
        at += 1
        if at + 3 > len(text):
            raise ValueError("the rows hold no role")
    instruct, at = tuple(text[:at]), at + 3
    named = codec[at][0] == ids.think
    language = codec[at + 2][0] if named else None
    at += 4 if named else 3
    speaker = None
    if text[at] == ids.tts_pad:
        speaker, at = codec[at][0], at + 1
    if (text[at], codec[at][0]) != (ids.tts_bos, ids.pad):
        raise ValueError(f"row {at} is not tts_bos over codec_pad")
    body = at + 1
    start = next(i for i in range(body, len(text)) if codec[i][0] == ids.bos)
    streaming = start == body
    words = [*text[start:], *rows.later] if streaming else text[body:start]
    if ids.tts_eos in words:
        words = words[: words.index(ids.tts_eos)]
    sounds = codec[start + 1 :]
    heard = tuple(map(tuple, sounds[: len(sounds) - spoken]))
    reference = ((), heard) if heard else None
    prompt = Prompt(tuple(words), speaker, language, instruct, reference, streaming)
    return prompt, np.array(sounds[len(sounds) - spoken :]).reshape(-1, ids.groups)
