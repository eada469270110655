"""A benchmark's parts in processes of their own, and what one has held."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def spawn(kind: str, folder: str | Path) -> dict[str, Any]:
    """Run a part of this benchmark in a fresh process; the last line of its output, as JSON."""
    out = subprocess.run(
        [sys.executable, "-W", "ignore", *sys.argv, "--child", kind, str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    if out.returncode:
        raise SystemExit(f"{kind}: {out.stderr[-3000:]}")
    facts: dict[str, Any] = json.loads(out.stdout.splitlines()[-1])
    return facts


def peak() -> float:
    """The most memory that this process has held, in bytes."""
    status = Path("/proc/self/status").read_text()
    return float(status.partition("VmHWM:")[2].split()[0]) * 1024
