"""The model card: what a checkpoint is, from its recipe, its run and its figures; nothing else is
claimed.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from sheen_cli import checkpoints, tracking
from sheen_cli.bundle import Bundle
from sheen_cli.files import read_json
from sheen_cli.recipe import REPOSITORY
from sheen_cli.rows import Rows

ROWS = 5000  # that are asked for their language
SHOWN = ("max_steps", "epochs", "learning_rate", "schedule", "batch_size", "accumulate",
         "weight_decay", "precision", "seed")  # fmt: skip


def write(bundle: Bundle, checkpoint: Path, repository: str, license: str | None) -> str:
    """README.md of a repository that holds the bundle."""
    run = checkpoint.parent if (checkpoint.parent / "run.json").is_file() else None
    facts = front(bundle, languages(bundle.recipe, run), license)
    head = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{head}---",
        f"# {repository.partition('/')[2]}",
        about(bundle, facts),
        usage(bundle, repository),
        figures(checkpoint, run),
        settings(bundle.recipe, run),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def front(bundle: Bundle, spoken: list[str], license: str | None) -> dict[str, Any]:
    """The metadata. What is not known is left out: the Hub refuses empty values."""
    base = hub_id(bundle.recipe.get("model", {}).get("base"))
    adapter = any(Path(name).name.startswith("adapter") for name in bundle.files)
    data = hub_id(bundle.recipe.get("data", {}).get("dataset"))
    facts: dict[str, Any] = {
        "license": license,
        "language": spoken,
        "library_name": "sheen",
        "pipeline_tag": "text-to-speech",
        "base_model": base,
        "base_model_relation": ("adapter" if adapter else "finetune") if base else None,
        "datasets": [data] if data else None,
        "tags": ["text-to-speech", "sheen", bundle.recipe["backbone"]],
    }
    return {key: value for key, value in facts.items() if value}


def hub_id(name: Any) -> str | None:
    """The name, where it can only be a repository's: not a folder's, here or anywhere."""
    good = isinstance(name, str) and REPOSITORY.fullmatch(name) and not Path(name).exists()
    return str(name) if good and Path(str(name)).suffix != ".jsonl" else None


def languages(recipe: Mapping[str, Any], run: Path | None) -> list[str]:
    """ISO codes of what was trained on, the most frequent first, from the recipe or the rows."""
    given = recipe.get("data", {}).get("language")
    counted = Counter([given] if given else [])
    if run is not None and not given:
        rows = Path(read_json(run / "run.json").get("data_folder", "")) / "train.jsonl"
        if rows.is_file():
            counted = Counter(str(row.get("language")) for row in islice(Rows(rows), ROWS))
    codes = (name.lower().replace("_", "-").partition("-")[0] for name, _ in counted.most_common())
    return list(dict.fromkeys(code for code in codes if re.fullmatch("[a-z]{2,3}", code)))


def about(bundle: Bundle, facts: Mapping[str, Any]) -> str:
    base = facts.get("base_model")
    start = "Fine-tuned" if bundle.recipe.get("model", {}).get("base") else "Trained"
    start += f" from [{base}](https://huggingface.co/{base})" if base else ""
    return f"{start} with sheen, backbone `{bundle.recipe['backbone']}`."


def usage(bundle: Bundle, repository: str) -> str:
    folder = repository.partition("/")[2]
    setting = " model.base=FOLDER" if bundle.homeless else ""
    note = (
        "\n\nThe base model of the training was a folder; `model.base` names yours."
        if bundle.homeless
        else ""
    )
    return (
        f"## Use\n\n```sh\nhf download {repository} --local-dir {folder}\n"
        f'sheen synth {folder}{setting} --text "..." -o out.wav\n```{note}'
    )


def figures(checkpoint: Path, run: Path | None) -> str:
    """The log's lines of the checkpoint's step as a table."""
    progress = checkpoint / checkpoints.STATE / "progress.json"
    if not progress.is_file():
        return ""
    step = json.loads(progress.read_text("utf-8"))["step"]
    found: dict[str, Any] = {}
    for line in tracking.read(run / "metrics.jsonl") if run else []:
        if line["step"] == step:
            found |= line
    found = {k: v for k, v in found.items() if k not in ("step", "seconds", "learning_rate")}
    head = f"## Figures\n\nAfter step {step}"
    if not found:
        return f"{head}."
    lines = [f"| {name} | {value:.4g} |" for name, value in sorted(found.items())]
    table = ["| name | value |", "| --- | --- |", *lines]
    return "\n".join([f"{head}, as its log has them:", "", *table])


def settings(recipe: Mapping[str, Any], run: Path | None) -> str:
    chosen = {k: v for k, v in recipe.get("train", {}).items() if k in SHOWN and v is not None}
    text = ", ".join(f"{name} {value}" for name, value in chosen.items())
    versions = read_json(run / "run.json")["versions"] if run else {}
    made = ", ".join(f"{name} {value}" for name, value in versions.items())
    return f"## Training\n\n{text or 'The settings'}; all of them are in `recipe.yaml`." + (
        f"\n\nVersions: {made}." if made else ""
    )
