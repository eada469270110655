"""What a backbone finds out about a base model on the user's machine, where its package's tests
cannot go: weights that are too large for them, or that they may not have.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from sheen_cli import audio, backbones
from sheen_cli.errors import SheenError
from sheen_cli.types import Clip, Measured

SHORTEST, LONGEST = 1.0, 30.0  # seconds of the clip


def measured(
    name: str, base: str, clip: Path | None, text: str | None, settings: Sequence[str]
) -> Iterator[Measured]:
    """Measure the base model `base` of the backbone `name`, each thing as soon as it is known.

    `clip` is a recording in which `text` is said; without one the backbone takes what it has.
    """
    spec = backbones.load(name).spec
    if spec.check is None:
        raise SheenError(f"backbone '{name}' has no check of a base model; leave out --base")
    recipe, backbone = backbones.resolve(spec.recipe, list(settings))
    if backbone.name != name:
        raise SheenError(f"its default recipe '{spec.recipe}' is for backbone '{backbone.name}'")
    heard = recording(clip, text, spec.sample_rate)
    with tempfile.TemporaryDirectory(prefix="sheen-base-") as folder:
        yield from spec.check(recipe, base, heard, Path(folder))


def recording(file: Path | None, text: str | None, rate: int) -> Clip | None:
    """The user's clip at a rate. Raises SheenError where it cannot be used."""
    if file is None or not (text or "").strip():
        if file is None and text is None:
            return None
        raise SheenError("--clip FILE and --clip-text 'what is said in it' belong together")
    try:
        samples = audio.load(file, rate, SHORTEST, LONGEST)
    except audio.Rejected as rejected:
        raise SheenError(f"--clip {file}: {rejected.reason}: {rejected.detail}") from None
    return Clip(file.name, str(text), samples, rate, path=file)
