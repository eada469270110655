"""Sound to codes and back, and the vector of a voice; all in float32, one clip at a time.

Clips are filled up to whole frames, since a batch's padding would change a last partial frame, and
the speaker encoder's pooling knows no lengths.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sheen_cli import Clip, SheenError
from sheen_qwen3_tts import stock
from sheen_qwen3_tts.base import Base, commit

RATE, FRAME = 24_000, 1_920  # Hz; samples of a frame
WINDOW = 256  # clips that are sorted by length before they are cut into batches
SHORTEST = 5 * 256 + 1_024  # samples from which the speaker encoder can make a vector


@cache
def load(folder: Path) -> Any:
    """The codec of a base's folder."""
    stock.load()
    from qwen_tts.inference.qwen3_tts_tokenizer import Qwen3TTSTokenizer

    return Qwen3TTSTokenizer.from_pretrained(
        str(folder / "speech_tokenizer"), dtype=torch.float32, device_map=device()
    )


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def encode(codec: Any, audio: np.ndarray) -> Tensor:
    """Sound (n,) at 24 kHz -> codes (ceil(n / 1920), groups)."""
    return encode_all(codec, [audio])[0]


@contextmanager
def exactly() -> Iterator[None]:
    """Float32 all through: no autocast of a training around, no TF32 in a GPU's convolutions."""
    with (
        torch.inference_mode(),
        torch.autocast(device(), enabled=False),
        torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
    ):
        yield


@exactly()
def encode_all(codec: Any, sounds: Sequence[np.ndarray]) -> list[Tensor]:
    """Several sounds in one batch. Each is filled up to whole frames first, which keeps what the
    batch pads it with out of its last frame.
    """
    whole = [np.pad(sound, (0, -len(sound) % FRAME)).astype(np.float32) for sound in sounds]
    found: list[Tensor] = codec.encode(whole, sr=RATE).audio_codes
    return [codes.cpu() for codes in found]


def encoded(codec: Any, clips: Iterable[Clip], seconds: float) -> Iterator[tuple[Clip, Tensor]]:
    """Every clip with its codes, in order; those that the source brings are taken as they are.

    Batches hold clips of like length, and no more than `seconds` of sound, their padding counted.
    """
    for some in batched(clips, WINDOW if seconds else 1):
        order = sorted(
            (number for number, clip in enumerate(some) if clip.codes is None),
            key=lambda number: len(some[number].audio),
        )
        codes = {n: torch.from_numpy(c.codes) for n, c in enumerate(some) if c.codes is not None}
        for batch in within(order, [len(clip.audio) for clip in some], seconds * RATE):
            sounds = [some[number].audio for number in batch]
            codes |= dict(zip(batch, encode_all(codec, sounds), strict=True))
        yield from ((clip, codes[number]) for number, clip in enumerate(some))


def within(order: Sequence[int], lengths: Sequence[int], most: float) -> Iterator[list[int]]:
    """Numbers sorted by length, cut so that count times longest is `most` at most, or one."""
    batch: list[int] = []
    for number in order:
        if batch and (len(batch) + 1) * lengths[number] > most:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def of(codec: Any, clip: Clip) -> Tensor:
    """The codes of a clip: those that its source brings, else by the codec."""
    return encode(codec, clip.audio) if clip.codes is None else torch.from_numpy(clip.codes)


@exactly()
def decode(codec: Any, codes: Tensor, reference: Tensor | None = None) -> np.ndarray:
    """Codes (t, groups) -> sound (t * 1920,); after a reference's codes, whose sound is cut off."""
    before = 0 if reference is None else len(reference)
    whole = codes if reference is None else torch.cat([reference, codes])
    sounds, _ = codec.decode([{"audio_codes": whole}])
    sound: np.ndarray = sounds[0][before * FRAME :]
    return sound.astype(np.float32).clip(-1, 1)


@cache
def speaker_encoder(base_folder: Path) -> nn.Module:
    """The encoder of a base's voices, read without the rest of the model. Raises SheenError where
    the checkpoint holds none: the library would go on with a random one.
    """
    stock.load()
    from qwen_tts.core.models.configuration_qwen3_tts import Qwen3TTSSpeakerEncoderConfig
    from qwen_tts.core.models.modeling_qwen3_tts import Qwen3TTSSpeakerEncoder
    from safetensors import safe_open

    from sheen_qwen3_tts.base import read

    prefix, state = "speaker_encoder.", {}
    for shard in sorted(base_folder.glob("*.safetensors")):
        with safe_open(shard, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no mapping
                if name.startswith(prefix):
                    state[name.removeprefix(prefix)] = tensors.get_tensor(name).float()
    if not state:
        raise SheenError(f"{base_folder} holds no speaker encoder; voices need a Base checkpoint")
    config = Qwen3TTSSpeakerEncoderConfig(**read(base_folder).config["speaker_encoder_config"])
    encoder = Qwen3TTSSpeakerEncoder(config)
    encoder.load_state_dict(state)
    frozen: nn.Module = encoder.eval().requires_grad_(False)
    return frozen


@exactly()
def vector(encoder: nn.Module, audio: np.ndarray) -> Tensor:
    """The voice of a clip (n,) at 24 kHz as a vector (hidden,), as the stock package has it."""
    from qwen_tts.core.models.modeling_qwen3_tts import mel_spectrogram

    mel = mel_spectrogram(
        torch.from_numpy(audio.astype(np.float32))[None], n_fft=1024, num_mels=128,
        sampling_rate=RATE, hop_size=256, win_size=1024, fmin=0, fmax=12_000,
    )  # fmt: skip
    found: Tensor = encoder(mel.transpose(1, 2))[0]
    return found.float()


def constant(codes: Tensor) -> bool:
    """Whether a clip's codes never change, as of silence or of a broken codec."""
    return len(codes) < 2 or bool((codes == codes[0]).all())


def shape(base: Base) -> tuple[int, ...]:
    """The size of each codebook."""
    return (base.codes,) * base.ids.groups


def batched(clips: Iterable[Clip], size: int) -> Iterator[list[Clip]]:
    stream = iter(clips)
    while some := list(islice(stream, size)):
        yield some


FACTS = "codec.json"


def note(folder: Path, artifacts: Path) -> None:
    """Write down which codec made the codes: other weights mean other codes, and so may another
    transformers or stock package.
    """
    stack = {name: number for name in stock.SHARERS if (number := stock.installed(name))}
    facts = {
        "sha256": weights(folder), "transformers": version("transformers"), **stack,
        "frame": FRAME, "device": device(), "base_revision": commit(folder),
    }  # fmt: skip
    (artifacts / FACTS).write_text(json.dumps(facts, indent=1), "utf-8")


def revision(artifacts: Path) -> str | None:
    """The commit of the base that rows were made with, if it came from the Hub."""
    path = artifacts / FACTS
    return json.loads(path.read_text("utf-8")).get("base_revision") if path.is_file() else None


def check(folder: Path, artifacts: Path, data: str) -> None:
    """Raise SheenError where rows were made by another codec than the base's."""
    made = json.loads((artifacts / FACTS).read_text("utf-8"))["sha256"]
    if made != weights(folder):
        raise SheenError(
            f"{data} was made by another codec ({made[:12]}) than that of {folder} "
            f"({weights(folder)[:12]}); prepare it again"
        )


@cache
def weights(folder: Path) -> str:
    """SHA-256 of the codec's weights."""
    with (folder / "speech_tokenizer" / "model.safetensors").open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
