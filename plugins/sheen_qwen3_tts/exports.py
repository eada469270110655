"""From a checkpoint to a folder that others load: the stock library, or PEFT.

Weights are read, merged and written a file at a time; no model is built. The config is edited as
the JSON that it is, since the library can neither save it nor read back what it saves.
"""

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sheen_cli import Recipe, SheenError, __version__
from sheen_qwen3_tts import adapters, base, codec, stock, weights
from sheen_qwen3_tts import checkpoint as saved
from sheen_qwen3_tts.checkpoint import ADAPTER, ENCODER
from sheen_qwen3_tts.model import LANGUAGES
from sheen_qwen3_tts.weights import Facts, Weights

if TYPE_CHECKING:
    from sheen_qwen3_tts import Lora, Options

TABLE = "talker.model.codec_embedding.weight"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Text that a tokenizer of another version, or one that is loaded otherwise, cuts otherwise.
TEXTS = (
    "McDonald says: iPhone, WiFi and eBay!",
    "नमस्ते, आप कैसे हैं? मैं ठीक हूँ।",
    "Ina kwana? Ƙasar nan ta ɗauki 'yan ƙwallo, ɓauna da ƴa.",
    "มีคน ๒๐ คน مُدَرِّس Tiếng Việt 1,234.50",
)


def write(recipe: Recipe["Options"], checkpoint: Path, kind: str, folder: Path) -> str:
    """Fill `folder`; how to use it. Raises SheenError for a kind that the checkpoint cannot be."""
    source = Source.of(recipe, checkpoint)
    if kind == "adapter":
        return write_adapter(source, folder)
    if kind == "both":
        lines = []
        for each in ("custom-voice", "base"):
            (folder / each).mkdir()
            lines.append(write_whole(source, each, folder / each))
        return "\n".join(lines)
    return write_whole(source, kind, folder)


class Merged:
    """A base's weights with an adapter in them. `pairs` are the low-rank factors A and B by the
    stock name of the weight that they change, `whole` the tensors that were trained themselves.
    """

    def __init__(
        self, base: Weights, adapter: Path, lora: "Lora", added: Mapping[str, tuple[int, int]]
    ) -> None:
        self.base, self.facts, self.scale = base, base.facts, lora.alpha / lora.rank
        state = load_file(adapter)
        if text := weights.differences(state, expected(base.facts, lora, len(added))):
            raise SheenError(f"{adapter} does not fit the recipe and its base: it {text}")
        vectors = state.pop(LANGUAGES, torch.zeros(0, 0))
        self.languages = dict(zip(added, vectors, strict=True))
        self.rows = {added[name][0]: vector for name, vector in self.languages.items()}
        self.pairs: dict[str, tuple[Tensor, Tensor]] = {}
        self.whole: dict[str, Tensor] = {}
        for name, value in state.items():
            module, lora_a, _ = name.partition(".lora_A.")
            if lora_a:
                other = state[name.replace(".lora_A.", ".lora_B.")]
                self.pairs[f"talker.{module}.weight"] = value, other
            elif ".lora_B." not in name:
                self.whole[f"talker.{name}"] = value

    def read(self, name: str) -> Tensor:
        """A tensor as it is after training; what an adapter changed is in float32."""
        if name in self.whole:
            return self.whole[name]
        tensor = self.base.read(name)
        if name == TABLE and self.rows:
            tensor = tensor.float().clone()
            for row, vector in self.rows.items():
                tensor[row] = vector
        if name not in self.pairs:
            return tensor
        a, b = (factor.float() for factor in self.pairs[name])
        return tensor.float() + self.scale * (b @ a)


def expected(facts: Mapping[str, Facts], lora: "Lora", languages: int) -> dict[str, Facts]:
    """The tensors of an adapter for a base of these, with so many new languages, by the names under
    which it is saved.
    """
    import re

    pattern = re.compile(rf"talker\.({adapters.targets(lora.mlp, lora.subtalker)})\.weight")
    found = {}
    for name, fact in facts.items():
        if match := pattern.fullmatch(name):
            out, into = fact.shape
            for factor, shape in (("A", (lora.rank, into)), ("B", (out, lora.rank))):
                full = f"{match[1]}.lora_{factor}.default.weight"
                found[full] = Facts(shape, torch.float32)
        elif lora.projection and name.startswith("talker.text_projection."):
            found[name.removeprefix("talker.")] = fact
    if languages:
        found[LANGUAGES] = Facts((languages, facts[TABLE].shape[1]), torch.float32)
    return found


@dataclass(frozen=True)
class Source:
    """A checkpoint to export: the folder with the files around its weights, which is the base's
    for an adapter; the weights as of a whole model; the voices that were trained.
    """

    recipe: Recipe["Options"]
    checkpoint: Path
    folder: Path
    weights: Weights | Merged
    voices: dict[str, Tensor]

    @classmethod
    def of(cls, recipe: Recipe["Options"], checkpoint: Path) -> "Source":
        voices = {
            name.lower(): vector
            for name, vector in saved.load_voices(checkpoint / "artifacts").items()
        }
        lora = recipe.model.lora
        if not (checkpoint / ADAPTER).is_file():
            return cls(recipe, checkpoint, checkpoint, Weights(checkpoint), voices)
        if lora is None:
            raise SheenError(f"{checkpoint} holds an adapter, but its recipe has no model.lora")
        folder = base.local(recipe.model.base, codec.revision(checkpoint / "artifacts"))
        added = base.read(folder, recipe.model.tags).added
        merged = Merged(Weights(folder), checkpoint / ADAPTER, lora, added)
        return cls(recipe, checkpoint, folder, merged, voices)

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json, with the languages that were added."""
        values: dict[str, Any] = json.loads((self.folder / "config.json").read_text("utf-8"))
        languages = base.read(self.folder, self.recipe.model.tags).languages
        values["talker_config"]["codec_language_id"] = languages
        return values

    @cached_property
    def rows(self) -> dict[str, int]:
        """The row of the codec table that each trained voice gets: the one that the base has for
        its name, or a free one. Raises SheenError where there are too few.
        """
        known = self.config["talker_config"]["spk_id"] or {}
        new = [name for name in self.voices if name not in known]
        free = free_rows(self.config)
        if len(new) > len(free):
            raise SheenError(
                f"{self.checkpoint} has {len(new)} voices, and the codec table {len(free)} free "
                f"rows: export an adapter, or train fewer speakers at once"
            )
        return {name: known[name] for name in self.voices if name in known} | dict(
            zip(new, free, strict=False)
        )

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """What to write each tensor in. As the base has it means, for a whole checkpoint, as what
        was frozen still is: trained tensors are kept wider.
        """
        facts, wanted = self.weights.facts, self.recipe.model.export_precision
        if wanted == "base" and isinstance(self.weights, Merged):
            return {name: fact.dtype for name, fact in facts.items()}
        floats = [fact.dtype for fact in facts.values() if fact.dtype.is_floating_point]
        chosen = PRECISIONS.get(wanted) or min(floats, key=lambda dtype: dtype.itemsize)
        return {
            name: chosen if fact.dtype.is_floating_point else fact.dtype
            for name, fact in facts.items()
        }


def free_rows(config: Mapping[str, Any]) -> list[int]:
    """Free rows of the codec table, those first that the other tools take first, which on the
    released checkpoints begin at 3000.
    """
    free, first = base.free_rows(config), config["talker_config"]["vocab_size"] - 72
    return [row for row in free if row >= first] + [row for row in free[::-1] if row < first]


# --- whole folders --------------------------------------------------------------------------------


def write_whole(source: Source, kind: str, folder: Path) -> str:
    """A folder that the stock library loads; how to use it."""
    own = source.config["tts_model_type"]
    becomes = own if kind == "merged" else kind.replace("-", "_")
    config = patched(source, becomes)
    if becomes == "base":
        check_encoder(source)
    if becomes == "custom_voice" and not config["talker_config"]["spk_id"]:
        raise SheenError(f"{source.checkpoint} has no voice that a custom-voice model could have")
    facts, dtypes = source.weights.facts, source.dtypes
    if kind == "custom-voice":  # as the released ones: it is of no use there
        facts = {name: fact for name, fact in facts.items() if not name.startswith(ENCODER)}
        config.pop("speaker_encoder_config", None)
    written = {name: Facts(fact.shape, dtypes[name]) for name, fact in facts.items()}

    def make(name: str) -> Tensor:
        tensor = source.weights.read(name)
        return with_rows(tensor, source) if name == TABLE else tensor

    saved.copy_rest(source.folder, folder, editable=True)
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(
        json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8"
    )
    weights.write(folder, written, make)
    check_tokens(source.folder, folder)
    return usage(becomes, folder, list(source.voices))


def with_rows(table: Tensor, source: Source) -> Tensor:
    """The codec table with each voice's vector in its row."""
    table = table.float().clone()
    for name, row in source.rows.items():
        table[row] = source.voices[name]
    return table


def patched(source: Source, becomes: str) -> dict[str, Any]:
    """The config of the base with the trained voices added to its own."""
    config = copy.deepcopy(source.config)
    config["tts_model_type"] = becomes
    talker = config["talker_config"]
    talker["spk_id"] = {**(talker["spk_id"] or {}), **source.rows}
    dialects = talker.get("spk_is_dialect") or {}
    talker["spk_is_dialect"] = {**dialects, **dict.fromkeys(source.rows, False)}
    return config


def check_encoder(source: Source) -> None:
    """Raise SheenError unless the speaker encoder is whole: the library would clone with a random
    one.
    """
    stock.load()
    from qwen_tts.core.models.configuration_qwen3_tts import Qwen3TTSSpeakerEncoderConfig
    from qwen_tts.core.models.modeling_qwen3_tts import Qwen3TTSSpeakerEncoder

    text: str | None = "has no speaker_encoder_config"
    if values := source.config.get("speaker_encoder_config"):
        with torch.device("meta"):
            encoder = Qwen3TTSSpeakerEncoder(Qwen3TTSSpeakerEncoderConfig(**values))
        wanted = {f"{ENCODER}{name}": value for name, value in encoder.state_dict().items()}
        facts = source.weights.facts
        found = {name: fact for name, fact in facts.items() if name.startswith(ENCODER)}
        text = weights.differences(found, wanted)
    if text:
        raise SheenError(
            f"{source.folder} cannot become a base, which clones voices with its speaker encoder: "
            f"it {text}; export it as custom-voice"
        )


def check_tokens(trained: Path, folder: Path) -> None:
    """Raise SheenError where the exported folder cuts text into other tokens than training did."""
    before, after = (base.read.__wrapped__(each) for each in (trained, folder))
    for text in TEXTS:
        if before.words(text) != after.words(text):
            raise SheenError(
                f"{folder} would read {text!r} as other tokens than {trained}, from which it was "
                f"trained; keep `transformers_version` in config.json as it is there"
            )


def usage(becomes: str, folder: Path, voices: list[str]) -> str:
    """How the stock library speaks with a folder."""
    call = {
        "custom_voice": f'generate_custom_voice("...", speaker="{(voices or ["..."])[0]}")',
        "base": 'generate_voice_clone("...", ref_audio="ref.wav", ref_text="what is said there")',
    }.get(becomes, 'generate_voice_design("...", instruct="...")')
    return f'qwen_tts.Qwen3TTSModel.from_pretrained("{folder}").{call}'


# --- the adapter ----------------------------------------------------------------------------------


def write_adapter(source: Source, folder: Path) -> str:
    """A folder that PEFT loads onto the base: low-rank factors, and whole what was trained whole.

    The voices lie beside it. PEFT has no place for a row of the codec table in a model that does
    not say which its input embeddings are.
    """
    merged = source.weights
    if not isinstance(merged, Merged):
        raise SheenError(
            f"{source.checkpoint} was trained in all its weights and holds no adapter; export it "
            f"as base, custom-voice or merged"
        )
    prefix = "base_model.model."
    state: dict[str, Tensor] = {}
    for name, (a, b) in merged.pairs.items():
        module = prefix + name.removesuffix(".weight")
        state |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    modules = sorted({name.rpartition(".")[0] for name in merged.whole})
    for name in merged.facts:  # PEFT replaces a module as a whole
        if name.rpartition(".")[0] in modules:
            state[prefix + name] = merged.read(name)
    state = {name: value.contiguous() for name, value in state.items()}
    save_file(state, folder / "adapter_model.safetensors", {"format": "pt"})
    write_json(folder / "adapter_config.json", adapter_config(source, modules))
    if source.voices:
        vectors = {name: value.float().contiguous() for name, value in source.voices.items()}
        save_file(vectors, folder / "speakers.safetensors", {"format": "pt"})
    if merged.languages:
        rows = {name: vector.contiguous() for name, vector in merged.languages.items()}
        save_file(rows, folder / "languages.safetensors", {"format": "pt"})
    write_json(folder / "sheen.json", about(source))
    name, _ = known(source)
    return (
        f'tts = qwen_tts.Qwen3TTSModel.from_pretrained("{name}"); '
        f'tts.model = peft.PeftModel.from_pretrained(tts.model, "{folder}")'
    )


def adapter_config(source: Source, modules: Iterable[str]) -> dict[str, Any]:
    """What PEFT must know; it has defaults for the rest, which differ between its versions."""
    lora = source.recipe.model.lora
    assert lora is not None
    name, revision = known(source)
    return {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": name,
        "revision": revision, "inference_mode": True, "bias": "none", "fan_in_fan_out": False,
        "r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout,
        "target_modules": rf"talker\.{adapters.targets(lora.mlp, lora.subtalker)}",
        "modules_to_save": list(modules) or None,
    }  # fmt: skip


def about(source: Source) -> dict[str, Any]:
    """sheen.json: what the adapter belongs to, and what to change in the base's config.json for
    its voices to have names there.
    """
    name, revision = known(source)
    packages = [each for each in ("qwen-tts", "qwen-tts-hf") if stock.installed(each)]
    return {
        "format": 1,
        "sheen": __version__,
        "base": name,
        "revision": revision,
        "config": {"talker_config": {
            "spk_id": source.rows, "spk_is_dialect": dict.fromkeys(source.rows, False),
            "codec_language_id": source.config["talker_config"]["codec_language_id"],
        }},
        "rows": {"tensor": TABLE, "of": ["speakers.safetensors", "languages.safetensors"]},
        "model": {**source.recipe.model.model_dump(mode="json"), "base": name},
        "versions": {each: version(each) for each in (*packages, "transformers", "peft", "torch")},
    }  # fmt: skip


def known(source: Source) -> tuple[str, str | None]:
    """The base's Hub id and revision; of a folder that is no download, its name alone: nobody
    else's disk has its path.
    """
    folder = source.folder
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/"), folder.name
    return folder.name, None


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
