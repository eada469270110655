"""The values that pass between host and backbone. Importing this module imports neither torch nor
transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from sheen_cli.recipe import Recipe, Section

API = 1  # of the hooks; raised when a hook changes in a way that implementations notice

# One JSON object of a rows file; "audio_codes", where present, is frames x codebooks, and "beside"
# a file, given from the rows' folder in the file and as a path that can be opened in memory.
Row = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """One utterance as a source lists it, its audio not decoded yet.

    `audio` is a file, the bytes of one, (samples, rate) with samples (n,) or (n, channels), or None
    where the source holds nothing but `codes` (frames, codebooks) of it. `split` is "train",
    "validation" or "test" where the source decides that itself. `ref_audio`, a file or the bytes of
    one, and `ref_text` are another recording of the speaker. `extra` holds columns that sheen keeps
    unread, `where` the place in the source, for messages.
    """

    text: str
    audio: Path | bytes | tuple[np.ndarray, int] | None
    name: str
    speaker: str | None = None
    language: str | None = None
    split: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""
    codes: np.ndarray | None = None
    ref_audio: Path | bytes | None = None
    ref_text: str | None = None


@dataclass(frozen=True)
class Clip:
    """One utterance ready for a codec: `audio` (n,) float32 mono in -1..1 at the backbone's
    `rate`, finite, not silent.

    `path` is the file that the sound lies in, if it does. `codes` (frames, codebooks) are those
    that the source holds already; `audio` may then be empty. `ref_audio` and `ref_text` are another
    recording of the speaker and its words, where the source names one. `extra` are the source's
    other columns, which the row keeps.
    """

    id: str
    text: str
    audio: np.ndarray
    rate: int
    speaker: str | None = None
    language: str | None = None
    split: str | None = None
    path: Path | None = None
    codes: np.ndarray | None = None
    ref_audio: Path | None = None
    ref_text: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Skip:
    """A backbone's or the host's refusal of one clip: a reason code (`too-long`) and what a
    person needs to know.
    """

    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Filled:
    """What a corpus became: its rows by split, to be iterated once, train among them; how many
    items were read, how many refused for which reason; and what else its manifest is to say.
    """

    rows: Mapping[str, Iterable[Row]]
    read: int
    rejected: Mapping[str, int]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Corpus:
    """Rows that are made of no clips, as windows of packed text and speech are. `origin` tells what
    they are made from; data made from another is refused. `fill(folder, artifacts, overwrite)` is
    given a folder for what rows point to (row["beside"], a path from the data's folder), in which
    it goes on where it was killed, and the one that every checkpoint takes along. What it finds
    there and would make otherwise it refuses, or with `overwrite` makes anew; the rest it keeps.
    """

    origin: Mapping[str, Any]
    fill: Callable[[Path, Path, bool], Filled]


@dataclass(frozen=True)
class Batch:
    """Tensors for one forward pass, and for each loss term the number of its targets in the
    batch.
    """

    inputs: dict[str, Tensor]
    counts: dict[str, int]


@dataclass(frozen=True)
class Term:
    """One part of the objective: the sum of the losses of its targets, () with gradient, and its
    weight.
    """

    sum: Tensor
    scale: float = 1.0


@dataclass(frozen=True)
class Loss:
    """The objective of one batch. The host divides each term's sum by its count over the whole
    accumulation window.

    `parts` are for the log only: name -> (sum without gradient, count). `logits`, asked for with
    `trace`, are per term the scores (targets, choices) that its targets were compared with.
    """

    terms: Mapping[str, Term]
    parts: Mapping[str, tuple[Tensor, int]] = field(default_factory=dict)
    logits: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """Somebody speaking, to be cloned: `audio` (n,) float32 at the backbone's rate, and what is
    said in it. With `in_context` the speech goes on from it, for which the text is needed; else
    only the voice is taken.
    """

    audio: np.ndarray
    text: str | None = None
    in_context: bool = False


@dataclass(frozen=True)
class Request:
    """One sentence to speak. `seed` settles everything random about it, whatever is spoken beside
    it; `greedy` takes the likeliest code every time.

    `speaker`, `language`, `instruct` and `reference` are set only for a backbone that says in
    `BackboneSpec.reads` that it heeds them.
    """

    text: str
    seed: int = 0
    greedy: bool = False
    max_seconds: float | None = None
    speaker: str | None = None
    language: str | None = None
    instruct: str | None = None
    reference: Reference | None = None


@dataclass(frozen=True)
class Audio:
    """Speech: `samples` (n,) float32 at `rate`; `codes` (frames, codebooks); `stop` is "end" or
    "length".

    `nll` is, per loss term, the summed negative log-likelihood of the codes and of an end after
    them (also where the length stopped it), from the raw model, before masks and sampling: what
    `loss` says of a row with these codes. `logits`, asked for with `trace`, are the scores
    (targets, choices) behind it, in the order of `Loss.logits`.
    """

    samples: np.ndarray
    rate: int
    codes: np.ndarray | None = None
    nll: Mapping[str, float] = field(default_factory=dict)
    stop: str = "end"
    logits: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """One thing that was measured of a base model: what was seen, in words, and the figures behind
    it. `ok`: True or False; None for a notice, which does not decide.
    """

    name: str
    ok: bool | None
    text: str
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class BackboneSpec:
    """What a backbone declares of itself.

    options       the pydantic section behind the recipe's `model:`
    sample_rate   of the clips it wants and of the audio it makes, in Hz
    terms         names of the loss terms that `collate` counts and `loss` returns
    recipe        the recipe to use when none is named
    frame_rate    codec frames a second; codebooks: the size of each codebook. None for a backbone
                  without codes
    prepared_by   recipe keys ("model.codec") that change prepared rows; training on rows made with
                  others is refused
    reads         what it heeds of a Request besides the text, of "speaker", "language", "instruct"
                  and "reference"
    takes_codes   `prepare` uses the codes that a clip brings, so that `audio` may be empty; else
                  clips bring none
    codes_of      columns of other tools that hold codes -> function of a cell that makes frames x
                  codebooks of it, or raises SheenError
    datasets      data sets that the package embeds: name -> function of the recipe that lists the
                  entries
    corpus        in place of the hook `prepare`, for a recipe whose rows are made of no clips
    tiny          settings with which two short clips are learnt by heart in seconds on a CPU and
                  offline, for the contract kit and `sheen doctor`; it may write a base model to
                  the folder that it is given
    stacks        versions that it was tested with together: package -> specifier ("==4.57.3")
    check         measures a base model that the user has: (recipe, its folder or Hub id, a clip or
                  None for one that is built in, a folder to write to) -> what is found, in order
    exports       kinds that its `export` hook writes; none where it has no such hook
    free          recipe keys ("model.temperature") that a resumed run may change: they decide
                  nothing of what is learnt
    """

    options: type[Section]
    sample_rate: int
    terms: tuple[str, ...]
    recipe: str
    frame_rate: float | None = None
    codebooks: tuple[int, ...] | None = None
    prepared_by: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    takes_codes: bool = False
    codes_of: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    datasets: Mapping[str, Callable[[Recipe[Any]], Iterable[Entry]]] = field(default_factory=dict)
    corpus: Callable[[Recipe[Any]], Corpus] | None = None
    tiny: Callable[[Path], Sequence[str]] | None = None
    stacks: Sequence[Mapping[str, str]] = ()
    check: Callable[[Recipe[Any], str, Clip | None, Path], Iterable[Measured]] | None = None
    exports: tuple[str, ...] = ()
    free: tuple[str, ...] = ()
    api: int = API
