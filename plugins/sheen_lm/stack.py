"""What feeds a decoder, token by token: our own layers where they are Llama's or Qwen3's, else the
stock forward pass with its own cache.
"""

from inspect import signature
from typing import Any

import torch
from torch import Tensor

from sheen_lm.layers import Stack

CHANGING = ("dynamic", "longrope")  # rotations whose frequencies change with the length


def decoder(inner: Any, rows: int, columns: int) -> "Own | Stock":
    """What feeds `rows` sequences to the decoder `inner`; about so many positions are expected."""
    return Own(Stack(inner, rows, columns)) if known(inner) else Stock(inner)


def known(inner: Any) -> bool:
    """Whether the arithmetic of `Stack` is that of this decoder."""
    from transformers import LlamaModel, Qwen3Model

    rotation = (getattr(inner.config, "rope_scaling", None) or {}).get("rope_type", "default")
    kinds = set(getattr(inner.config, "layer_types", None) or ["full_attention"])
    return (
        type(inner) in (LlamaModel, Qwen3Model)
        and rotation not in CHANGING
        and kinds == {"full_attention"}
    )


class Stock:
    """A decoder's own forward pass and cache."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.cache = inner, None
        self.placed = "position_ids" in signature(inner.forward).parameters

    def __call__(self, states: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
        """Embeddings (rows, n, hidden) that follow what was fed, at positions (rows, n) -> states
        (rows, n, hidden) after the last norm. `seen` (rows, positions so far and n) is false where
        there is padding.
        """
        where = {"position_ids": positions} if self.placed else {}
        found = self.inner(
            inputs_embeds=states, attention_mask=seen.long(), past_key_values=self.cache,
            use_cache=True, **where,
        )  # fmt: skip
        self.cache = found.past_key_values
        hidden: Tensor = found.last_hidden_state
        return hidden

    def keep(self, rows: Tensor) -> None:
        """Forget all sequences but these."""
        assert self.cache is not None
        self.cache.reorder_cache(rows)


class Own:
    """The same of our own layers; sequences are padded at the left."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack

    def __call__(self, states: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
        """As `Stock` does."""
        return self.stack(states, self.stack.turns(positions), mask(seen, states.shape[1]))

    def keep(self, rows: Tensor) -> None:
        self.stack.keep(rows)


def mask(seen: Tensor, count: int) -> Tensor:
    """Where each of the last `count` positions may look (rows, 1, count, all)."""
    if count == 1:
        return seen[:, None, None]
    end = seen.shape[1]
    causal = torch.ones(count, end, dtype=torch.bool, device=seen.device).tril(end - count)
    self_ = torch.eye(end, dtype=torch.bool, device=seen.device)[end - count :]
    return causal & seen[:, None, None] | self_  # padding sees itself: no NaN
