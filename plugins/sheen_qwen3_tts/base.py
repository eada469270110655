"""A Qwen3-TTS folder as its own files describe it: control ids, languages, voices, text tokens.

The raw config.json is read, never the library's config class, which cannot be saved and read back.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from sheen_cli import SheenError
from sheen_qwen3_tts import stock
from sheen_qwen3_tts.languages import spelt_out
from sheen_qwen3_tts.layout import Ids, Tokens

ROLE = "<|im_start|>assistant\n"
NEEDED = ("config.json", "generation_config.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Base:
    """One folder, and the languages that a recipe added to its own: the row of the codec table that
    each takes, and the one that it starts from.
    """

    folder: Path
    config: Mapping[str, Any]
    tokenizer: Any
    ids: Ids
    added: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def talker(self) -> Mapping[str, Any]:
        values: Mapping[str, Any] = self.config["talker_config"]
        return values

    @property
    def codes(self) -> int:
        """Audio codes of each codebook."""
        return int(self.talker["code_predictor_config"]["vocab_size"])

    @property
    def languages(self) -> dict[str, int]:
        return dict(self.talker["codec_language_id"] or {})

    @property
    def voices(self) -> dict[str, int]:
        return dict(self.talker["spk_id"] or {})

    def tokens(self, text: str) -> Tokens:
        """As the stock wrapper tokenises for this very folder."""
        return tuple(self.tokenizer(text=text)["input_ids"][0])

    def words(self, text: str) -> Tokens:
        """The tokens of a transcript, cut out of its template as inference cuts them."""
        return self.tokens(f"{ROLE}{text.strip()}<|im_end|>\n{ROLE}")[3:-5]

    def said(self, text: str) -> Tokens:
        """The tokens of a reference's transcript."""
        return self.tokens(f"{ROLE}{text.strip()}<|im_end|>\n")[3:-2]

    def instruction(self, text: str) -> Tokens:
        return self.tokens(f"<|im_start|>user\n{text.strip()}<|im_end|>\n")

    def knows(self, language: str) -> bool:
        return language.strip().lower() == "auto" or self.language(language) is not None

    def language(self, name: str | None) -> int | None:
        """The tag's id of a language by name or ISO code; None for auto and for one it lacks."""
        return None if name is None else self.languages.get(spelt_out(name))

    def free(self) -> list[int]:
        """Rows of the codec table that mean nothing yet, the last first."""
        return free_rows(self.config)[::-1]


CONTROL = 1024  # rows at the end of the codec table that are no audio


def free_rows(config: Mapping[str, Any]) -> list[int]:
    """Rows of the codec table that neither a code, a control, a language nor a voice has."""
    talker = config["talker_config"]
    controls = [value for key, value in talker.items() if key.startswith("codec_")]
    taken = {value for value in controls if isinstance(value, int)}
    taken |= {*(talker["codec_language_id"] or {}).values(), *(talker["spk_id"] or {}).values()}
    size, codes = talker["vocab_size"], talker["code_predictor_config"]["vocab_size"]
    return [row for row in range(max(codes, size - CONTROL), size) if row not in taken]


def extended(base: Base, new: Mapping[str, str]) -> Base:
    """The base with a tag, on a free row, for each language of `new` that it lacks; these name the
    language that it starts from. Raises SheenError where there is no such one, or no free row.
    """
    ids, rows, added = base.languages, iter(base.free()), dict[str, tuple[int, int]]()
    for language, like in new.items():
        if spelt_out(like) not in base.languages:
            raise SheenError(
                f"model.new_languages: '{language}' is to start from '{like}', which the base "
                f"lacks; it has {', '.join(sorted(base.languages))}"
            )
        if spelt_out(language) not in ids:
            row = next(rows, None)
            if row is None:
                raise SheenError(f"model.new_languages: no free row is left for '{language}'")
            ids[spelt_out(language)] = row
            added[spelt_out(language)] = row, base.languages[spelt_out(like)]
    talker = {**base.talker, "codec_language_id": ids}
    return replace(base, config={**base.config, "talker_config": talker}, added=added)


@cache
def local(place: str, revision: str | None = None) -> Path:
    """The folder of a base given as a folder or a Hub id, which is downloaded once: the text
    tokenizer depends on where its files lie. `revision` is the commit that rows or a checkpoint
    were made with; without one the newest is asked for, once a process. Raises SheenError.
    """
    if Path(place).is_dir():
        return Path(place).resolve()
    if place.count("/") != 1 or place.startswith((".", "/", "~")):
        raise SheenError(f"model.base={place}: neither a folder nor a Hub id of the form USER/NAME")
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(place, revision=revision))
    except LocalEntryNotFoundError:
        why = "HF_HUB_OFFLINE is set" if HF_HUB_OFFLINE else "the Hub cannot be had"
        raise SheenError(f"model.base={place} is not on this machine, and {why}") from None
    except HfHubHTTPError as error:
        raise SheenError(f"model.base={place} cannot be downloaded: {error}") from None


def commit(folder: Path) -> str | None:
    """The Hub's commit that a folder of its cache holds; None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else None


def shards(folder: Path) -> list[str]:
    """The files that a folder's index spreads its weights over, if it has one."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    return sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))


@cache
def read(folder: Path, new_languages: tuple[tuple[str, str], ...] = ()) -> Base:
    """Open a folder, with tags for languages that it may lack. Raises SheenError where it is no
    Qwen3-TTS checkpoint of the 12 Hz codec.
    """
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if not (folder / "speech_tokenizer" / "config.json").is_file():
        missing.append("speech_tokenizer/config.json")
    if not any(folder.glob("*.safetensors")):
        missing.append("model.safetensors")
    missing += [name for name in shards(folder) if not (folder / name).is_file()]
    if missing:
        raise SheenError(f"{folder} is no Qwen3-TTS checkpoint: {', '.join(missing)} is missing")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    if config.get("tokenizer_type") != "qwen3_tts_tokenizer_12hz":
        raise SheenError(
            f"{folder} has the codec {config.get('tokenizer_type')}, not the 12 Hz one"
        )
    stock.load()
    from qwen_tts.core.models import Qwen3TTSConfig, Qwen3TTSProcessor
    from transformers import AutoConfig, AutoProcessor

    AutoConfig.register("qwen3_tts", Qwen3TTSConfig, exist_ok=True)
    AutoProcessor.register(Qwen3TTSConfig, Qwen3TTSProcessor, exist_ok=True)
    tokenizer = AutoProcessor.from_pretrained(folder, fix_mistral_regex=True)
    role = tokenizer(text=ROLE)["input_ids"][0]
    if len(role) != 3:
        raise SheenError(f"{folder}: its tokenizer makes {len(role)} tokens of the role, not 3")
    return extended(Base(folder, config, tokenizer, Ids.of(config, role)), dict(new_languages))
