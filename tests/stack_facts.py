"""What one environment makes of a Qwen3-TTS folder and a sound: `python stack_facts.py BASE SOUND
OUT` writes codes, voice, tokens, logits and a greedy speech, for another environment to compare.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from sheen_qwen3_tts import codec, model
from sheen_qwen3_tts.generate import Wish, generate
from sheen_qwen3_tts.layout import VECTOR, Prompt
from sheen_qwen3_tts.sampling import Sampling

TEXT = "McDonald says: iPhone! हिन्दी"


@torch.inference_mode()
def facts(folder: Path, sound: np.ndarray) -> dict[str, torch.Tensor]:
    sounds = codec.load(folder)
    codes = codec.encode(sounds, sound)
    voice = codec.vector(codec.speaker_encoder(folder), sound)
    speech = model.load(folder, {}).eval()
    prompt = Prompt(
        speech.base.words(TEXT), VECTOR, reference=((), tuple(map(tuple, codes.tolist())))
    )
    (spoken,) = generate(speech, [Wish(prompt, voice, 12, greedy=True)], Sampling())
    return {
        "codes": codes,
        "voice": voice,
        "tokens": torch.tensor(speech.base.words(TEXT)),
        "logits": spoken.first,
        "inner": spoken.inner,
        "said": spoken.codes,
        "sound": torch.from_numpy(codec.decode(sounds, codes)),
    }


if __name__ == "__main__":
    found = facts(Path(sys.argv[1]), np.load(sys.argv[2]))
    save_file({name: each.contiguous() for name, each in found.items()}, sys.argv[3])
