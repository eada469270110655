"""From text and codes to one sequence of tokens, and back, after a `Convention`.

A sequence is `head | codes | end | what follows the end`. `head` builds what stands before the
first code for training and synthesis alike; `build` adds codes and says what each token must
predict; `read` takes spoken tokens apart again. Everything here is pure, and every id comes from
the checkpoint's own tokenizer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sheen_cli import SheenError
from sheen_lm.convention import Codes, Convention, normalizer, parts

IGNORE = -100
TERM = "tokens"  # the one loss term


@dataclass(frozen=True)
class Ids:
    """A convention resolved through one tokenizer.

    `roles` are the ids of the special tokens, "bos" and "eos" among them where the sequence has
    them. `codes` (places, size) int64 holds the id of each code at each place of a frame, -1 beyond
    a smaller codebook's end. `pad` fills up batches and is never the end.
    """

    convention: Convention
    tokenizer: Any  # of transformers
    roles: Mapping[str, int]
    codes: np.ndarray
    pad: int

    @property
    def stop(self) -> int:
        return self.roles["speech_end"]

    @property
    def places(self) -> int:
        return len(self.codes)

    @cached_property
    def code_at(self) -> list[dict[int, int]]:
        """The inverse of `codes`: for each place id -> code."""
        return [
            {int(token): code for code, token in enumerate(row) if token >= 0} for row in self.codes
        ]

    @cached_property
    def controls(self) -> set[int]:
        """The ids that text must not hold, since they mean something else: the convention's, those
        that its pattern numbers below the codes among them, and the tokenizer's special ones but
        for that of unknown words.
        """
        written, vocabulary = self.convention, self.tokenizer.get_vocab()
        names, pattern = list(written.added), written.codes.token or ""
        if "{number}" in pattern:
            names += [pattern.format(codebook=0, layer=0, code=0, number=number)
                      for number in range(written.codes.number)]  # fmt: skip
        added = self.tokenizer.added_tokens_decoder.items()
        own = {token for token, about in added if about.special} | set(
            self.tokenizer.all_special_ids
        )
        own -= {self.tokenizer.unk_token_id}
        named = (vocabulary[name] for name in names if name in vocabulary)
        return own.union(named, self.roles.values(), *self.code_at)


@dataclass(frozen=True)
class Prompt:
    """What is said, and how. `reference` is the text and the codes (frames, codebooks) of another
    speech to go on from.
    """

    text: str
    speaker: str | None = None
    instruct: str | None = None
    reference: tuple[str, np.ndarray] | None = None


@dataclass(frozen=True)
class Read:
    """Spoken tokens taken apart: the codes (frames, codebooks) of all whole frames, how many tokens
    were left over of a last frame, how many stood where they mean nothing, and whether the speech
    ended.
    """

    codes: np.ndarray
    partial: int
    misplaced: int
    ended: bool


def resolve(convention: Convention, tokenizer: Any) -> Ids:
    """The convention's ids in this tokenizer. Raises SheenError where it lacks a token, or where
    one id would mean two things.
    """
    vocabulary = tokenizer.get_vocab()
    roles = {name: _role(name, token, vocabulary) for name, token in convention.specials.items()}
    for name in ("bos", "eos"):
        if f"{{{name}}}" in parts(convention.sequence):
            roles[name] = _own(name, tokenizer)
    codes = _codes(convention.codes, vocabulary)
    _distinct(roles, codes)
    if convention.codes.token is None and int(codes[codes >= 0].min()) < tokenizer.vocab_size:
        raise SheenError(
            f"codes.first: ids from {convention.codes.first} on are the tokenizer's text, which has"
            f" {tokenizer.vocab_size} tokens; give the id of the first code"
        )
    pads = (roles.get("pad"), tokenizer.pad_token_id, tokenizer.eos_token_id)
    pad = next((pad for pad in pads if pad not in (None, roles["speech_end"])), None)
    if pad is None:
        raise SheenError("the tokenizer has no pad token but the end of speech; name one in"
                         " specials: pad")  # fmt: skip
    return Ids(convention, tokenizer, roles, codes, pad)


def token_names(codes: Codes, codebook: int) -> list[str]:
    """The tokens of one codebook's codes. Needs `codes.token`."""
    assert codes.token is not None
    layer = codes.layers[codebook]
    start = codes.number + offset(codes, codebook)
    return [
        codes.token.format(codebook=codebook, layer=layer, code=code, number=start + code)
        for code in range(codes.sizes[codebook])
    ]


def offset(codes: Codes, codebook: int) -> int:
    """What is added to a codebook's codes to number them."""
    place = {
        "none": 0,
        "layer": codes.layers[codebook] - 1,
        "place": codes.frame.index(codebook),
    }[codes.offset]
    return place * codes.stride


def head(prompt: Prompt, ids: Ids) -> np.ndarray:
    """The ids (n,) of everything before the first code that is to be spoken, those of a reference's
    codes included. Raises SheenError for text that cannot be spoken.
    """
    return np.concatenate([_lead(prompt, ids), _heard(prompt, ids)])


def build(prompt: Prompt, codes: np.ndarray, ids: Ids) -> tuple[np.ndarray, np.ndarray]:
    """A whole sequence: its tokens (n,), and the targets (n,), where target i is what token i
    predicts, IGNORE where nothing counts; nothing is shifted later.

    The codes and the end token always count, the rest as the convention's `loss` has it: what
    follows the end with "all" alone, and of what stands before the codes nothing where a reference
    is gone on from. Raises SheenError for codes that the convention has not.
    """
    lead, heard, spoken = _lead(prompt, ids), _heard(prompt, ids), flatten(codes, ids)
    sequence = parts(ids.convention.sequence)
    tail = _encode(sequence[sequence.index("{codes}") + 2 :], "", ids)
    tokens = np.concatenate([lead, heard, spoken, [ids.stop], tail]).astype(np.int64)
    targets = np.append(tokens[1:], IGNORE)
    start = len(lead) + len(heard) - 1  # what predicts the first code
    loss = ids.convention.loss
    if loss != "all":
        targets[start + len(spoken) + 1 :] = IGNORE
    if prompt.reference is not None or loss == "codes":
        targets[:start] = IGNORE
    elif loss == "marker":
        targets[: max(start - 1, 0)] = IGNORE
    return tokens, targets


def cut(prompt: Prompt, ids: Ids, longest: int) -> int | None:
    """How many tokens of a sequence are at most `longest` and end behind a whole frame; None where
    the prompt leaves no room for one.
    """
    start = len(head(prompt, ids))
    frames = (longest - start) // ids.places
    return start + frames * ids.places if frames > 0 else None


def flatten(codes: np.ndarray, ids: Ids) -> np.ndarray:
    """Codes (frames, codebooks) -> ids (frames x places,), repeated frames left out where the
    convention says so.
    """
    expected = ids.convention.codes
    known = verified(codes, expected.sizes, expected.layers)
    ordered = dedup(known, ids.convention)[:, list(expected.frame)]
    return np.asarray(ids.codes[np.arange(ids.places), ordered].reshape(-1))


def verified(
    codes: Any, sizes: Sequence[int], layers: Sequence[int], where: str = "audio codes"
) -> np.ndarray:
    """The codes (frames, codebooks), whole numbers of which column i is below `sizes[i]`, as int64.
    Raises SheenError that names `where`, the codebook and the first code that does not fit.
    """
    books = len(sizes)
    try:
        array = np.asarray(codes)
    except ValueError:
        raise SheenError(f"{where}: not all frames have {books} codes") from None
    if array.size == 0:
        return np.zeros((0, books), np.int64)
    if array.ndim != 2 or array.shape[1] != books:
        raise SheenError(
            f"{where}: {books} codebooks are needed, frames x codebooks, but the codes are "
            f"{' x '.join(map(str, array.shape))}; they are another codec's"
        )
    if array.dtype.kind not in "iu":
        raise SheenError(f"{where}: codes are whole numbers, not {array.dtype}")
    wrong = (array < 0) | (array >= np.asarray(sizes))
    if wrong.any():
        frame, book = map(int, np.argwhere(wrong)[0])
        raise SheenError(
            f"{where}: codebook {book} (layer {layers[book]}) holds {array[frame, book]} in frame "
            f"{frame}, but its codes are 0 to {sizes[book] - 1}; they are another codec's, or "
            f"damaged"
        )
    return array.astype(np.int64)


def check_codec(convention: Convention, name: str, sizes: Sequence[int],
                layers: Sequence[int]) -> None:  # fmt: skip
    """Raises SheenError where a codec's codebooks are not those that the convention is for."""
    codes = convention.codes
    for what, ours, theirs in (("sizes", codes.sizes, sizes), ("layers", codes.layers, layers)):
        if tuple(ours) != tuple(theirs):
            raise SheenError(
                f"the convention is for codebooks with {what} {list(ours)}, the codec {name} has"
                f" {list(theirs)}; choose another codec or family, for the family books set"
                f" model.codebooks={len(sizes)} model.codebook_size={sizes[0]}, or set"
                f" model.convention.codes.{what}"
            )


def dedup(codes: np.ndarray, convention: Convention) -> np.ndarray:
    """Codes (frames, codebooks) without the frames that repeat the one before, in whole ("frame")
    or in the code that is spoken first ("first"). Loses time: silence and held sounds get shorter.
    """
    if convention.dedup == "off" or len(codes) == 0:
        return codes
    seen = codes if convention.dedup == "frame" else codes[:, [convention.codes.frame[0]]]
    return np.asarray(codes[np.append(True, (seen[1:] != seen[:-1]).any(1))])


def read(tokens: Sequence[int] | np.ndarray, ids: Ids) -> Read:
    """What `tokens`, those after the head, say; reads up to the end token.

    A token that does not fit its place takes the frame that it breaks with it, unless it begins
    the next one.
    """
    frames: list[list[int]] = []
    open_frame: list[int] = []
    misplaced, ended = 0, False
    for token in map(int, tokens):
        if token == ids.stop:
            ended = True
            break
        if token not in ids.code_at[len(open_frame)]:
            misplaced += len(open_frame)
            open_frame = []
            if token not in ids.code_at[0]:
                misplaced += 1
                continue
        open_frame.append(ids.code_at[len(open_frame)][token])
        if len(open_frame) == ids.places:
            frames.append(open_frame)
            open_frame = []
    ordered = np.array(frames, np.int64).reshape(-1, ids.places)
    codes = np.empty_like(ordered)
    codes[:, list(ids.convention.codes.frame)] = ordered
    return Read(codes, len(open_frame), misplaced, ended)


def allowed(ids: Ids) -> list[np.ndarray]:
    """For each place of a frame the ids that may stand there, in the order of the codes; at place 0
    the end token comes last.
    """
    tokens = [row[row >= 0] for row in ids.codes]
    return [np.append(tokens[0], ids.stop), *tokens[1:]]


def _lead(prompt: Prompt, ids: Ids) -> np.ndarray:
    """The ids before the first code of all."""
    convention = ids.convention
    normalize = normalizer(convention.normalizer)
    given = [prompt.text] if prompt.reference is None else [prompt.reference[0], prompt.text]
    said = [normalize(text.strip() if convention.strip else text) for text in given]
    if not all(text.strip() for text in said):
        raise SheenError(f"the {'reference' if prompt.text.strip() else 'row'}'s text is empty")
    text = " ".join(said)
    if prompt.speaker is not None:
        text = convention.speaker.format(speaker=prompt.speaker) + text
    if prompt.instruct is not None:
        text = convention.instruct.format(instruct=prompt.instruct) + text
    if bad := ids.controls.intersection(_tokenize(text, ids)):
        token = ids.tokenizer.convert_ids_to_tokens(min(bad))
        raise SheenError(f"the text holds {token}, which is a token of the sequence; take it out")
    sequence = parts(convention.sequence)
    return _encode(sequence[: sequence.index("{codes}")], text, ids)


def _heard(prompt: Prompt, ids: Ids) -> np.ndarray:
    """The ids of a reference's codes."""
    if prompt.reference is None:
        return np.zeros(0, np.int64)
    return flatten(prompt.reference[1], ids)


def _encode(sequence: Sequence[str], text: str, ids: Ids) -> np.ndarray:
    """The ids of some parts. Literal parts and the text that meet are tokenized as one."""
    tokens: list[int] = []
    words = ""
    for part in sequence:
        if part == "{text}":
            words += text
        elif part[0] != "{":
            words += part
        else:
            tokens += [*_tokenize(words, ids), ids.roles[part[1:-1]]]
            words = ""
    return np.array([*tokens, *_tokenize(words, ids)], np.int64)


def _tokenize(text: str, ids: Ids) -> list[int]:
    if not text:
        return []
    return list(ids.tokenizer(text, add_special_tokens=False)["input_ids"])


def _role(name: str, token: str | int, vocabulary: Mapping[str, int]) -> int:
    if isinstance(token, int):
        return token
    if token not in vocabulary:
        raise SheenError(
            f"specials: the tokenizer has no {token} ({name}); add it, or name the token that this"
            " base has"
        )
    return vocabulary[token]


def _own(name: str, tokenizer: Any) -> int:
    found = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id}[name]
    if found is None:
        raise SheenError(f"sequence: {{{name}}} is used, but the tokenizer has no {name} token")
    return int(found)


def _codes(codes: Codes, vocabulary: Mapping[str, int]) -> np.ndarray:
    """The ids (places, size) of a frame's codes, -1 beyond a smaller codebook's end."""
    table = np.full((len(codes.frame), max(codes.sizes)), -1, np.int64)
    missing: dict[str, None] = {}
    for place, book in enumerate(codes.frame):
        size = codes.sizes[book]
        if codes.token is None:
            assert codes.first is not None
            table[place, :size] = codes.first + offset(codes, book) + np.arange(size)
            continue
        names = token_names(codes, book)
        missing.update(dict.fromkeys(name for name in names if name not in vocabulary))
        table[place, :size] = [vocabulary.get(name, -1) for name in names]
    if missing:
        name = next(iter(missing))
        raise SheenError(
            f"codes: the tokenizer has no {name}"
            + (f", nor {len(missing) - 1} more of the codes' tokens" if len(missing) > 1 else "")
            + "; add them, or set codes.token to the pattern of this base"
        )
    return table


def _distinct(roles: Mapping[str, int], codes: np.ndarray) -> None:
    """Raises SheenError where a role's id is a code, or another role's is the end."""
    used = set(codes.reshape(-1).tolist())
    for name, token in roles.items():
        if token in used:
            raise SheenError(f"specials: {name} has id {token}, which is a code's as well")
        if token == roles["speech_end"] and name not in ("speech_end", "eos"):
            raise SheenError(f"specials: {name} and speech_end have the same id, {token}")
