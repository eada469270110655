"""The stock package, qwen_tts: which versions of it are proved, and its import without torchaudio,
SoX and onnxruntime, which the 12 Hz codec does not use.

Three distributions share the import name, so it is the distribution that is looked at.
"""

import io
import shutil
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from sheen_cli import SheenError

STACKS = (
    {"qwen-tts": "==0.1.1", "transformers": "==4.57.3"},
    {"qwen-tts-hf": "==0.1.1.post1", "transformers": ">=5.15.1,<5.16"},
)
SHARERS = ("qwen-tts", "qwen-tts-hf", "qwen-tts-compat")  # distributions that hold `qwen_tts`


@cache
def load() -> Any:
    """The module `qwen_tts`. Raises SheenError where it is missing, there twice, or no proved
    pair.
    """
    if problem := unfit({name: installed(name) for name in (*SHARERS, "transformers")}):
        raise SheenError(problem)
    without_torchaudio()
    for name in ("sox", "onnxruntime"):
        if name not in sys.modules and find_spec(name) is None:
            stand_in(name)
    if "sox" not in sys.modules and shutil.which("sox") is None:
        stand_in("sox")  # it would run the program, and complain at length that there is none
    with redirect_stdout(io.StringIO()):  # a banner about flash-attn
        import qwen_tts
    quiet()
    return qwen_tts


def unfit(found: Mapping[str, str | None]) -> str | None:
    """What is wrong with the versions that are installed, and the way out; None for a proved
    pair.
    """
    there = [name for name in SHARERS if found[name]]
    if len(there) > 1:
        return (
            f"{' and '.join(there)} are both installed and overwrite each other's module qwen_tts; "
            f'`pip uninstall {" ".join(there)}`, then `pip install "sheen-tts[qwen3-tts]"`'
        )
    if any(fits(stack, found) for stack in STACKS):
        return None
    pairs = " or ".join(
        " with ".join(f"{name}{wanted}" for name, wanted in stack.items()) for stack in STACKS
    )
    listed = ", ".join(f"{name} {number}" for name, number in found.items() if number) or "none"
    extra = "qwen3-tts-hf" if "qwen-tts-hf" in there else "qwen3-tts"
    return f'Qwen3-TTS needs {pairs}; installed: {listed}. Run `pip install "sheen-tts[{extra}]"`'


@contextmanager
def hushed() -> Iterator[None]:
    """No remarks of transformers about how the stock package calls it."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def quiet() -> None:
    """No bar for each load of weights, which transformers 5 draws; those of downloads stay."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    silent = are_progress_bars_disabled()
    logging.disable_progress_bar()
    if not silent:
        enable_progress_bars()


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def fits(stack: Mapping[str, str], found: Mapping[str, str | None]) -> bool:
    from packaging.specifiers import SpecifierSet

    return all(
        found[name] is not None and SpecifierSet(wanted).contains(found[name] or "")
        for name, wanted in stack.items()
    )


def restore_rotary(model: Any) -> None:
    """Fill the rotary frequencies of a model that was loaded past the package's own loader.

    No checkpoint holds them. transformers 5 makes modules without memory and forgets what they
    computed; under transformers 4 the same numbers are put where they already are.
    """
    for module in model.modules():
        if hasattr(module, "rope_init_fn") and hasattr(module, "inv_freq"):
            module.inv_freq, module.attention_scaling = module.rope_init_fn(
                module.config, module.inv_freq.device
            )
            module.original_inv_freq = module.inv_freq


def without_torchaudio() -> None:
    """Put empty modules where torchaudio cannot be loaded: only the 25 Hz codec calls it, but the
    package imports it whatever codec is used.
    """
    try:
        import torchaudio.compliance.kaldi  # noqa: F401
    except Exception:  # missing, or built for another torch: an OSError from its library
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
            del sys.modules[name]
        for name in ("", ".compliance", ".compliance.kaldi", ".transforms", ".functional"):
            stand_in(f"torchaudio{name}")


def stand_in(name: str) -> None:
    """An empty module of a name, known to its parent."""
    module: Any = types.ModuleType(name)
    module.__spec__, module.__path__, module.__version__ = ModuleSpec(name, None), [], "0"
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)
