"""Which attention a model is loaded with."""

from importlib import import_module

import torch

from sheen_cli import SheenError


def attention_of(wanted: str, dtype: torch.dtype | None = torch.float32) -> str:
    """The attention to load with; auto takes flash_attention_2 where it can be imported, on a GPU
    and not in float32. Raises SheenError where that is asked for by name and cannot be.
    """
    if wanted not in ("auto", "flash_attention_2"):
        return wanted
    reason = hindered(dtype)
    if reason is None:
        return "flash_attention_2"
    if wanted == "auto":
        return "sdpa"
    raise SheenError(f"model.attention=flash_attention_2: {reason[1]}; take auto or sdpa")


def hindered(dtype: torch.dtype | None) -> tuple[str, str] | None:
    """Why flash_attention_2 cannot be taken, in short and as a sentence; None where it can."""
    if not torch.cuda.is_available():
        return "no GPU", "there is no GPU"
    if dtype == torch.float32:
        return "flash attention has no float32", "it does not compute in float32"
    try:
        import_module("flash_attn")
    except ImportError as error:
        sentence = f"flash_attn cannot be imported ({error})"
        missing = isinstance(error, ModuleNotFoundError) and error.name == "flash_attn"
        return "flash_attn is not installed" if missing else sentence, sentence
    return None


def taken(attention: str, dtype: torch.dtype | None) -> str:
    """What auto came to, for people: `sdpa (no GPU)`."""
    reason = None if attention == "flash_attention_2" else hindered(dtype)
    return attention if reason is None else f"{attention} ({reason[0]})"
