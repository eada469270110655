"""What sorting by length saves: padding of the batches, and CPU seconds of a training step.

Usage: padding.py DATA [BATCH_SIZE], a folder that `sheen prepare --recipe demo` made.
"""

import sys
import time
from pathlib import Path

import torch

from sheen_cli.backbones import resolve
from sheen_cli.batching import windows
from sheen_cli.objective import total_loss
from sheen_cli.rows import Rows
from sheen_demo import build

STEPS = 20


def main(data: Path, size: int) -> None:
    recipe, backbone = resolve("demo", [])
    rows = Rows(data / "train.jsonl")
    torch.set_num_threads(1)
    model = build(recipe, data / "artifacts")
    print(f"{'order':<12}{'padding':>9}{'s a step':>10}{'frames/s':>10}")
    rates = []
    for name, bucket in (("shuffled", 1), ("bucketed", recipe.train.bucket)):
        order = windows(rows.seconds, size, bucket, seed=0, epoch=0)
        padded = sum(len(window) * max(rows.seconds[window]) for window in order)
        frames, start = 0, time.process_time()
        for window in order[:STEPS]:
            batch = backbone.hook.collate(recipe=recipe, rows=[rows[i] for i in window], seed=None)
            loss = backbone.hook.loss(recipe=recipe, model=model, batch=batch, trace=False)
            total_loss(loss, {key: float(count) for key, count in batch.counts.items()}).backward()
            frames += batch.counts["coarse"]
        seconds = time.process_time() - start
        rates.append(frames / seconds)
        waste = 1 - rows.seconds.sum() / padded
        print(f"{name:<12}{waste:>9.1%}{seconds / STEPS:>10.3f}{rates[-1]:>10.0f}")
    print(f"ratio of frames a second: {rates[1] / rates[0]:.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 16)
