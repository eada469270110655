"""What of a checkpoint is published: the files that loading it needs, by an allow-list, without
this machine's paths and under a manifest of their own.
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from sheen_cli import checkpoints
from sheen_cli.errors import SheenError
from sheen_cli.files import read_json, sha256
from sheen_cli.recipe import read

SUFFIXES = {".safetensors", ".json", ".model", ".tiktoken", ".jinja"}
NAMES = {"recipe.yaml", "merges.txt", "vocab.txt", "LICENSE", "LICENSE.md", "NOTICE"}
CARD, RECIPE = "README.md", "recipe.yaml"
PRIVATE = {"hub": None, "log": ("wandb", "project", "run_name")}  # of a recipe: its user's own
PLAIN = {"tokenizer.json", "vocab.json"}  # words of a language, among them what looks like a path
CACHED = re.compile(r"models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\]")


@dataclass(frozen=True)
class Bundle:
    """Name in the repository -> the file, or what stands there in its place; the names that stay
    behind; the recipe as it is published; whether its base lies on this machine alone.
    """

    files: dict[str, Path | bytes]
    left: list[str]
    recipe: dict[str, Any]
    homeless: bool

    @property
    def size(self) -> int:
        return sum(map(size, self.files.values()))


def size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def digest(content: Path | bytes) -> str:
    return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else sha256(content)


def pack(checkpoint: Path) -> Bundle:
    """The bundle of a checkpoint that is whole, but for its card. Raises SheenError where it holds
    no weights that may be published.
    """
    listed = read_json(checkpoint / checkpoints.MANIFEST)["files"]
    allowed = [name for name in listed if may_go(name)]
    left = [n for n in listed if n not in allowed and n != CARD and not of_training(n)]
    if not any(name.endswith(".safetensors") and "/" not in name for name in allowed):
        raise SheenError(f"{checkpoint} holds no weights as .safetensors, and no others are sent")
    files = {name: published(checkpoint / name) for name in allowed}
    recipe = public_recipe(read(checkpoint / RECIPE))
    base = read(checkpoint / RECIPE).get("model", {}).get("base")
    files[RECIPE] = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).encode()
    found: dict[str, dict[str, int | str]] = {
        name: {
            "bytes": size(content),
            "sha256": listed[name]["sha256"] if isinstance(content, Path) else digest(content),
        }
        for name, content in sorted(files.items())
    }
    manifest = checkpoints.sealed(recipe["backbone"], found)
    files[checkpoints.MANIFEST] = (json.dumps(manifest, indent=1) + "\n").encode()
    return Bundle(files, left, recipe, base is not None and base != recipe["model"]["base"])


def of_training(name: str) -> bool:
    return name.startswith((f"{checkpoints.STATE}/", f"artifacts/{checkpoints.STATE}/"))


def may_go(name: str) -> bool:
    """Whether a file of a checkpoint is of those that loading it needs."""
    path = PurePosixPath(name)
    if of_training(name) or any(part.startswith(".") for part in path.parts):
        return False
    return path.parts[0] == "artifacts" or path.suffix in SUFFIXES or name in NAMES


def published(path: Path) -> Path | bytes:
    """The file itself, or its contents where they had to be freed of paths."""
    if path.suffix not in (".json", ".jsonl") or path.name in PLAIN:
        return path
    text = path.read_text("utf-8")
    parts = text.splitlines() if path.suffix == ".jsonl" else [text]
    try:
        values = [json.loads(part) for part in parts]
    except ValueError:
        return path
    cleaned = [without_paths(value, at_home) for value in values]
    if cleaned == values:
        return path
    indent = None if path.suffix == ".jsonl" else 2
    lines = [json.dumps(value, ensure_ascii=False, indent=indent) for value in cleaned]
    return ("\n".join(lines) + "\n").encode()


def public_recipe(values: dict[str, Any]) -> dict[str, Any]:
    """A recipe that others may run: with no path of this machine, and no account of its user."""
    kept = {
        section: {k: v for k, v in inner.items() if k not in (PRIVATE.get(section) or ())}
        if isinstance(inner, dict)
        else inner
        for section, inner in values.items()
        if PRIVATE.get(section, ()) is not None
    }
    cleaned: dict[str, Any] = without_paths(kept, of_here)
    return cleaned


def without_paths(value: Any, local: Callable[[str], bool]) -> Any:
    """The value with each string that is a path of this machine cut down to its last name, or to
    the Hub id in whose cache it lies.
    """
    if isinstance(value, dict):
        return {key: without_paths(inner, local) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_paths(inner, local) for inner in value]
    if not isinstance(value, str) or not local(value):
        return value
    cached = CACHED.search(value)
    return f"{cached[1]}/{cached[2]}" if cached else re.split(r"[/\\]+", value.rstrip("/\\"))[-1]


def of_here(text: str) -> bool:
    """Whether a recipe's value is a path: nothing else in it begins like one, or names a file."""
    named = re.match(r"(/|~[\w.-]*/|\.\.?/|[A-Za-z]:[/\\]|file:)\S", text)
    return bool(named) or ("/" in text and len(text) < 4000 and Path(text).exists())


def at_home(text: str) -> bool:
    """Whether a string of any file is surely a path of this machine."""
    if not re.fullmatch(r"(/|~/|[A-Za-z]:[/\\])[^\0\n]{2,4000}", text):
        return False
    path = Path(text).expanduser()
    home = path.is_relative_to(Path.home()) or path.is_relative_to(Path.cwd())
    try:
        return len(path.parts) > 2 and (home or path.exists() or path.parent.is_dir())
    except OSError:  # a name that is too long
        return False
