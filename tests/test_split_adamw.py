"""AdamW on weights in two halves: against float32 AdamW, and against bfloat16 alone."""

import numpy as np
import pytest
import torch

from sheen_cli.split_adamw import SplitAdamW, join, rounded_by_chance, split


def bits(wide: torch.Tensor) -> torch.Tensor:
    return wide.view(torch.int32)


def test_both_halves_are_the_whole_number_bit_for_bit() -> None:
    chance = np.random.default_rng(0)
    every = chance.integers(-(2**31), 2**31, 1_000_000, dtype=np.int64).astype(np.int32)
    wide = torch.from_numpy(every).view(torch.float32)
    wide = wide[wide.abs() < 1e38]  # the largest round to infinity, as they do to bfloat16
    edges = torch.tensor([0.0, -0.0, 1.0, 1 + 2**-8, -1 - 2**-8, 1 + 2**-9, 2 - 2**-23, 1e-45])
    for some in (wide, edges):
        near, rest = split(some)
        assert near.dtype == rest.dtype == torch.bfloat16
        assert torch.equal(bits(join(near, rest)), bits(some))
        # a tie is rounded away from zero, which torch rounds to even
        assert (near != some.bfloat16()).float().mean() < 0.3
        assert ((near.double() - some.double()).abs()
                <= (some.bfloat16().double() - some.double()).abs()).all()  # fmt: skip


def test_rounding_by_chance_is_right_on_average() -> None:
    """A thousand times the same decay, each smaller than half a unit of the last place."""
    value, plain = torch.full((4096,), 1.7), torch.tensor(1.7).bfloat16()
    kept = value.bfloat16()
    for step in range(1000):
        noise = torch.empty(4096, dtype=torch.int32)
        noise.random_(0, 1 << 16, generator=torch.Generator().manual_seed(step))
        kept = rounded_by_chance(kept.float() * 0.999, noise)
        plain = (plain.float() * 0.999).bfloat16()
    exact = 1.7 * 0.999**1000
    assert float(kept.float().mean()) == pytest.approx(exact, rel=0.02)
    assert float(plain) > 2 * exact  # to the nearest, it soon stands still


def learnt(make: object, kind: torch.dtype, steps: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights (32, 64) before and after that many noisy steps towards others, as float32."""
    torch.manual_seed(0)
    start, goal = torch.randn(32, 64).bfloat16().float(), torch.randn(32, 64)
    weight, bias = (
        torch.nn.Parameter(start.to(kind, copy=True)),
        torch.nn.Parameter(torch.zeros(32)),
    )
    optimizer = make([{"params": [weight, bias], "weight_decay": 0.01}], lr=1e-4,
                     betas=(0.9, 0.999))  # type: ignore[operator]  # fmt: skip
    chance = torch.Generator().manual_seed(1)
    for _ in range(steps):
        noise = torch.randn(32, 64, generator=chance)
        weight.grad = (weight.detach().float() - goal + noise).to(weight.dtype)
        bias.grad = torch.ones(32)
        optimizer.step()
    rest = optimizer.state[weight].get("rest")
    found = weight.detach()
    return start, join(found, rest) if rest is not None else found.float()


def test_it_learns_what_float32_learns_where_bfloat16_alone_does_not() -> None:
    start, exact = learnt(torch.optim.AdamW, torch.float32)
    _, ours = learnt(SplitAdamW, torch.float32)
    _, given = learnt(SplitAdamW, torch.bfloat16)  # as a base is stored, which here loses nothing
    _, plain = learnt(torch.optim.AdamW, torch.bfloat16)
    moved = (exact - start).norm()
    assert moved > 1e-3 * start.norm()
    assert (ours - exact).norm() < 0.03 * moved
    assert torch.equal(given, ours)
    assert (plain - exact).norm() > 0.3 * moved


def test_vectors_stay_in_float32_and_are_those_of_adamw() -> None:
    torch.manual_seed(0)
    given, pushes = torch.randn(7), torch.randn(5, 7)
    found = []
    for make in (torch.optim.AdamW, SplitAdamW):
        weight = torch.nn.Parameter(given.clone())
        optimizer = make([{"params": [weight], "weight_decay": 0.1}], lr=0.1, betas=(0.9, 0.99))
        for push in pushes:
            weight.grad = push.clone()
            optimizer.step()
        found.append(weight.detach())
    assert found[1].dtype == torch.float32
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


def test_it_takes_ten_bytes_a_parameter_gradient_included() -> None:
    weight = torch.nn.Parameter(torch.randn(300, 1000))
    optimizer = SplitAdamW([{"params": [weight], "weight_decay": 0.0}], 1e-3, (0.9, 0.99))
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    held = [weight, weight.grad, *optimizer.state[weight].values()]
    assert sum(each.nbytes for each in held if each.ndim) == 10 * weight.numel()


def test_its_state_goes_through_a_file(tmp_path: object) -> None:
    """With another process's generator in any state: the next steps are the same bits."""
    torch.manual_seed(0)
    given, pushes = torch.randn(40, 50), torch.randn(6, 40, 50).bfloat16()

    def taught(weight: torch.nn.Parameter, optimizer: SplitAdamW, some: torch.Tensor) -> None:
        for push in some:
            weight.grad = push.clone()
            optimizer.step()

    def made(value: torch.Tensor) -> tuple[torch.nn.Parameter, SplitAdamW]:
        weight = torch.nn.Parameter(value.clone())
        groups = [{"params": [weight], "weight_decay": 0.01}]
        return weight, SplitAdamW(groups, 1e-4, (0.9, 0.999))

    once, first = made(given)
    taught(once, first, pushes[:3])
    path = f"{tmp_path}/optimizer.pt"
    torch.save(first.state_dict(), path)
    again, second = made(once.detach().float())  # as a checkpoint's bfloat16 weights are loaded
    torch.manual_seed(9)
    torch.rand(3)
    second.load_state_dict(torch.load(path, weights_only=True))
    for weight, optimizer in ((once, first), (again, second)):
        taught(weight, optimizer, pushes[3:])
    assert torch.equal(once, again)
    for name, value in first.state[once].items():
        other = second.state[again][name]
        assert torch.equal(*(each.view(1, -1).view(torch.int16) for each in (value, other))), name
