"""Stand-ins for modules of the stock package while it is trained: the same arithmetic, less memory
and time.

Written out, as the package has it, a norm keeps two float32 copies of its input for the backward
pass, and float32 weights make its output float32 under bf16 autocast; each layer has four norms.
Autocast rounds each weight anew for every batch, though it changes once a window. The attention of
the sub-talker runs over 16 rows, for which the fused kernel of CPUs is slower than plain products.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class Normed(torch.autograd.Function):
    """x (..., n) times its inverse root mean square, rounded to its dtype, times weight (n,)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).to(x.dtype) * weight.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        grad, normed = grads[0].float(), x.float() * scale
        by_weight = None
        if ctx.needs_input_grad[1]:
            by_weight = (grad * normed).flatten(0, -2).sum(0).to(weight.dtype)
        if not ctx.needs_input_grad[0]:
            return None, by_weight, None
        grad = grad * weight
        shared = (grad * normed).mean(-1, keepdim=True)
        return grad.sub_(normed.mul_(shared)).mul_(scale).to(x.dtype), by_weight, None


class Norm(nn.Module):
    """In the place of a stock norm, with its weight."""

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = weight, epsilon

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = Normed.apply(x, self.weight, self.epsilon)  # type: ignore[no-untyped-call]
        return found


class Rounded(torch.autograd.Function):
    """A float32 weight in bfloat16, given as its copy; the gradient goes to the weight."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, copy: Tensor) -> Tensor:
        return copy.view_as(copy)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].float(), None


class Linear(nn.Module):
    """In the place of a trained nn.Linear, with its parameters; under bf16 autocast the copy of its
    weight is made once for all batches of an optimizer step.
    """

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.copy, self.version = torch.empty(0), -1  # no buffer: it is never saved

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        rounding = torch.is_autocast_enabled(device) and torch.is_grad_enabled()
        if not rounding or torch.get_autocast_dtype(device) != torch.bfloat16:
            return linear(x, self.weight, self.bias)
        weight: Tensor = Rounded.apply(self.weight, self.rounded())  # type: ignore[no-untyped-call]
        return linear(x, weight, self.bias)

    @torch.no_grad()
    def rounded(self) -> Tensor:
        """The weight in bfloat16, rounded anew at the start of every window, where no gradient has
        been summed up yet: AdamW's fused step changes the weight and not its version.
        """
        version = self.weight._version
        if self.weight.grad is None or self.version != version:
            self.copy, self.version = self.weight.to(torch.bfloat16), version
        return self.copy


def lighten(talker: Any) -> None:
    """Put our modules in the places of the stock ones, in both stacks; names and weights stay."""
    for parent in list(talker.modules()):
        for name, module in list(parent.named_children()):
            if type(module).__name__ == "Qwen3TTSRMSNorm":
                stock: Any = module
                setattr(parent, name, Norm(stock.weight, stock.variance_epsilon))
            elif type(module) is nn.Linear and module.weight.requires_grad:
                plain: Any = module
                setattr(parent, name, Linear(plain.weight, plain.bias))
            elif name == "lora_A":  # PEFT's own cast of the input to float32 is undone by autocast
                parent.cast_input_dtype_enabled = False
    inner = talker.code_predictor.model.config
    if talker.codec_head.weight.device.type == "cpu" and inner._attn_implementation == "sdpa":
        inner._attn_implementation = "eager"
