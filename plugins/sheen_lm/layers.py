"""The stock decoder layers, a few positions at a time, keys and values in buffers of their own.

The stock forward pass makes masks, rotary tables and cache objects anew at every call, and copies
the cache to append to it; here they are made once. Weights, adapters included, are the modules'
own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from sheen_lm.loss import computed_in

BLOCK = 256  # positions by which the buffers grow
TWICE = 2 << 30  # bytes of layers that may lie in memory once more, in an order for several rows

Turns = tuple[Tensor, Tensor]  # cosine and signed sine, each (rows or 1, n, 1, head)
Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Layer:
    """What is called and read of a stock layer; `turned`, if it norms heads, are the norms' weights
    of all queries and keys (heads and groups, head).
    """

    query: Map
    key: Map
    value: Map
    out: Map
    gate: Map
    up: Map
    down: Map
    activation: Map
    before: Tensor
    after: Tensor
    turned: Tensor | None

    @classmethod
    def of(cls, layer: Any, heads: int, groups: int, rows: int = 1) -> "Layer":
        attention, mlp, called = layer.self_attn, layer.mlp, partial(linear_of, rows=rows)
        turned = None
        if hasattr(attention, "q_norm"):
            norms = attention.q_norm.weight, attention.k_norm.weight
            turned = torch.cat([norms[0].expand(heads, -1), norms[1].expand(groups, -1)])
        return cls(
            query=called(attention.q_proj), key=called(attention.k_proj),
            value=called(attention.v_proj), out=called(attention.o_proj),
            gate=called(mlp.gate_proj), up=called(mlp.up_proj), down=called(mlp.down_proj),
            activation=mlp.act_fn, before=layer.input_layernorm.weight,
            after=layer.post_attention_layernorm.weight, turned=turned,
        )  # fmt: skip


class Stack:
    """The layers and the last norm of a Llama, a Qwen3 or one of Qwen3-TTS's, and what `rows`
    sequences have fed them so far. All of them are equally long; what is padding is for the masks
    to say.
    """

    def __init__(self, inner: Any, rows: int, columns: int) -> None:
        config = inner.config
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.width, self.share = inner.layers[0].self_attn.head_dim, self.heads // self.groups
        self.epsilon = torch.tensor(config.rms_norm_eps, device=inner.norm.weight.device)
        size = sum(weight.nbytes for weight in inner.layers.parameters())
        together = rows if size <= TWICE else 1
        self.layers = [Layer.of(layer, self.heads, self.groups, together) for layer in inner.layers]
        self.rotary, self.last, self.filled = inner.rotary_emb, inner.norm.weight, 0
        shape = (2, rows, self.groups, columns, self.width)  # of keys and values
        kind = computed_in(self.last)
        self.memory = [self.last.new_empty(shape, dtype=kind) for _ in self.layers]

    def __call__(self, states: Tensor, turns: Turns, mask: Tensor | None) -> Tensor:
        """States (rows, n, hidden) that follow what was fed -> those after the last norm.

        `mask` (rows or 1, 1, n, positions so far and n) is true where a position may look; None
        where it may look at all that was fed and at itself.
        """
        count = states.shape[1]
        if self.filled + count > self.memory[0].shape[3]:
            self.grow(self.filled + count + BLOCK)
        if mask is not None and count > 1:  # heads that share a key stand below one another
            mask = mask.repeat(1, 1, self.share, 1)
        for layer, memory in zip(self.layers, self.memory, strict=True):
            states = states + self.attend(
                layer, self.normed(states, layer.before), memory, turns, mask
            )
            normal = self.normed(states, layer.after)
            states = states + layer.down(layer.activation(layer.gate(normal)) * layer.up(normal))
        self.filled += count
        return self.normed(states, self.last)

    def attend(
        self, layer: Layer, states: Tensor, memory: Tensor, turns: Turns, mask: Tensor | None
    ) -> Tensor:
        rows, count, _ = states.shape
        heads = torch.cat([layer.query(states), layer.key(states)], -1)
        heads = heads.view(rows, count, -1, self.width)
        if layer.turned is not None:
            heads = self.normed(heads, layer.turned)
        half = heads.roll(self.width // 2, -1)  # a head's halves are real and imaginary parts
        heads = torch.addcmul(heads * turns[0], half, turns[1])
        query, key = heads[:, :, : self.heads], heads[:, :, self.heads :]
        value = layer.value(states).view(rows, count, self.groups, self.width)
        end = self.filled + count
        memory[0, :, :, self.filled : end] = key.transpose(1, 2)
        memory[1, :, :, self.filled : end] = value.transpose(1, 2)
        # heads that share a key are queries of one head: no key is copied for each of them
        asked = query.view(rows, count, self.groups, self.share, self.width).permute(0, 2, 3, 1, 4)
        found = scaled_dot_product_attention(
            asked.reshape(rows, self.groups, self.share * count, self.width),
            memory[0, :, :, :end], memory[1, :, :, :end], mask,
        )  # fmt: skip
        found = found.view(rows, self.groups, self.share, count, self.width)
        return layer.out(found.permute(0, 3, 1, 2, 4).reshape(rows, count, -1))

    def normed(self, states: Tensor, weight: Tensor) -> Tensor:
        """The stock RMS norm, in float32, with the fewest calls: a frame takes hundreds."""
        length = torch.linalg.vector_norm(states, dim=-1, keepdim=True, dtype=torch.float32)
        scale = torch.addcmul(self.epsilon, length, length, value=1 / states.shape[-1]).rsqrt_()
        return (states * scale).to(states.dtype).mul_(weight)

    def turns(self, positions: Tensor) -> Turns:
        """What rotates queries and keys at positions (rows or 1, n)."""
        angles = positions[..., None, None].float() * self.rotary.inv_freq
        cosine, sine = angles.cos(), angles.sin()
        both = torch.cat([cosine, cosine], -1), torch.cat([-sine, sine], -1)
        one, other = ((each * self.rotary.attention_scaling).to(self.last.dtype) for each in both)
        return one, other

    def grow(self, columns: int) -> None:
        for number, memory in enumerate(self.memory):
            larger = memory.new_empty((*memory.shape[:3], columns, self.width))
            larger[:, :, :, : self.filled] = memory[:, :, :, : self.filled]
            self.memory[number] = larger

    def keep(self, rows: Tensor) -> None:
        """Forget all sequences but these."""
        self.memory = [memory.index_select(1, rows) for memory in self.memory]


def linear_of(module: nn.Module, rows: int = 1) -> Map:
    """A linear layer without a module's detours; an adapter as it is.

    For more than one row in float32 on a CPU, a copy of the weight in the order in which oneDNN
    reads it: a product of eight rows then takes about half the time (docs/benchmarks.md). It is
    what torch.compile does to a frozen model.
    """
    if type(module) is not nn.Linear:
        return module
    weight, bias = module.weight, module.bias
    if rows == 1 or computed_in(weight) != torch.float32 or not packs(weight.device):
        return partial(linear, weight=weight, bias=bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
    product = torch.ops.mkldnn._linear_pointwise

    def call(states: Tensor) -> Tensor:
        found: Tensor = product(states, packed, bias, "none", [], "")
        return found

    return call


def packs(device: torch.device) -> bool:
    """Whether this processor is one that oneDNN has such products for."""
    known = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    built: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return device.type == "cpu" and known and built
