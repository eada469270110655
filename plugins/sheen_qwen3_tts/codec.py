"""Sound to codes and back, and the vector of a voice; all in float32, one clip at a time.

Clips are filled up to whole frames, since a batch's padding would change a last partial frame, and
the speaker encoder's pooling knows no lengths.
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sheen_cli import SheenError
from sheen_qwen3_tts import stock
from sheen_qwen3_tts.base import Base

RATE, FRAME = 24_000, 1_920  # Hz; samples of a frame
SHORTEST = 5 * 256 + 1_024  # samples from which the speaker encoder can make a vector


@cache
def load(folder: Path) -> Any:
    """The codec of a base's folder."""
    stock.load()
    from qwen_tts.inference.qwen3_tts_tokenizer import Qwen3TTSTokenizer

    return Qwen3TTSTokenizer.from_pretrained(str(folder / "speech_tokenizer"), dtype=torch.float32)


@torch.inference_mode()
def encode(codec: Any, audio: np.ndarray) -> Tensor:
    """Sound (n,) at 24 kHz -> codes (ceil(n / 1920), groups)."""
    whole = np.pad(audio, (0, -len(audio) % FRAME)).astype(np.float32)
    codes: Tensor = codec.encode(whole, sr=RATE).audio_codes[0]
    return codes


@torch.inference_mode()
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


@torch.inference_mode()
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
