"""The stock decoder layers, a few positions at a time, with keys and values in buffers of their own.

The stock forward pass makes a mask, rotary tables and cache objects anew at every call, and a frame
takes sixteen calls; here they are made once. Weights, adapters included, are the modules' own.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import rms_norm, scaled_dot_product_attention

BLOCK = 256  # positions by which the buffers grow

Turns = tuple[Tensor, Tensor]  # cosine and signed sine, each (rows or 1, n, 1, head)


class Stack:
    """The layers and the last norm of `model`, and what `rows` sequences have fed them so far. All
    of them are equally long; what is padding is for the masks to say.
    """

    def __init__(self, model: Any, rows: int, columns: int) -> None:
        self.model, self.filled = model, 0
        config = model.config
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.width = config.head_dim
        shape = (2, rows, self.groups, columns, self.width)  # of keys and values
        self.memory = [model.norm.weight.new_empty(shape) for _ in model.layers]

    def __call__(self, states: Tensor, turns: Turns, mask: Tensor | None) -> Tensor:
        """States (rows, n, hidden) that follow what was fed -> those after the last norm.

        `mask` (rows or 1, 1, n, positions so far and n) is true where a position may look; None
        where it may look at all that was fed and at itself.
        """
        count = states.shape[1]
        if self.filled + count > self.memory[0].shape[3]:
            self.grow(self.filled + count + BLOCK)
        if mask is not None and count > 1:  # heads that share a key stand below one another
            mask = mask.repeat(1, 1, self.heads // self.groups, 1)
        for layer, memory in zip(self.model.layers, self.memory, strict=True):
            normal = normed(layer.input_layernorm, states)
            states = states + self.attend(layer.self_attn, normal, memory, turns, mask)
            states = states + layer.mlp(normed(layer.post_attention_layernorm, states))
        self.filled += count
        return normed(self.model.norm, states)

    def attend(
        self, layer: Any, states: Tensor, memory: Tensor, turns: Turns, mask: Tensor | None
    ) -> Tensor:
        rows, count, _ = states.shape
        shape = (rows, count, -1, self.width)
        query = turned(normed(layer.q_norm, layer.q_proj(states).view(shape)), turns)
        key = turned(normed(layer.k_norm, layer.k_proj(states).view(shape)), turns)
        end = self.filled + count
        memory[0, :, :, self.filled : end] = key.transpose(1, 2)
        memory[1, :, :, self.filled : end] = layer.v_proj(states).view(shape).transpose(1, 2)
        # heads that share a key are queries of one head: no key is copied for each of them
        share = self.heads // self.groups
        asked = query.view(rows, count, self.groups, share, self.width).permute(0, 2, 3, 1, 4)
        found = scaled_dot_product_attention(
            asked.reshape(rows, self.groups, share * count, self.width),
            memory[0, :, :, :end], memory[1, :, :, :end], mask, scale=layer.scaling,
        )  # fmt: skip
        found = found.view(rows, self.groups, share, count, self.width).permute(0, 3, 1, 2, 4)
        out: Tensor = layer.o_proj(found.reshape(rows, count, -1))
        return out

    def turns(self, positions: Tensor) -> Turns:
        """What rotates queries and keys at positions (rows or 1, n)."""
        rotary = self.model.rotary_emb
        angles = positions[..., None, None].float() * rotary.inv_freq
        cosine, sine = angles.cos(), angles.sin()
        both = torch.cat([cosine, cosine], -1), torch.cat([-sine, sine], -1)
        one, other = (each * rotary.attention_scaling for each in both)
        dtype = self.memory[0].dtype
        return one.to(dtype), other.to(dtype)

    def grow(self, columns: int) -> None:
        for number, memory in enumerate(self.memory):
            larger = memory.new_empty((*memory.shape[:3], columns, self.width))
            larger[:, :, :, : self.filled] = memory[:, :, :, : self.filled]
            self.memory[number] = larger

    def keep(self, rows: Tensor) -> None:
        """Forget all sequences but these."""
        self.memory = [memory.index_select(1, rows) for memory in self.memory]


def normed(norm: Any, states: Tensor) -> Tensor:
    """The stock RMS norm in one call; a third of a small model's time goes into these."""
    return rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon)


def turned(states: Tensor, turns: Turns) -> Tensor:
    """Rotate (rows, n, heads, head): the halves of each head are real and imaginary parts."""
    return torch.addcmul(states * turns[0], states.roll(states.shape[-1] // 2, -1), turns[1])
