"""AdamW for weights that lie in two halves: 10 bytes a parameter, gradient included, where float32
masters, their moments and bfloat16 copies take 18.

A float32 weight is the bfloat16 number next to it, which the model computes with, and the 16 bits
that this rounding leaves over, which lie in the optimizer's state: no step is lost, as it is where
weights are bfloat16 alone (Kalamkar et al. 2020, "Optimizing Deep Learning Recommender Systems'
Training On CPU Cluster Architectures", split SGD). The moments are bfloat16. A second moment's step
is often smaller than half a unit in its last place; it is rounded up or down by chance, so that on
average nothing of it is lost.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

CACHED, BLOCK = 1 << 17, 1 << 24  # numbers in float32 at a time: on a CPU, and elsewhere
REST, FIRST, SECOND = "rest", "exp_avg", "exp_avg_sq"


def split(wide: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 numbers as the nearest bfloat16 and what is left over. That is 16 bits of an integer,
    called bfloat16 as well: optimizers cast the state that they load to their parameter's dtype.
    """
    bits = wide.view(torch.int32)
    near = (bits + 0x8000) >> 16
    rest = bits - (near << 16)
    return as_bfloat16(near), as_bfloat16(rest)


def join(near: Tensor, rest: Tensor) -> Tensor:
    """The float32 numbers again, every bit of them."""
    bits = near.view(torch.int16).int() << 16
    return bits.add_(rest.view(torch.int16)).view(torch.float32)


def rounded_by_chance(wide: Tensor, noise: Tensor) -> Tensor:
    """Float32 numbers as one of the two bfloat16 around them, the nearer one more often: `noise`
    holds as many integers of 16 random bits.
    """
    return as_bfloat16((wide.view(torch.int32) + noise) >> 16)


def as_bfloat16(bits: Tensor) -> Tensor:
    return bits.to(torch.int16).view(torch.bfloat16)


class SplitAdamW(Optimizer):
    """torch.optim.AdamW's steps. Float32 matrices that it is given become bfloat16 at once, and
    what is bfloat16 already gets the rest that it lacks; float32 vectors, such as norms and biases,
    stay as they are.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.ndim >= 2 or weight.dtype == torch.bfloat16:
                    wide = weight.data.float().contiguous()
                    weight.data, self.state[weight][REST] = split(wide)
        self.drawn: tuple[int, Tensor] | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self.change(weight, group)

    def change(self, weight: Tensor, group: dict[str, Any]) -> None:
        """A step of one parameter, block by block."""
        state = self.state[weight]
        if FIRST not in state:
            state["step"] = torch.tensor(0.0)
            state |= {name: torch.zeros_like(weight) for name in (FIRST, SECOND)}
        state["step"] += 1
        step = int(state["step"])
        noise = self.noise(step, weight.device) if REST in state else None
        names = [name for name in (REST, FIRST, SECOND) if name in state]
        size = block_of(weight.device)
        every = [weight, weight.grad, *(state[name] for name in names)]
        for near, grad, *kept in zip(*(t.view(-1).split(size) for t in every), strict=True):
            update(near, grad.float(), dict(zip(names, kept, strict=True)), step, group, noise)

    def noise(self, step: int, device: torch.device) -> Tensor:
        """The chances of a step, the same for each block. They hang on its number and on nothing
        drawn before, so that a resumed run has them again.
        """
        if self.drawn is None or self.drawn[0] != step:
            generator = torch.Generator(device).manual_seed(step)
            bits = torch.empty(block_of(device), dtype=torch.int32, device=device)
            self.drawn = step, bits.random_(0, 1 << 16, generator=generator)
        return self.drawn[1]


def block_of(device: torch.device) -> int:
    return CACHED if device.type == "cpu" else BLOCK


def update(
    weight: Tensor,
    grad: Tensor,
    state: dict[str, Tensor],
    step: int,
    group: dict[str, Any],
    noise: Tensor | None,
) -> None:
    """AdamW's step number `step` on a block of a parameter, in place."""
    beta1, beta2 = group["betas"]
    wide = weight if noise is None else join(weight, state[REST])
    first, second = state[FIRST].float(), state[SECOND].float()
    first.lerp_(grad, 1 - beta1)
    second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    scale = second.sqrt().add_(group["eps"] * math.sqrt(1 - beta2**step))
    rate = -group["lr"] * math.sqrt(1 - beta2**step) / (1 - beta1**step)
    wide.mul_(1 - group["lr"] * group["weight_decay"]).addcdiv_(first, scale, value=rate)
    if noise is not None:
        near, rest = split(wide)
        weight.copy_(near)
        state[REST].copy_(rest)
        state[FIRST].copy_(first)
        state[SECOND].copy_(rounded_by_chance(second, noise[: len(second)]))
