"""What `sheen --help` costs: CPU and wall seconds of whole processes, the median of several."""

import resource
import statistics
import subprocess
import sys
import time

RUNS = 7
PROGRAMS = {
    "python": "pass",
    "sheen --help": "from sheen_cli.cli import app; app(['--help'])",
    "import torch": "import torch",
    "import sheen_demo": "import sheen_demo",
}


def cost(program: str) -> tuple[float, float]:
    """CPU and wall seconds of one process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main() -> None:
    print(f"{'program':<20}{'CPU s':>8}{'wall s':>8}")
    for name, program in PROGRAMS.items():
        cost(program)  # fills the disk's cache
        cpu, wall = zip(*(cost(program) for _ in range(RUNS)), strict=True)
        print(f"{name:<20}{statistics.median(cpu):>8.2f}{statistics.median(wall):>8.2f}")


if __name__ == "__main__":
    main()
