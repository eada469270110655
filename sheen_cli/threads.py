"""CPU threads: the number that the recipe asks for, or the fastest of a few."""

import os
import time
from collections.abc import Callable

import torch

TRIES = 3  # runs of the probe per number of threads; the first one warms up


def cores() -> int:
    """Processors that this process may use; no more than OMP_NUM_THREADS, where that is set."""
    known = (
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(len(known), int(limit)) if limit.isdecimal() and int(limit) else len(known)


def fastest(probe: Callable[[], object]) -> int:
    """Of 1, 2, 4 ... and all cores, the number of threads at which `probe()` is quickest."""
    times: dict[int, float] = {}
    for threads in sorted({cores(), *(2**n for n in range(8) if 2**n < cores())}):
        torch.set_num_threads(threads)
        tries = []
        for _ in range(TRIES):
            start = time.perf_counter()
            probe()
            tries.append(time.perf_counter() - start)
        times[threads] = min(tries[1:])
    return min(times, key=lambda threads: times[threads])
