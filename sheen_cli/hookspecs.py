"""The contract of a backbone: seven hooks, and one that may be left out. The reference for writing
one is docs/writing-a-backbone.md.

A backbone is a module, found through an entry point in the group `sheen`, whose functions carry
`@hookimpl`. An implementation may leave out arguments that it does not need. The host registers
one backbone a process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from torch import nn

    from sheen_cli.recipe import Recipe
    from sheen_cli.training import Run
    from sheen_cli.types import Audio, BackboneSpec, Batch, Clip, Loss, Request, Row, Skip

GROUP = "sheen"
hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec(firstresult=True)
def describe(recipe: Recipe[Any] | None) -> BackboneSpec:  # type: ignore[empty-body]
    """Say what the backbone is; load no weights.

    Called with None for the options and the name of the default recipe, then with the recipe, on
    which rates and codebooks may depend.
    """


@hookspec(firstresult=True)
def prepare(recipe: Recipe[Any], clips: Iterable[Clip], artifacts: Path) -> Iterable[Row | Skip]:  # type: ignore[empty-body]
    """Turn clips into training rows: one Row or Skip a clip, in the clips' order.

    `clips` can be iterated again. What is fitted or pooled over clips is written to the folder
    `artifacts`, with the last row at the latest; to its folder `training`, which uploads leave
    behind, what speech does not need. A row holds what `collate` needs, as JSON; the host adds id,
    text, audio, duration, speaker and language. Codes go to "audio_codes", frames x codebooks.
    Never truncate a clip: return a Skip.
    """


@hookspec(firstresult=True)
def collate(  # type: ignore[empty-body]
    recipe: Recipe[Any], rows: Sequence[Row], seed: int | None, artifacts: Path
) -> Batch:
    """Build the tensors of a batch. Pure: equal arguments give equal tensors, in any process.
    `artifacts` is what `prepare` wrote; read it once a process.

    Targets lie on the position that predicts them, so nothing is shifted later. `seed` is for
    augmentation; it is None in validation, and a row is then laid out as `synth` lays out a request
    with the row's text and what `BackboneSpec.reads` names of it. `Batch.counts` gives the number
    of targets of every term in `BackboneSpec.terms`.
    """


@hookspec(firstresult=True)
def load(recipe: Recipe[Any], checkpoint: Path | None) -> nn.Module:  # type: ignore[empty-body]
    """Load a model that can train and speak: from a checkpoint folder alone (an adapter also needs
    the base that its recipe names), or, given None, the recipe's base model.

    Raises SheenError where there is no base model.
    """


@hookspec(firstresult=True)
def loss(recipe: Recipe[Any], model: nn.Module, batch: Batch, trace: bool) -> Loss:  # type: ignore[empty-body]
    """Call `model(...)` once and return each term's sum; the same function serves training and
    validation.

    The host divides by the counts. Do not average here, and do not reach into `model`: it may be
    wrapped. With `trace`, which training never sets, fill `Loss.logits`.
    """


@hookspec(firstresult=True)
def train(recipe: Recipe[Any], run: Run) -> None:
    """Load or build the model (from `run.resume` when that is set) and hand it to `run.fit(model,
    save)`. The global generators are seeded by the recipe before.
    """


@hookspec(firstresult=True)
def synth(  # type: ignore[empty-body]
    recipe: Recipe[Any], model: nn.Module, requests: Iterable[Request], trace: bool
) -> Iterator[Audio]:
    """Speak: one Audio a request, in order. `model` is what `load` returned, or the very model in
    training.

    The rule that ties training to synthesis: the loss of a row built from the returned codes
    equals the returned nll. A speech has at least one frame. With `trace` fill `Audio.logits`, from
    the same loop.
    """


@hookspec(firstresult=True)
def export(recipe: Recipe[Any], checkpoint: Path, kind: str, folder: Path) -> str | None:
    """Fill the empty `folder` with what other tools load: the checkpoint as one of the kinds that
    `BackboneSpec.exports` names. The one hook that may be left out, and the kinds with it.

    Returns how to use it, a line for each way; the host puts the folder's name to be for that of
    `folder`. Raises SheenError for a kind that this checkpoint cannot be.
    """
