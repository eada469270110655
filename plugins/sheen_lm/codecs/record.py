"""Which codec made the codes of prepared rows: other weights mean other codes."""

import json
from pathlib import Path
from typing import Any

from sheen_cli import SheenError
from sheen_lm.codecs.codec import Codec

FACTS = "codec.json"


def note(codec: Codec, artifacts: Path) -> None:
    """Write down the codec, and the library, since another version of it may hear other codes."""
    facts = {
        "name": codec.name, "sha256": codec.sha256, "revision": codec.revision,
        "library": codec.parts.library, "device": codec.device, "rate": codec.rate,
        "samples": codec.samples, "sizes": codec.sizes, "layers": codec.layers,
    }  # fmt: skip
    (artifacts / FACTS).write_text(json.dumps(facts, indent=1) + "\n", "utf-8")


def read(artifacts: Path) -> dict[str, Any] | None:
    """What was noted; None for rows whose codes the source brought. Raises SheenError."""
    path = artifacts / FACTS
    if not path.is_file():
        return None
    try:
        facts: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return {**facts, "sizes": tuple(facts["sizes"]), "sha256": str(facts["sha256"])}
    except (ValueError, KeyError, TypeError):
        raise SheenError(f"{path} is damaged; prepare the data again") from None


def revision(artifacts: Path) -> str | None:
    """The commit of the codec that rows were made with, if it came from the Hub."""
    facts = read(artifacts)
    return facts["revision"] if facts else None


def check(codec: Codec, artifacts: Path, data: str) -> None:
    """Raise SheenError where rows were made by another codec, or with other codebooks of it; codes
    that the source brought are taken on trust."""
    facts = read(artifacts)
    if facts is None:
        return
    if facts["sha256"] != codec.sha256:
        raise SheenError(
            f"{data} was made by another codec ({facts['name']} {facts['sha256'][:12]}) than this "
            f"({codec.name} {codec.sha256[:12]}); prepare it again"
        )
    if facts["sizes"] != codec.sizes:
        raise SheenError(
            f"{data} was made with {len(facts['sizes'])} codebooks of {codec.name}, not with "
            f"{len(codec.sizes)}; prepare it again, or set the number to that"
        )
