"""The codecs that transformers has: Mimi, DAC, EnCodec, and XCodec2 in its newer versions."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import version
from math import prod
from typing import Any

import torch
from torch import Tensor

from sheen_cli import SheenError
from sheen_lm.codecs.codec import Parts
from sheen_lm.codecs.source import FEATURES, WEIGHTS, Source, one_line

Change = Callable[[Tensor], Tensor]
CLASSES = {
    "mimi": "MimiModel", "dac": "DacModel", "encodec": "EncodecModel", "xcodec2": "Xcodec2Model",
}  # fmt: skip


def load(name: str, source: Source, device: str, codebooks: int | None) -> tuple[Parts, str]:
    """The codec's parts and the SHA-256 of its weights. Raises SheenError."""
    makers = {"mimi": mimi, "dac": dac, "encodec": encodec, "xcodec2": xcodec2}
    model = built(name, source).to(device)
    with source.need(WEIGHTS).open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return makers[name](model, source, codebooks), sha256


def mimi(model: Any, source: Source, codebooks: int | None) -> Parts:
    config = model.config
    count = chosen(source, codebooks, config.num_quantizers)

    def hear(sound: Tensor) -> Tensor:
        found: Tensor = model.encode(sound, num_quantizers=count).audio_codes
        return found.transpose(1, 2)

    def say(codes: Tensor) -> Tensor:
        said: Tensor = model.decode(codes.transpose(1, 2)).audio_values
        return said[:, 0]

    samples = round(config.sampling_rate / config.frame_rate)
    return residual(config, samples, count, hear, say)


def dac(model: Any, source: Source, codebooks: int | None) -> Parts:
    config = model.config
    count = chosen(source, codebooks, config.n_codebooks)

    def hear(sound: Tensor) -> Tensor:
        found: Tensor = model.encode(sound, n_quantizers=count).audio_codes
        return found.transpose(1, 2)

    def say(codes: Tensor) -> Tensor:
        said: Tensor = model.decode(audio_codes=codes.transpose(1, 2)).audio_values
        return said

    return residual(config, prod(config.downsampling_ratios), count, hear, say)


def encodec(model: Any, source: Source, codebooks: int | None) -> Parts:
    """Its codebooks are chosen by a bandwidth, of which some are allowed; we take the least that
    holds enough, and the first codebooks of it.
    """
    config = model.config
    if config.audio_channels != 1 or config.normalize or config.chunk_length_s is not None:
        raise SheenError(
            f"codec {source.name} is an EnCodec of stereo or of scaled pieces, made for music; "
            f"speech needs the one at 24 kHz, facebook/encodec_24khz"
        )
    counts = {
        model.quantizer.get_num_quantizers_for_bandwidth(width): width
        for width in sorted(config.target_bandwidths)
    }
    count = chosen(source, codebooks, max(counts))
    width = min(width for number, width in counts.items() if number >= count)

    def hear(sound: Tensor) -> Tensor:
        found: Tensor = model.encode(sound, bandwidth=width).audio_codes[0]
        return found[:, :count].transpose(1, 2)

    def say(codes: Tensor) -> Tensor:
        said: Tensor = model.decode(codes.transpose(1, 2)[None], [None]).audio_values
        return said[:, 0]

    return residual(config, prod(config.upsampling_ratios), count, hear, say)


def xcodec2(model: Any, source: Source, codebooks: int | None) -> Parts:
    """One codebook, at 16 kHz; half of what it hears are features that another class makes."""
    config = model.config
    count = chosen(source, codebooks, 1)
    source.need(FEATURES)
    try:
        extractor = import_module("transformers").Xcodec2FeatureExtractor.from_pretrained(
            source.folder, local_files_only=True
        )
    except (ImportError, OSError) as error:
        raise SheenError(
            f"codec {source.name} needs a torchaudio that goes with torch {torch.__version__}: "
            f"{one_line(error)[:200]}"
        ) from None

    def hear(sound: Tensor) -> Tensor:
        # the extractor puts one sample of silence behind a clip, then fills it up to whole frames;
        # ours are whole, and the last sample, mostly ours too, makes room for that one
        inputs = extractor(
            [each[0, :-1].cpu().numpy() for each in sound], sampling_rate=config.sampling_rate,
            return_tensors="pt",
        )  # fmt: skip
        inputs = {name: value.to(sound.device) for name, value in inputs.items()}
        found: Tensor = model.encode(**inputs).audio_codes
        return found.transpose(1, 2)

    def say(codes: Tensor) -> Tensor:
        said: Tensor = model.decode(audio_codes=codes.transpose(1, 2)).audio_values
        return said[:, 0]

    return Parts(
        library(), config.sampling_rate, prod(config.downsampling_ratios),
        (prod(config.quantization_levels),) * count, (1,) * count, hear, say,
    )  # fmt: skip


def residual(config: Any, samples: int, count: int, hear: Change, say: Change) -> Parts:
    """A codec each of whose codebooks is a layer of its own."""
    return Parts(
        library(), config.sampling_rate, samples, (config.codebook_size,) * count,
        tuple(range(1, count + 1)), hear, say,
    )  # fmt: skip


def chosen(source: Source, codebooks: int | None, there: int) -> int:
    """How many codebooks are used. Raises SheenError for a number that the codec has not."""
    if codebooks is None:
        return there
    if not 1 <= codebooks <= there:
        raise SheenError(
            f"codec {source.name} has 1 to {there} codebooks, not {codebooks}: set model.codebooks"
        )
    return codebooks


def library() -> str:
    return f"transformers {version('transformers')}"


def built(name: str, source: Source) -> Any:
    """The model in float32, every weight of it from the file. Raises SheenError."""
    try:
        maker = getattr(import_module("transformers"), CLASSES[name])
    except AttributeError:
        raise SheenError(
            f"codec {source.name}: {library()} has no {CLASSES[name]} (5.17 has it); prepare rows "
            f'that hold "audio_codes" already, or take another codec'
        ) from None
    if foreign := [key for key, value in settings(source.config) if names_code(key, value)]:
        raise SheenError(
            f"codec {source.name}: '{foreign[0]}' of its config.json names another repository's "
            f"code, which is not loaded"
        )
    source.need(WEIGHTS)
    try:
        model, report = maker.from_pretrained(
            source.folder, dtype=torch.float32, use_safetensors=True, local_files_only=True,
            output_loading_info=True,
        )  # fmt: skip
    except Exception as error:  # safetensors and the config classes have errors of many kinds
        raise SheenError(
            f"codec {source.name}: its config.json and weights make no {CLASSES[name]}: "
            f"{one_line(error)[:300]}"
        ) from error
    if lacking := sorted(report["missing_keys"]):
        raise SheenError(
            f"codec {source.name} is not whole: {len(lacking)} weights are missing, first "
            f"{lacking[0]}"
        )
    return model.eval().requires_grad_(False)


def settings(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every key of a config with its value, however deep."""
    for key, value in config.items():
        yield key, value
        if isinstance(value, Mapping):
            yield from settings(value)


def names_code(key: str, value: Any) -> bool:
    """transformers would fetch and run an attention kernel that a config names."""
    return "attn_implementation" in key and isinstance(value, str) and "/" in value
