"""What the machine can do, found by doing it: PyTorch, devices, precisions, attention. Runs in a
process of its own, since a broken driver may hang or crash.
"""

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

INDEX = "https://download.pytorch.org/whl"
CUDA = f"pip install torch --index-url {INDEX}/cu126"  # cu130 and so on for newer GPUs
CPU = f"pip install torch --index-url {INDEX}/cpu"
AWAY = "pip uninstall -y torch"  # pip counts any build as installed
BOTH = f"for an NVIDIA GPU `{CUDA}`, without one `{CPU}`"
AGAIN = f"`{AWAY}`, then {BOTH}"

Answer = dict[str, Any]  # the fields of a doctor.Check


def checks() -> Iterator[Answer]:
    """The checks "torch", "device", "precision" and "attention", as fields of a doctor.Check."""
    try:
        import torch
    except Exception as error:  # a build that lacks a library, or none at all
        yield answer("torch", False, f"{type(error).__name__}: {error}", f"install it: {BOTH}")
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    yield answer("torch", True, f"{torch.__version__}, built for {build}")
    apple = torch.backends.mps.is_available()
    device = "cuda" if torch.cuda.is_available() else "mps" if apple else "cpu"  # as training does
    yield from devices(device)
    yield precision(device)
    yield attention(device)


def answer(name: str, ok: bool | None, value: str, remedy: str | None = None) -> Answer:
    return {"name": name, "ok": ok, "value": " ".join(value.split()), "remedy": remedy}


def devices(device: str) -> Iterator[Answer]:
    """A line for each GPU, or for the CPU, and one for a GPU that torch cannot use."""
    import torch

    for number in range(torch.cuda.device_count() if device == "cuda" else 0):
        facts = torch.cuda.get_device_properties(number)
        free = torch.cuda.mem_get_info(number)[0]
        yield answer(
            f"device cuda:{number}",
            True,
            f"{facts.name}, {facts.total_memory / 2**30:.1f} GiB of memory "
            f"({free / 2**30:.1f} GiB free), capability {facts.major}.{facts.minor}",
        )
    if device != "cuda":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        name = "Apple's GPU (mps)" if device == "mps" else f"CPU ({platform.machine()})"
        yield answer("device", True, f"{name}, {cores} cores, {memory:.1f} GiB of memory")
        if seen := driver():
            yield answer("gpu", None, *unused(seen, torch.version.cuda))


def driver() -> str | None:
    """What an NVIDIA driver says of itself, whatever torch sees; None where there is none."""
    if program := shutil.which("nvidia-smi"):
        question = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
        try:
            out = subprocess.run(question, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"nvidia-smi, which fails ({type(error).__name__})"
        if out.returncode == 0 and out.stdout.strip():
            return out.stdout.splitlines()[0].replace(", ", ", driver ")
    if Path("/proc/driver/nvidia/version").is_file():
        return "an NVIDIA driver"
    return None


def unused(seen: str, cuda: str | None) -> tuple[str, str]:
    """What to say, and what to do, of a GPU that a torch built for `cuda` does not use."""
    if cuda is None:
        text = f"{seen} is there, but this torch is built for the CPU alone"
        return text, f"to use it: {AGAIN}"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1"):
        return f"{seen} is hidden by CUDA_VISIBLE_DEVICES={hidden}", "unset CUDA_VISIBLE_DEVICES"
    text = f"{seen} is there, but torch built for CUDA {cuda} cannot use it"
    return text, f"update the driver, or take another torch: {AGAIN}"


def precision(device: str) -> Answer:
    """One forward and backward pass of a matrix product in each precision of train.precision."""
    import torch

    def work(kind: torch.dtype) -> None:
        left = torch.randn(32, 32, device=device, requires_grad=True)
        with (
            torch.autocast(device, kind) if kind is not torch.float32 else nullcontext()
        ):  # as training does
            total = (left @ torch.randn(32, 32, device=device)).float().square().mean()
        total.backward()  # type: ignore[no-untyped-call]
        assert left.grad is not None
        if not torch.isfinite(left.grad).all():
            raise ArithmeticError("the gradient is not finite")

    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if device != "cpu":  # where training refuses it
        kinds["fp16"] = torch.float16
    works, fails = tried({name: partial(work, kind) for name, kind in kinds.items()})
    remedy = None if not fails else f"leave out train.precision={' and '.join(fails)}"
    value = ", ".join([*works, *(f"not {name} ({why})" for name, why in fails.items())])
    value += "; fp16 needs a GPU" if device == "cpu" else ""
    return answer("precision", "fp32" in works, value, remedy)


def attention(device: str) -> Answer:
    """The attention implementations that work here."""
    import torch

    def sdpa() -> None:
        some = torch.randn(1, 2, 8, 16, device=device, requires_grad=True)
        out = torch.nn.functional.scaled_dot_product_attention(some, some, some, is_causal=True)
        out.sum().backward()  # type: ignore[no-untyped-call]

    def flash() -> None:
        from importlib import import_module

        function = import_module("flash_attn").flash_attn_func
        some = torch.randn(1, 8, 2, 16, device=device, dtype=torch.bfloat16, requires_grad=True)
        function(some, some, some, causal=True).sum().backward()

    from importlib.util import find_spec

    wanted: dict[str, Callable[[], None]] = {"sdpa": sdpa}
    if find_spec("flash_attn"):
        wanted["flash_attention_2"] = flash
    works, fails = tried(wanted)
    value = ", ".join([*works, *(f"not {name} ({why})" for name, why in fails.items())])
    if "flash_attention_2" in fails:
        return answer("attention", "sdpa" in works, value, "`pip uninstall flash-attn`")
    return answer("attention", "sdpa" in works, value, None if works else AGAIN)


def tried(attempts: dict[str, Callable[[], Any]]) -> tuple[list[str], dict[str, str]]:
    """Which attempts went well, and what went wrong with the others."""
    works, fails = list[str](), dict[str, str]()
    for name, attempt in attempts.items():
        try:
            attempt()
            works.append(name)
        except Exception as error:  # whatever it is, it is the answer
            first = (str(error).splitlines() or [""])[0][:200]
            fails[name] = f"{type(error).__name__}: {first}"
    return works, fails
