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
    reason = None
    if not torch.cuda.is_available():
        reason = "there is no GPU"
    elif dtype == torch.float32:
        reason = "it does not compute in float32"
    else:
        try:
            import_module("flash_attn")
        except ImportError as error:
            reason = f"flash_attn cannot be imported ({error})"
    if reason is None:
        return "flash_attention_2"
    if wanted == "auto":
        return "sdpa"
    raise SheenError(f"model.attention=flash_attention_2: {reason}; take auto or sdpa")
