"""A codec as the rest sees it: clips to frames of codes and back, all in float32.

Clips are filled up to whole frames with silence. On a CPU each is encoded by itself: these codecs
are not causal, so what a batch pads a clip with would change its last codes. On a GPU clips of
equally many frames share a batch, where no padding of another's is seen.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np
import torch
from torch import Tensor

from sheen_cli import Clip, SheenError
from sheen_lm.layout import verified

WINDOW = 256  # clips that are sorted by length before they are cut into batches
SEED = 0  # of what a decoder draws: the same codes always sound the same


@dataclass(frozen=True)
class Parts:
    """What a package's model is to us.

    `rate` in Hz, `samples` of a frame, `sizes` of the codebooks, the columns of the codes, and
    `layers`, the model's layer of each, counted from 1. `hear`: sound (B, 1, frames * samples) ->
    codes (B, frames, codebooks); `say`: codes (1, frames, codebooks) -> sound (1, about frames *
    samples).
    """

    library: str  # "snac 1.2.1"
    rate: int
    samples: int
    sizes: tuple[int, ...]
    layers: tuple[int, ...]
    hear: Callable[[Tensor], Tensor]
    say: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Codec:
    """One codec, loaded. `sha256` is its weights'; `revision` the Hub's commit that they are of."""

    name: str
    sha256: str
    revision: str | None
    device: str
    parts: Parts

    @property
    def rate(self) -> int:
        return self.parts.rate

    @property
    def samples(self) -> int:
        """Samples of a frame."""
        return self.parts.samples

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.parts.sizes

    @property
    def layers(self) -> tuple[int, ...]:
        return self.parts.layers

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.rate / self.samples

    def encode(self, audio: np.ndarray) -> np.ndarray:
        """Sound (n,) at the codec's rate -> codes (ceil(n / samples), codebooks) int64. Raises
        SheenError where the sound is no sound.
        """
        (codes,) = self.encode_all([audio])
        return codes

    def encode_all(self, sounds: Sequence[np.ndarray], seconds: float = 0) -> list[np.ndarray]:
        """Several sounds; on a GPU in batches of equally many frames, `seconds` of sound at most,
        or one.
        """
        whole = [self._whole(sound) for sound in sounds]
        found = [np.zeros((0, len(self.sizes)), np.int64) for _ in whole]
        most = seconds * self.rate if self.device == "cuda" else 0
        for batch in batches([len(sound) for sound in whole], most):
            stacked = torch.from_numpy(np.stack([whole[number] for number in batch]))
            with exactly(self.device):
                codes = self.parts.hear(stacked[:, None].to(self.device)).cpu().numpy()
            for number, each in zip(batch, codes, strict=True):
                found[number] = each.astype(np.int64)
        return found

    def decode(self, codes: np.ndarray, where: str = "codes") -> np.ndarray:
        """Codes (frames, codebooks) -> sound (frames * samples,) float32 in -1..1. Raises
        SheenError, naming `where`, for codes that this codec cannot have made.
        """
        known = verified(codes, self.sizes, self.layers, f"{where} for {self.name}")
        length = len(known) * self.samples
        if not length:
            return np.zeros(0, np.float32)
        with exactly(self.device):
            said = self.parts.say(torch.from_numpy(known)[None].to(self.device))
        sound: np.ndarray = said[0].float().cpu().numpy()[:length].clip(-1, 1)
        return np.pad(sound, (0, length - len(sound)))  # DAC's odd strides leave out the last ones

    def _whole(self, sound: np.ndarray) -> np.ndarray:
        if sound.ndim != 1:
            raise SheenError(f"{self.name} hears one channel (n,), not an array {sound.shape}")
        if not np.isfinite(sound).all():
            raise SheenError(f"{self.name} was given sound with samples that are no numbers")
        return np.pad(sound, (0, -len(sound) % self.samples)).astype(np.float32)


def constant(codes: np.ndarray) -> bool:
    """Whether a clip's codes never change, as of silence or of a broken codec."""
    return len(codes) < 2 or bool((codes == codes[0]).all())


def encoded(
    codec: Callable[[], Codec], clips: Iterable[Clip], sizes: Sequence[int],
    layers: Sequence[int], seconds: float = 0,
) -> Iterator[tuple[Clip, np.ndarray]]:  # fmt: skip
    """Every clip with its codes, in order; those that the source brings are checked against `sizes`
    and `layers` and taken, and where it brings all of them no codec is loaded. Batches on a GPU
    hold `seconds` of sound at most. Raises SheenError.
    """
    for brought, some in groupby(clips, lambda clip: clip.codes is not None):
        if brought:
            for clip in some:
                yield clip, verified(clip.codes, sizes, layers, f"{clip.id}, codes of the data")
        else:
            yield from computed(codec(), some, seconds)


def computed(
    codec: Codec, clips: Iterable[Clip], seconds: float
) -> Iterator[tuple[Clip, np.ndarray]]:
    size = WINDOW if seconds and codec.device == "cuda" else 1
    stream = iter(clips)
    while some := list(islice(stream, size)):
        for clip in some:
            if clip.rate != codec.rate:
                raise SheenError(
                    f"{clip.id}: {codec.name} hears sound at {codec.rate} Hz, not at {clip.rate}"
                )
        yield from zip(
            some, codec.encode_all([c.audio for c in some], seconds=seconds), strict=True
        )


def batches(lengths: Sequence[int], most: float) -> Iterator[list[int]]:
    """The numbers of equally long sounds together, in samples `most` at most or one; empty sounds
    are in none.
    """
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: lengths[number]):
        length = lengths[number]
        if not length:
            continue
        if batch and (length != lengths[batch[0]] or (len(batch) + 1) * length > most):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


@contextmanager
def exactly(device: str) -> Iterator[None]:
    """Float32 all through, whatever the training around has set: no autocast, no TF32; and with
    random numbers of its own, which leave the training's as they are.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.inference_mode(),
            torch.autocast(device, enabled=False),
            torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
            seeded(device),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def seeded(device: str) -> Iterator[None]:
    """Random numbers from SEED on, for the block alone."""
    with torch.random.fork_rng([torch.cuda.current_device()] if device == "cuda" else []):
        torch.default_generator.manual_seed(SEED)  # torch.manual_seed would seed all GPUs, too
        if device == "cuda":
            torch.cuda.manual_seed(SEED)
        yield
