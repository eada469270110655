"""The demo's codec: how far clips are from themselves after the round trip, and from others.

Usage: codec_round_trip.py DATA, a folder that `sheen prepare --recipe demo` made from audio files.
"""

import sys
from pathlib import Path

import torch

from sheen_cli.audio import load
from sheen_cli.rows import Rows
from sheen_demo import codec
from sheen_demo.codec import Codec


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Mean absolute difference of two log-mel sequences (n, 80) over their common length, "
    "in nats."""
    common = min(len(one), len(other))
    return float((one[:common] - other[:common]).abs().mean())


def main(data: Path) -> None:
    fitted = Codec.load(data / "artifacts" / "codec.safetensors")
    rows = [
        row
        for path in sorted(data.glob("*.jsonl"))
        if path.stem != "rejected"
        for row in Rows(path)
    ]
    mels = [
        codec.stacked_mels(load(Path(row["audio"]), codec.RATE, 0, 1e9)).view(-1, codec.MELS)
        for row in rows
    ]
    own, nearest_other, first = [], [], 0
    for number, row in enumerate(rows):
        samples = fitted.decode(torch.tensor(row["audio_codes"]))
        back = codec.stacked_mels(samples).view(-1, codec.MELS)
        near = [distance(back, mel) for mel in mels]
        own.append(near[number])
        nearest_other.append(min(near[:number] + near[number + 1 :]))
        first += near[number] == min(near)
    print(f"clips                        {len(rows)}")
    print(f"mel distance to itself       {sum(own) / len(own):.3f}")
    print(f"mel distance to the nearest other  {sum(nearest_other) / len(own):.3f}")
    print(f"rank 1                       {first / len(rows):.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
