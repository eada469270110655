"""Conventions as data: how a family of models writes text and codec tokens into one sequence.

Two checkpoints understand each other where these agree. Ids are resolved through the checkpoint's
own tokenizer (see `layout`), since equal names may have different ids: families add them in
different orders.
"""

import re
from collections.abc import Callable
from functools import cache
from importlib import import_module
from string import Formatter
from typing import Literal, cast

from pydantic import NonNegativeInt, PositiveInt, model_validator

from sheen_cli import Section

# what a special token is for; `speech_end` ends the speech, `pad` fills up batches
ROLES = (
    "text_start", "text_end", "speech_start", "speech_end", "human_start", "human_end",
    "ai_start", "ai_end", "pad",
)  # fmt: skip
PARTS = (*ROLES, "bos", "eos", "text", "codes")  # what a sequence may be made of


class Codes(Section):
    """Which token is which code.

    A token's text is `token` with {codebook}, {layer}, {code} or {number} filled in: `codebook` is
    the column of "audio_codes", counted from 0, `layer` the codec's layer that it belongs to,
    counted from 1, and `number` counts all code tokens, from `number`. Without `token` codes have
    ids alone, from `first` on.
    """

    token: str | None = None
    first: NonNegativeInt | None = None
    number: NonNegativeInt = 0
    # what a code is added to: nothing, `stride` times its layer's or its place's number in the
    # frame; both are counted from 0
    offset: Literal["none", "layer", "place"] = "place"
    stride: PositiveInt = 4096
    sizes: tuple[PositiveInt, ...]  # of the codebooks, the columns of "audio_codes"
    layers: tuple[PositiveInt, ...]  # the codec's layer of each codebook, counted from 1
    frame: tuple[NonNegativeInt, ...]  # the codebook of each place of a frame's tokens, in order

    @model_validator(mode="after")
    def _fits(self) -> "Codes":
        if self.token is None and self.first is None:
            raise ValueError("codes need a token pattern, or the id of the first")
        if self.token is not None:
            names = fields(self.token)
            if unknown := names - {"codebook", "layer", "code", "number"}:
                raise ValueError(f"token: {{{min(unknown)}}} stands for nothing")
            if not names & {"code", "number"}:
                raise ValueError("token: {code} or {number} tells codes apart; neither is in it")
        if len(self.layers) != len(self.sizes):
            raise ValueError(f"{len(self.sizes)} sizes but {len(self.layers)} layers")
        if sorted(self.frame) != list(range(len(self.sizes))):
            raise ValueError(f"frame must name each of the {len(self.sizes)} codebooks once")
        if self.offset != "none" and max(self.sizes) > self.stride:
            raise ValueError(f"stride {self.stride} is less than a codebook's {max(self.sizes)}")
        return self


class Convention(Section):
    """How one family lays a sequence out.

    `sequence` is made of parts in braces and literal text, and holds {text}, then {codes}. {bos}
    and {eos} are the tokenizer's own. `speaker` and `instruct` are put before the text, the latter
    first, where a row has one; empty, they leave it out.
    """

    specials: dict[str, str | NonNegativeInt]  # role -> the token, or its id
    codes: Codes
    sequence: str  # "{text}{speech_start}{codes}{speech_end}"
    speaker: str = "{speaker}: "
    instruct: str = ""
    strip: bool = True  # white space around the text
    normalizer: str = "none"  # of texts, in training and speaking; see `normalizer`
    # the first position whose loss counts: all of them, those after the part before the codes, or
    # that part's last token as well
    loss: Literal["all", "codes", "marker"] = "codes"
    dedup: Literal["off", "first", "frame"] = "off"  # leave out frames that repeat the one before
    # tokens that belong to the base beside those of `specials` and `codes`, or before them in order
    added: tuple[str, ...] = ()
    order: Literal["listed", "sorted"] = "listed"  # of the tokens that are added to a tokenizer
    multiple: PositiveInt = 1  # the tables' rows are filled up to a multiple of it
    rows: NonNegativeInt = 0  # the tables have at least so many rows

    @model_validator(mode="after")
    def _whole(self) -> "Convention":
        if unknown := set(self.specials) - set(ROLES):
            raise ValueError(f"specials: {min(unknown)} is no role; known are {', '.join(ROLES)}")
        for name, template in (("speaker", self.speaker), ("instruct", self.instruct)):
            if unknown := fields(template) - {name}:
                raise ValueError(f"{name}: {{{min(unknown)}}} stands for nothing; write {{{name}}}")
        normalizer(self.normalizer)
        names = [name for name in parts(self.sequence) if name[0] == "{"]
        for name in names:
            if name[1:-1] not in PARTS:
                raise ValueError(f"sequence: {name} is no part; known are {', '.join(PARTS)}")
            if name[1:-1] in ROLES and name[1:-1] not in self.specials:
                raise ValueError(f"sequence: {name} is used, but specials has no such role")
        for name in ("{text}", "{codes}", "{speech_end}"):
            if names.count(name) != 1:
                raise ValueError(f"sequence: {name} must be in it once")
        at = names.index("{codes}")
        if names.index("{text}") > at or names[at + 1 : at + 2] != ["{speech_end}"]:
            raise ValueError("sequence: {text} comes before {codes}, {speech_end} right after them")
        return self


@cache
def normalizer(name: str) -> Callable[[str], str]:
    """ "none", "lower", or "module:function" of an installed package that takes a text and returns
    it as the model is to read it. Raises ValueError where there is no such function.
    """
    known: dict[str, Callable[[str], str]] = {"none": str, "lower": str.lower}
    if name in known:
        return known[name]
    module, _, function = name.partition(":")
    try:
        found = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"normalizer: '{name}' is neither none, lower nor module:function: {error}"
        ) from None
    return cast(Callable[[str], str], found)


def fields(template: str) -> set[str]:
    """The names in braces."""
    return {name for _, name, _, _ in Formatter().parse(template) if name is not None}


def parts(sequence: str) -> list[str]:
    """A sequence's parts in braces and the literal texts between them."""
    return [part for part in re.split(r"(\{[a-z_]+\})", sequence) if part]
