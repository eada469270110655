"""Where a codec's files are: a folder, or a repository of the Hub, of one commit all through."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sheen_cli import SheenError

if TYPE_CHECKING:
    from sheen_lm.codecs.codec import Codec

KINDS = ("snac", "mimi", "dac", "encodec", "xcodec2")
CONFIG, WEIGHTS, PICKLED = "config.json", "model.safetensors", "pytorch_model.bin"
FEATURES = "preprocessor_config.json"


@dataclass(frozen=True)
class Shape:
    """A codec's time: `rate` in Hz, `samples` of a frame."""

    rate: int
    samples: int


KNOWN = {  # so that what a backbone is can be told before anything is downloaded
    "hubertsiuzdak/snac_24khz": Shape(24_000, 2_048),
    "kyutai/mimi": Shape(24_000, 1_920),
    "facebook/encodec_24khz": Shape(24_000, 320),
    "descript/dac_16khz": Shape(16_000, 320),
    "descript/dac_24khz": Shape(24_000, 320),
    "descript/dac_44khz": Shape(44_100, 512),
    "HKUSTAudio/xcodec2-hf": Shape(16_000, 320),
}


@dataclass(frozen=True)
class Source:
    """A folder that holds a codec's config.json, and how to get another file of it."""

    name: str  # as the user gave it
    folder: Path
    revision: str | None
    config: Mapping[str, Any]
    get: Callable[[str], Path | None]  # None where it holds no such file

    def need(self, *files: str) -> Path:
        """The first of the files that is there. Raises SheenError where none is."""
        for file in files:
            if path := self.get(file):
                return path
        raise SheenError(f"codec {self.name} is not whole: {' or '.join(files)} is missing")


@cache
def load(source: str, revision: str | None = None, codebooks: int | None = None) -> "Codec":
    """The codec of a folder or a Hub id, on a GPU where there is one.

    `revision` is the commit that rows or a checkpoint were made with. `codebooks` takes only the
    first of them, where a codec's later ones refine the earlier: Mimi, DAC, EnCodec. Raises
    SheenError.
    """
    import torch

    from sheen_lm.codecs import snac, stock
    from sheen_lm.codecs.codec import Codec, seeded

    found = opened(source, revision)
    name = kind_of(found)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with seeded("cpu"):  # both draw weights that are not used
        if name == "snac":
            parts, sha256 = snac.load(found, device, codebooks)
        else:
            parts, sha256 = stock.load(name, found, device, codebooks)
    return Codec(name, sha256, found.revision, device, parts)


def shape(source: str) -> Shape:
    """The time of a codec by its config.json alone. Raises SheenError."""
    if source in KNOWN and not Path(source).is_dir():
        return KNOWN[source]
    found = opened(source, None)
    kind, config = kind_of(found), found.config
    try:
        if kind == "snac":
            samples = prod(config["encoder_rates"]) * max(config["vq_strides"])
        elif kind == "mimi":
            samples = 2 * prod(config["upsampling_ratios"])  # its steps are joined by twos
        else:
            key = "upsampling_ratios" if kind == "encodec" else "downsampling_ratios"
            samples = prod(config[key])
        return Shape(int(config["sampling_rate"]), samples)
    except KeyError as error:
        raise SheenError(f"codec {source}: its config.json has no {error}") from None


def kind_of(source: Source) -> str:
    """What config.json says that the codec is. Raises SheenError for one that is not known."""
    if "vq_strides" in source.config:
        return "snac"
    kind = str(source.config.get("model_type", "nothing known"))
    if kind not in KINDS:
        raise SheenError(
            f"codec {source.name}: its config.json is of {kind}; known are {', '.join(KINDS)}"
        )
    return kind


def opened(source: str, revision: str | None) -> Source:
    """Its config.json, read. Raises SheenError where there is none, or none to be had now."""
    if Path(source).is_dir():
        folder, commit = Path(source).resolve(), None

        def get(file: str) -> Path | None:
            return folder / file if (folder / file).is_file() else None

        config = get(CONFIG)
    elif source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise SheenError(f"codec {source}: neither a folder nor a Hub id of the form USER/NAME")
    else:
        config = downloaded(source, CONFIG, revision)
        commit = config.parent.name if config else None

        def get(file: str) -> Path | None:
            return downloaded(source, file, commit)

    if config is None:
        raise SheenError(f"codec {source}: it holds no {CONFIG}")
    try:
        values = json.loads(config.read_text("utf-8"))
    except ValueError as error:
        raise SheenError(f"{config} is damaged: {error}") from None
    if not isinstance(values, dict):
        raise SheenError(f"{config} is damaged: it is no JSON object")
    return Source(source, config.parent, commit, values, get)


def downloaded(place: str, file: str, revision: str | None) -> Path | None:
    """A file of a repository in the Hub's cache, where it is brought first if need be; the newest
    one without a revision. None where the repository has no such file. Raises SheenError.
    """
    from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    try:
        return Path(hf_hub_download(place, file, revision=revision))
    except LocalEntryNotFoundError as error:
        if try_to_load_from_cache(place, file, revision=revision) is _CACHED_NO_EXIST:
            return None  # the Hub is away, but has been asked for it before
        raise SheenError(
            f"codec {place}: there is no such folder, and {file} cannot be downloaded now: "
            f"{one_line(error)}"
        ) from None
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, HFValidationError) as error:
        raise SheenError(f"codec {place} cannot be downloaded: {one_line(error)}") from None


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())
