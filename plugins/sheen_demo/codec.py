"""The demo's codec: log-mels at 16 kHz, four frames stacked to 20 Hz, residual k-means, Griffin-
Lim back.

Fitted from the data in `prepare` and kept as safetensors, so that it costs no download and no
licence.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sheen_cli import SheenError

RATE = 16_000
HOP = 200  # 80 mel frames a second
STACK = 4  # mel frames a codec frame
FRAME = HOP * STACK  # samples a codec frame: 20 Hz
N_FFT = 1024
WINDOW = 800
MELS = 80
FLOOR = 3e-3  # of the mel magnitude: some 60 dB below loud speech
BOOKS = 4
SIZE = 128  # codes a book


@dataclass(frozen=True)
class Codec:
    """Codebooks over stacked log-mels. `books` (4, 128, 320) float32; `mean` and `scale` (80,)
    normalise the mels.
    """

    books: Tensor
    mean: Tensor
    scale: Tensor

    def encode(self, samples: np.ndarray) -> Tensor:
        """Samples (n,) -> codes (ceil(n / 800), 4) int64."""
        residual = normalise(stacked_mels(samples), self.mean, self.scale)
        codes = []
        for book in self.books:
            code = torch.cdist(residual, book).argmin(1)
            residual = residual - book[code]
            codes.append(code)
        return torch.stack(codes, 1)

    def decode(self, codes: Tensor, iterations: int = 40) -> np.ndarray:
        """Codes (T, 4) -> samples (800 T,) float32."""
        if not len(codes):
            return np.zeros(0, np.float32)
        stacked = sum(book[column] for book, column in zip(self.books, codes.T, strict=True))
        mels = (stacked.view(-1, MELS) * self.scale + self.mean).exp()
        return griffin_lim(magnitudes(mels), iterations)

    def save(self, path: Path) -> None:
        save_file({"books": self.books, "mean": self.mean, "scale": self.scale}, path)

    @staticmethod
    def load(path: Path) -> "Codec":
        return Codec(**load_file(path))


def fit(clips: Iterable[np.ndarray], seed: int = 0, limit: int = 40_000) -> Codec:
    """Fit the codebooks on up to `limit` codec frames, sampled evenly over all clips (arrays of
    samples).
    """
    generator = torch.Generator().manual_seed(seed)
    frames, seen = torch.zeros(0, STACK * MELS), 0
    for clip in clips:  # reservoir sampling: every frame stays with the same chance
        mine = stacked_mels(clip)
        places = torch.arange(seen, seen + len(mine))
        late = places >= limit
        chance = torch.rand(int(late.sum()), generator=generator)
        places[late] = (chance * (places[late] + 1)).long()
        if seen < limit:
            frames = torch.cat([frames, torch.zeros(min(limit - seen, len(mine)), STACK * MELS)])
        kept = places < len(frames)
        frames[places[kept]] = mine[kept]
        seen += len(mine)
    if not seen:
        raise SheenError("there is nothing to fit the codec to: no row is for training")
    mels = frames.view(-1, MELS)
    mean, scale = mels.mean(0), mels.std(0).clamp_min(1e-3)
    residual = normalise(frames, mean, scale)
    books = []
    for _ in range(BOOKS):
        book = k_means(residual, SIZE, generator)
        books.append(book)
        residual = residual - book[torch.cdist(residual, book).argmin(1)]
    return Codec(torch.stack(books), mean, scale)


def k_means(points: Tensor, size: int, generator: torch.Generator, rounds: int = 20) -> Tensor:
    """Lloyd's algorithm; points (n, d) -> centres (size, d). A centre that loses all points moves
    to the worst one.
    """
    start = torch.randperm(len(points), generator=generator)[:size]
    centres = points[start.repeat(-(-size // len(start)))[:size]].clone()
    for _ in range(rounds):
        distance, owner = torch.cdist(points, centres).min(1)
        sums = torch.zeros_like(centres).index_add_(0, owner, points)
        counts = torch.bincount(owner, minlength=size)
        centres = sums / counts.clamp_min(1)[:, None]
        empty = (counts == 0).nonzero().flatten()
        worst = distance.topk(min(len(empty), len(points))).indices
        centres[empty[: len(worst)]] = points[worst]
    return centres


def normalise(stacked: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return ((stacked.view(-1, MELS) - mean) / scale).view(len(stacked), -1)


def stacked_mels(samples: np.ndarray) -> Tensor:
    """Samples (n,) -> (ceil(n / 800), 320) log-mels, four frames side by side."""
    wave = torch.as_tensor(np.pad(samples, (0, -len(samples) % FRAME)), dtype=torch.float32)
    magnitude = stft(wave).abs()[:, : len(wave) // HOP]
    return (mel_filters() @ magnitude).clamp_min(FLOOR).log().T.reshape(-1, STACK * MELS)


def stft(wave: Tensor) -> Tensor:
    window = torch.hann_window(WINDOW)
    return torch.stft(
        wave, N_FFT, HOP, WINDOW, window, center=True, pad_mode="constant", return_complex=True
    )


@cache
def mel_filters() -> Tensor:
    """Triangular filters (80, 513) on the HTK mel scale, each summing to one."""

    def mel(hertz: Tensor) -> Tensor:
        return 2595 * torch.log10(1 + hertz / 700)

    edges = torch.linspace(
        float(mel(torch.tensor(20.0))), float(mel(torch.tensor(RATE / 2))), MELS + 2
    )
    edges = 700 * (10 ** (edges / 2595) - 1)
    bins = torch.linspace(0, RATE / 2, N_FFT // 2 + 1)
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    filters = torch.minimum(rise, fall).clamp_min(0)
    return filters / filters.sum(1, keepdim=True).clamp_min(1e-8)


def magnitudes(mels: Tensor, rounds: int = 30) -> Tensor:
    """Mel magnitudes (n, 80) -> spectrum (513, n), the non-negative least-squares solution by
    multiplicative updates.
    """
    filters, target = mel_filters(), mels.T
    spectrum = filters.T @ target
    up = filters.T @ target
    for _ in range(rounds):
        spectrum = spectrum * up / (filters.T @ (filters @ spectrum)).clamp_min(1e-8)
    return spectrum


def griffin_lim(magnitude: Tensor, iterations: int, momentum: float = 0.99) -> np.ndarray:
    """Spectrum (513, n) -> samples (200 n,) float32 by the fast Griffin-Lim algorithm (Perraudin
    et al., 2013).
    """
    length = magnitude.shape[1] * HOP
    magnitude = torch.cat([magnitude, magnitude[:, -1:]], 1)  # the frame centred on the end
    window = torch.hann_window(WINDOW)
    generator = torch.Generator().manual_seed(0)
    angles = torch.exp(2j * torch.pi * torch.rand(magnitude.shape, generator=generator))
    previous = torch.zeros_like(angles)
    for _ in range(iterations):
        wave = torch.istft(
            magnitude * angles, N_FFT, HOP, WINDOW, window, center=True, length=length
        )
        rebuilt = stft(wave)
        angles = rebuilt - previous * (momentum / (1 + momentum))
        angles = angles / angles.abs().clamp_min(1e-12)
        previous = rebuilt
    wave = torch.istft(magnitude * angles, N_FFT, HOP, WINDOW, window, center=True, length=length)
    return wave.clamp(-1, 1).numpy()
