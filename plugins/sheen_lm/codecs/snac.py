"""SNAC: three layers of codes, the coarsest of which changes once a frame, the others twice and
four times. A frame's codes in canonical order are L1, L2a, L2b, L3a, L3b, L3c, L3d.

The package's own loader unpickles; here the pickle is opened for tensors alone, once, and kept as
safetensors, whose SHA-256 names the codec.
"""

import hashlib
import os
import pickle
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from sheen_cli import SheenError
from sheen_lm.codecs.codec import Parts
from sheen_lm.codecs.source import PICKLED, WEIGHTS, Source, one_line

COUNTS = (1, 2, 4)  # codes a frame of each layer of the codec for speech


def load(source: Source, device: str, codebooks: int | None) -> tuple[Parts, str]:
    """The codec's parts and the SHA-256 of its weights. Raises SheenError."""
    try:
        from snac import SNAC
    except ImportError:
        raise SheenError(
            f'codec {source.name} needs the package snac: `pip install "sheen-tts[snac]"`'
        ) from None
    if source.config.get("attn_window_size", 32) is not None:  # 32 is the package's own default
        raise SheenError(
            f"codec {source.name} is a SNAC with windows of attention, made for music; speech "
            f"needs the one at 24 kHz, hubertsiuzdak/snac_24khz"
        )
    counts = per_frame(source.config["vq_strides"])
    layers = tuple(n + 1 for n, count in enumerate(counts) for _ in range(count))
    if codebooks not in (None, len(layers)):
        raise SheenError(
            f"codec {source.name} has {len(layers)} codes a frame, not {codebooks}: set "
            f"model.codebooks=null"
        )
    weights = source.need(PICKLED, WEIGHTS)
    if weights.name == PICKLED:
        weights = converted(weights)
    model = built(SNAC, source, weights).to(device).eval().requires_grad_(False)

    def hear(sound: Tensor) -> Tensor:
        return joined(model.encode(sound), counts)

    def say(codes: Tensor) -> Tensor:
        said: Tensor = model.decode(parted(codes, counts))[:, 0]
        return said

    return Parts(
        library=f"snac {version('snac')}",
        rate=int(model.sampling_rate),
        samples=prod(model.encoder_rates) * max(model.vq_strides),
        sizes=(int(model.codebook_size),) * len(layers),
        layers=layers,
        hear=hear,
        say=say,
    ), digest(weights)


def per_frame(strides: Sequence[int]) -> tuple[int, ...]:
    """Codes a frame of each layer, from how many of the model's steps each code lasts."""
    return tuple(max(strides) // stride for stride in strides)


def joined(layers: Sequence[Tensor], counts: Sequence[int] = COUNTS) -> Tensor:
    """Layers (B, frames * count) -> frames (B, frames, sum of counts), the inverse of `parted`."""
    frames = len(layers[0][0])
    return torch.cat([layer.view(len(layer), frames, -1) for layer in layers], 2)


def parted(codes: Tensor, counts: Sequence[int] = COUNTS) -> list[Tensor]:
    """Frames (B, frames, sum of counts) -> a layer's codes (B, frames * count) each."""
    return [layer.flatten(1) for layer in torch.split(codes, list(counts), 2)]


def framed(layers: Sequence[Sequence[int]], counts: Sequence[int] = COUNTS) -> list[list[int]]:
    """A list of codes for each layer, coarse to fine, as frames (frames, sum of counts). Raises
    SheenError for layers that are no 1:2:4 of each other.
    """
    lengths = [len(layer) for layer in layers]
    if len(lengths) != len(counts) or any(
        length != lengths[0] * count for length, count in zip(lengths, counts, strict=True)
    ):
        raise SheenError(
            f"SNAC's layers hold codes as {':'.join(map(str, counts))}, coarse to fine, but these "
            f"hold {', '.join(map(str, lengths))}"
        )
    tensors = [torch.tensor(layer, dtype=torch.long)[None] for layer in layers]
    frames: list[list[int]] = joined(tensors, counts)[0].tolist()
    return frames


def built(maker: Any, source: Source, weights: Path) -> Any:
    """The model of a config with its weights. Raises SheenError where these do not go together."""
    try:
        model = maker(**source.config)
        model.load_state_dict(load_file(weights))
    except (TypeError, RuntimeError, ValueError) as error:  # another key, another weight or shape
        raise SheenError(
            f"codec {source.name}: its config.json and weights are no SNAC: {one_line(error)[:300]}"
        ) from None
    except SafetensorError as error:
        raise SheenError(f"{weights} is damaged ({one_line(error)}); get it again") from None
    return model


def converted(pickled: Path) -> Path:
    """The tensors of a pickle as safetensors, in Hugging Face's own cache, made where they are not
    there yet. Raises SheenError for a pickle that holds anything else, and where it cannot write.
    """
    from huggingface_hub.constants import HF_HOME

    path = Path(HF_HOME) / "sheen" / f"snac-{digest(pickled)}.safetensors"
    if path.is_file():
        return path
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    content = save(tensors(pickled))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(content)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise SheenError(
            f"cannot keep the codec as {path}: {error.strerror}; set HF_HOME to a folder that can "
            f"be written"
        ) from None
    return path


def tensors(pickled: Path) -> dict[str, Tensor]:
    """Raises SheenError for a file that is no pickle of named tensors; nothing in it is run."""
    try:
        state = torch.load(pickled, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise SheenError(
            f"{pickled} is not opened: it is damaged or holds more than tensors "
            f"({one_line(error)[:200]})"
        ) from None
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise SheenError(f"{pickled} holds something else than a model's tensors")
    return {str(name): value.float().contiguous() for name, value in state.items()}


def digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
