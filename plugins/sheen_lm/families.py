"""The conventions of well-known families, by name, as their own code and checkpoints have them.

Numbers are given in place of a token's text only where that text is not certain. A recipe may start
from one of them and change single fields.
"""

from typing import Any

from sheen_cli import SheenError
from sheen_lm.convention import Convention

# SNAC at 24 kHz: a frame is one code of layer 1, two of layer 2, four of layer 3. Half of the
# families keep the time order of a tree in it: L1, L2a, L3a, L3b, L2b, L3c, L3d.
SNAC: dict[str, Any] = {"sizes": (4096,) * 7, "layers": (1, 2, 2, 3, 3, 3, 3)}
TREE = {**SNAC, "frame": (0, 1, 3, 4, 2, 5, 6), "offset": "place"}
XCODEC2: dict[str, Any] = {
    "token": "<|s_{code}|>", "offset": "none", "sizes": (65_536,), "layers": (1,), "frame": (0,),
}  # fmt: skip
TURNS = (
    "{human_start}%s{text}{text_end}{human_end}{ai_start}{speech_start}{codes}{speech_end}{ai_end}"
)
# places of the specials among the tokens that a family with turns adds; codes begin at the tenth
PLACES = {
    "speech_start": 1, "speech_end": 2, "human_start": 3, "human_end": 4, "ai_start": 5,
    "ai_end": 6, "pad": 7,
}  # fmt: skip
CUSTOM = {role: f"<custom_token_{place}>" for role, place in PLACES.items()}


def _books(count: int, size: int) -> dict[str, Any]:
    return {
        "specials": {"speech_start": "<speech_start>", "speech_end": "<speech_end>"},
        "codes": {
            "token": "<c{codebook}_{code}>", "offset": "layer", "stride": size,
            "sizes": (size,) * count, "layers": tuple(range(1, count + 1)),
            "frame": tuple(range(count)),
        },
        "sequence": "{text}{speech_start}{codes}{speech_end}",
    }  # fmt: skip


FAMILIES: dict[str, dict[str, Any]] = {
    "sheen": {
        "specials": {"speech_start": "<audio_start>", "speech_end": "<audio_end>"},
        "codes": {
            **SNAC, "token": "<snac_l{layer}_{code}>", "offset": "layer", "frame": tuple(range(7)),
        },
        "sequence": "{text}{speech_start}{codes}{speech_end}",
    },
    # ids as of Llama 3.2; the first token added, and the two before the codes, have no use
    "orpheus": {
        "specials": {"text_start": "<|begin_of_text|>", "text_end": "<|eot_id|>", **CUSTOM},
        "codes": {**TREE, "token": "<custom_token_{number}>", "number": 10},
        "sequence": TURNS % "{text_start}",
        "loss": "all",
    },
    # as Orpheus, on Qwen3, which has no token for the beginning of a text
    "vyvo": {
        "specials": {"text_start": "<|endoftext|>", "text_end": "<|im_end|>", **CUSTOM},
        "codes": {**TREE, "token": "<custom_token_{number}>", "number": 10},
        "sequence": TURNS % "",
    },
    # Orpheus' ids; the voice is described in words. What its training scored is not public.
    "maya1": {
        "specials": {
            "text_start": "<|begin_of_text|>", "text_end": "<|eot_id|>",
            **{role: 128_256 + place for role, place in PLACES.items()},
        },
        "codes": {**TREE, "first": 128_266},
        "sequence": TURNS % "{text_start}",
        "speaker": "",
        "instruct": '<description="{instruct}"> ',
    },
    # The chat template of Llama 3.2 with the date that it falls back on, spelt out: a template
    # renders today's, so that a model would hear another prompt every day.
    "llasa": {
        "specials": {
            "text_start": "<|TEXT_UNDERSTANDING_START|>", "text_end": "<|TEXT_UNDERSTANDING_END|>",
            "speech_start": "<|SPEECH_GENERATION_START|>",
            "speech_end": "<|SPEECH_GENERATION_END|>",
        },
        "added": tuple(
            f"<|{what}_{end}|>"
            for what in (
                "TEXT_GENERATION", "TEXT_UNDERSTANDING", "SPEECH_GENERATION",
                "SPEECH_UNDERSTANDING",
            )
            for end in ("START", "END")
        ),
        "codes": XCODEC2,
        "sequence": "{bos}<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date:"
        " December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user"
        "<|end_header_id|>\n\nConvert the text to speech:{text_start}{text}{text_end}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
        "{speech_start}{codes}{speech_end}{eos}",
        "speaker": "",
        "loss": "marker",
    },
    "inworld": {
        "specials": {
            "text_start": "<|text_prompt_start|>", "text_end": "<|text_prompt_end|>",
            "speech_start": "<|speech_start|>", "speech_end": "<|speech_end|>",
        },
        "added": tuple(
            f"<|{what}_{end}|>"
            for what in ("voice_description", "sound_effect")
            for end in ("start", "end")
        ),
        "codes": XCODEC2,
        "sequence": "{bos}Convert the text to speech:{text_start}{text}{text_end}\n"
        "{speech_start}{codes}{speech_end}",
        "speaker": "",
        "loss": "marker",
        "order": "sorted",
        "rows": 193_856,
    },
    # Our own, for codecs of several codebooks (Mimi, DAC, EnCodec): the codes of a frame one after
    # the other, each codebook with tokens of its own. Here as for eight codebooks of Mimi.
    "books": _books(8, 2048),
}  # fmt: skip


def family(name: str) -> Convention:
    """The convention of a family."""
    if name not in FAMILIES:
        raise SheenError(f"there is no family {name}; known are {', '.join(FAMILIES)}")
    return Convention.model_validate(FAMILIES[name])


def books(count: int, size: int) -> Convention:
    """The family "books" for a codec of so many codebooks of that size."""
    return Convention.model_validate(_books(count, size))
