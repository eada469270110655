"""Stand-ins for modules of the stock package while it is trained: the same arithmetic, less memory
and time.

Written out, as the package has it, a norm keeps two float32 copies of its input for the backward
pass, and float32 weights make its output float32 under bf16 autocast; each layer has four norms.
An MLP keeps four copies of its widest rows, of which two can be had again. On a CPU memory is
slower than arithmetic: rows are treated some at a time, and the attention of the sub-talker, over
16 rows, is plain products, since its fused kernel there is made for long sequences.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

CACHED = 1 << 18  # numbers at a time on a CPU, whose caches then hold all that is made of them


class Normed(torch.autograd.Function):
    """x (..., n) times its inverse root mean square, rounded to its dtype, times weight (n,)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        found, scale = x.new_empty(x.shape), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
        narrow = weight.to(x.dtype)
        for some, out, root in pieces(x, found, scale):
            wide = some.float()
            root.copy_(wide.square().mean(-1, keepdim=True).add_(epsilon).rsqrt_())
            torch.mul((wide * root).to(x.dtype), narrow, out=out)
        ctx.save_for_backward(x, weight, scale)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        found, wide = x.new_empty(x.shape), weight.float()
        by_weight = torch.zeros_like(wide)
        for some, out, root, due in pieces(x, found, scale, grads[0]):
            normed, grad = some.float() * root, due.float()
            by_weight += (grad * normed).sum(0)
            grad = grad * wide
            shared = (grad * normed).mean(-1, keepdim=True)
            out.copy_(grad.sub_(normed.mul_(shared)).mul_(root))
        return found, by_weight.to(weight.dtype), None


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The rows of tensors (..., n), some at a time; new ones can be written to."""
    first = tensors[0]
    flat = [each.reshape(-1, each.shape[-1]) for each in tensors]
    size = max(1, CACHED // first.shape[-1]) if first.device.type == "cpu" else len(flat[0])
    return zip(*(torch.split(each, size) for each in flat), strict=True)


class Norm(nn.Module):
    """In the place of a stock norm, with its weight."""

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = weight, epsilon

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = Normed.apply(x, self.weight, self.epsilon)  # type: ignore[no-untyped-call]
        return found


class Gating(torch.autograd.Function):
    """silu(gate) times up, of which nothing but these two is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        found = gate.new_empty(gate.shape)
        for some, other, out in pieces(gate, up, found):
            torch.mul(silu(some), other, out=out)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        by_gate, by_up = gate.new_empty(gate.shape), up.new_empty(up.shape)
        for some, other, due, out, out_up in pieces(gate, up, grads[0], by_gate, by_up):
            torch.mul(due, silu(some), out=out_up)
            out.copy_(torch.ops.aten.silu_backward(due * other, some))
        return by_gate, by_up


class Mlp(nn.Module):
    """In the place of a stock MLP, with its projections."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = stock.gate_proj, stock.up_proj
        self.down_proj, self.act_fn = stock.down_proj, stock.act_fn

    def forward(self, x: Tensor) -> Tensor:
        gated = Gating.apply(self.gate_proj(x), self.up_proj(x))  # type: ignore[no-untyped-call]
        found: Tensor = self.down_proj(gated)
        return found


def lighten(talker: Any) -> None:
    """Put our modules in the places of the stock ones, in both stacks; names and weights stay."""
    for parent in list(talker.modules()):
        for name, module in list(parent.named_children()):
            if type(module).__name__ == "Qwen3TTSRMSNorm":
                stock: Any = module
                setattr(parent, name, Norm(stock.weight, stock.variance_epsilon))
            elif name == "mlp" and "SiLU" in type(getattr(module, "act_fn", None)).__name__:
                setattr(parent, name, Mlp(module))
            elif name == "lora_A":  # PEFT's own cast of the input to float32 is undone by autocast
                parent.cast_input_dtype_enabled = False
    inner = talker.code_predictor.model.config
    if talker.codec_head.weight.device.type == "cpu" and inner._attn_implementation == "sdpa":
        inner._attn_implementation = "eager"
