"""A model folder's weights on disk, read and written a file at a time: what is loaded at once is
never more than one of them.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sheen_cli import SheenError

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
LARGEST = 5_000_000_000  # bytes of a file, as the Hub's own tools divide weights
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """What a file says of a tensor without reading it."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Weights:
    """The weights of a folder, in one file or divided, by their names; `facts` in the files' own
    order. Files that no index names are left from something else, and are not read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: tuple[Path, Any] | None = None

    @cached_property
    def homes(self) -> dict[str, Path]:
        """Name -> its file. Raises SheenError where a file is missing or damaged."""
        index = self.folder / INDEX
        if (self.folder / ONE).is_file() or not index.is_file():
            files = [ONE]
        else:
            files = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        return {name: self.folder / file for file in files for name in self._names(file)}

    def _names(self, file: str) -> list[str]:
        try:
            return list(self._handle(self.folder / file).keys())
        except FileNotFoundError:
            raise SheenError(f"{self.folder} is not whole: {file} is missing") from None
        except Exception as error:  # safetensors has an error of its own that is no OSError
            raise SheenError(f"{self.folder / file} is damaged: {error}") from None

    def _handle(self, path: Path) -> Any:
        if self._open is None or self._open[0] != path:
            self._open = path, safe_open(path, "pt")
        return self._open[1]

    @cached_property
    def facts(self) -> dict[str, Facts]:
        found = {}
        for name, path in self.homes.items():
            part = self._handle(path).get_slice(name)
            found[name] = Facts(tuple(part.get_shape()), DTYPES[part.get_dtype()])
        return found

    def read(self, name: str) -> Tensor:
        tensor: Tensor = self._handle(self.homes[name]).get_tensor(name)
        return tensor


def write(
    folder: Path, facts: Mapping[str, Facts], make: Callable[[str], Tensor], largest: int = LARGEST
) -> None:
    """Write the tensors that `make` gives for the names of `facts`, in its dtypes: as one file or,
    beyond `largest` bytes, as several with an index.
    """
    groups: list[list[str]] = [[]]
    size = 0
    for name, fact in facts.items():
        bytes_ = prod(fact.shape) * fact.dtype.itemsize
        if groups[-1] and size + bytes_ > largest:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += bytes_
    homes: dict[str, str] = {}
    for number, names in enumerate(groups, 1):
        file = ONE if len(groups) == 1 else f"model-{number:05}-of-{len(groups):05}.safetensors"
        some = {name: make(name).detach().to("cpu", facts[name].dtype) for name in names}
        save_file({k: v.contiguous() for k, v in some.items()}, folder / file, {"format": "pt"})
        homes |= dict.fromkeys(names, file)
    if len(groups) > 1:
        total = sum(prod(fact.shape) * fact.dtype.itemsize for fact in facts.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(homes.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """What tensors lack, have too much, or have in another shape; both map a name to anything with
    a shape.
    """
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    parts = []
    if missing:
        parts.append(f"lacks {some(missing)}")
    if extra:
        parts.append(f"has {some(extra)} besides")
    for name in wanted:
        if name in found and tuple(found[name].shape) != tuple(wanted[name].shape):
            shapes = tuple(found[name].shape), tuple(wanted[name].shape)
            parts.append(f"has {name} in the shape {shapes[0]}, not {shapes[1]}")
            break
    return " and ".join(parts) or None


def some(names: list[str]) -> str:
    """A few names, and how many more."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
