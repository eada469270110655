"""Qwen3-TTS, the 12 Hz talker with 16 codebooks: fine-tuned exactly as it generates.

The official trainer, and most that copied it, teach the frame after the next one; docs/qwen3-tts.md
says how, and what is proved here instead.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from sheen_cli import (
    Audio,
    BackboneSpec,
    Batch,
    Clip,
    Loss,
    Measured,
    Recipe,
    Request,
    Row,
    Run,
    Section,
    Skip,
    Term,
    hookimpl,
    warn,
)
from sheen_qwen3_tts import stock

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sheen_qwen3_tts.model import Speech

# Everything heavy is imported inside the hooks: listings import this module.

RATE, FRAME = 24_000, 1_920
# What decides nothing of what is learnt: checks, and how it is spoken and exported.
FREE = (
    "preflight", "selftest", "export_precision", "temperature", "top_k", "top_p",
    "repetition_penalty",
)  # fmt: skip


class Lora(Section):
    """Adapters on the talker's layers; the rest stays as it is."""

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    dropout: float = Field(0.0, ge=0, lt=1)
    mlp: bool = False  # on the layers' MLPs, too
    subtalker: bool = False  # on the sub-talker's layers, too
    projection: bool = True  # train the text projection, whole


class Conditioning(Section):
    """Shares of the rows by what they are conditioned on; they need not add up to one."""

    slot: float = Field(0.6, ge=0)  # the vector of the row's speaker, as a taught voice speaks
    xvector: float = Field(0.2, ge=0)  # that of another clip of the speaker, as --ref clones
    icl: float = Field(0.2, ge=0)  # and that clip's words and frames before it, as --icl clones

    @model_validator(mode="after")
    def _some(self) -> "Conditioning":
        if not self.slot + self.xvector + self.icl:
            raise ValueError("all shares are 0: no row could be laid out")
        return self


class Options(Section):
    base: str = "Qwen/Qwen3-TTS-12Hz-1.7B-Base"  # a folder or a Hub id
    preflight: bool = True  # refuse a base that predicts the frame after the next one
    selftest: bool = True  # a fresh process must say every checkpoint's logits before it is kept
    export_precision: Literal["base", "fp32", "bf16"] = "base"  # of the weights of an export
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = "auto"
    lora: Lora | None = None  # None: all weights are trained, but for what `freeze` names
    freeze: tuple[str, ...] = ("model.text_embedding.*",)  # patterns of the talker's parameters
    projection_learning_rate: PositiveFloat | None = None  # None: the recipe's
    subtalker_learning_rate: PositiveFloat | None = None  # None: the recipe's
    subtalker_weight: float = Field(0.3, ge=0)
    new_languages: dict[str, str] = Field({})  # that the base lacks -> what each starts from
    conditioning: Conditioning = Conditioning()
    subtalker_frames: float = Field(1.0, gt=0, le=1)  # share of frames whose codes 1.. are learnt
    gradient_checkpointing: bool = False  # compute layers twice to hold less of them
    named_language: float = Field(0.5, ge=0, le=1)  # share of rows whose language tag is named
    streaming: float = Field(0.5, ge=0, le=1)  # share of rows with text and frames side by side
    encode_seconds: PositiveFloat = 60  # of a batch of the codec on a GPU; a CPU takes single clips
    temperature: PositiveFloat = 0.9
    top_k: int = Field(50, ge=0)  # 0: all
    top_p: float = Field(1.0, gt=0, le=1)
    repetition_penalty: PositiveFloat = 1.05

    @field_validator("base")
    @classmethod
    def _whole_path(cls, value: str) -> str:
        """A folder is meant wherever the recipe is read again: elsewhere it could be a Hub id."""
        folder = Path(value).expanduser()
        return str(folder.resolve()) if folder.is_dir() else value

    @model_validator(mode="after")
    def _nothing_left_to_freeze(self) -> "Options":
        default = type(self).model_fields["freeze"].default
        if self.lora is not None and self.freeze != default:
            raise ValueError("freeze has no effect with lora, beside which all else is frozen")
        return self

    @property
    def tags(self) -> tuple[tuple[str, str], ...]:
        """The new languages, in an order of their own: each takes a row by its place."""
        return tuple(sorted(self.new_languages.items()))


@hookimpl
def describe(recipe: Recipe[Options] | None) -> BackboneSpec:
    books: tuple[int, ...] | None = (2048,) * 16
    if recipe is not None and Path(recipe.model.base).is_dir():
        from sheen_qwen3_tts import base, codec

        books = codec.shape(base.read(base.local(recipe.model.base)))
    return BackboneSpec(
        options=Options,
        sample_rate=RATE,
        terms=("talker", "subtalker"),
        recipe="qwen3tts-lora",
        frame_rate=RATE / FRAME,
        codebooks=books,
        prepared_by=("model.base",),
        reads=("speaker", "language", "instruct", "reference"),
        takes_codes=True,
        tiny=tiny,
        stacks=stock.STACKS,
        exports=("custom-voice", "base", "both", "adapter", "merged"),
        free=tuple(f"model.{key}" for key in FREE),
        check=check,
    )


def tiny(folder: Path) -> Sequence[str]:
    from sheen_qwen3_tts import miniature

    return [f"model.base={miniature.build(folder)}", *miniature.SETTINGS]


def check(
    recipe: Recipe[Options], name: str, clip: Clip | None, folder: Path
) -> Iterable[Measured]:
    from sheen_qwen3_tts import basecheck

    return basecheck.check(recipe, name, clip, folder)


@hookimpl
def prepare(
    recipe: Recipe[Options], clips: Iterable[Clip], artifacts: Path
) -> Iterator[Row | Skip]:
    """Voices and references first, in a pass of their own; then codes, a batch at a time."""
    from sheen_qwen3_tts import base, codec, references

    folder = base.local(recipe.model.base)
    spoken = codec.load(folder)
    found = references.gather(clips, codec.speaker_encoder(folder), spoken)
    references.save(found, artifacts)
    codec.note(folder, artifacts)
    numbers = {name: number for number, name in enumerate(found.voices)}
    places = {heard.name: number for number, heard in enumerate(found.all)}
    tags = recipe.model.tags
    told = references.Notices(base.read(folder, tags), found, dict(tags))
    budget = recipe.model.encode_seconds if codec.device() == "cuda" else 0.0
    for clip, codes in codec.encoded(spoken, clips, budget):
        name, heard = references.voice_of(clip.speaker), None
        if name not in numbers:
            yield Skip("unknown-voice", f"no training clip of '{name}' is long enough")
        elif codec.constant(codes):
            yield Skip("constant-codes", "the codec hears the same in every frame")
        elif isinstance(heard := found.of(clip, codes), Skip):
            yield heard
        else:
            told.note(clip, heard)
            file, words = found.named(clip)
            yield {
                "audio_codes": codes.tolist(),
                "voice": numbers[name],
                "reference": places[heard.name] if heard else None,
                "ref_audio": str(file) if file else None,
                "ref_text": words,
            }
    for text in told.lines():
        warn(text)


@hookimpl
def collate(
    recipe: Recipe[Options], rows: Sequence[Row], seed: int | None, artifacts: Path
) -> Batch:
    from sheen_qwen3_tts import base, batches, references

    forms = batches.drawn(seed, len(rows), recipe.model)
    own = base.read(place(recipe, artifacts), recipe.model.tags)
    tables = references.load(artifacts)
    return batches.collate(own, rows, forms, tables, seed, recipe.model.subtalker_frames)


@hookimpl
def load(recipe: Recipe[Options], checkpoint: Path | None) -> "Speech":
    """To speak with: in bfloat16 on a GPU, in float32 elsewhere."""
    import torch

    kind = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    speech = opened(recipe, checkpoint, kind)
    for parameter in speech.talker.parameters():  # not its buffers: rotary angles need float32
        parameter.data = parameter.data.to(kind)
    return speech


def place(recipe: Recipe[Options], artifacts: Path) -> Path:
    """The folder of the base that rows or a checkpoint with these artifacts were made with."""
    from sheen_qwen3_tts import base, codec

    return base.local(recipe.model.base, codec.revision(artifacts))


def opened(recipe: Recipe[Options], checkpoint: Path | None, kind: Any) -> "Speech":
    """The base, or a checkpoint, in a dtype or as it is stored; adapters are attached and, like all
    that is trained, in float32.
    """
    from sheen_qwen3_tts import base, model
    from sheen_qwen3_tts import checkpoint as saved

    options = recipe.model
    if checkpoint is None:
        return model.load(base.local(options.base), {}, options.attention, kind, options.tags)
    voices = saved.load_voices(checkpoint / "artifacts")
    if not (checkpoint / saved.ADAPTER).is_file():
        return model.load(checkpoint, voices, options.attention, kind, options.tags)
    folder = place(recipe, checkpoint / "artifacts")
    speech = model.load(folder, voices, options.attention, kind, options.tags)
    names = adapted(speech, recipe)
    saved.load_adapter(speech, checkpoint, set(names))
    return speech


def adapted(speech: "Speech", recipe: Recipe[Options]) -> list[str]:
    """Attach the recipe's adapters; the names of all that is then trained."""
    from sheen_lm import trained
    from sheen_qwen3_tts import adapters

    lora = recipe.model.lora
    assert lora is not None
    pattern = adapters.targets(lora.mlp, lora.subtalker)
    adapters.attach(speech, lora.rank, lora.alpha, lora.dropout, pattern)
    if lora.projection:
        speech.talker.text_projection.requires_grad_(True)
    adapters.languages(speech)
    return trained.masters(speech.talker)


@hookimpl
def loss(recipe: Recipe[Options], model: "nn.Module", batch: Batch, trace: bool) -> Loss:
    from torch.nn.functional import cross_entropy

    from sheen_qwen3_tts.layout import IGNORE

    targets = batch.inputs["targets"]
    first, inner = model(**batch.inputs, trace=trace)
    asked = targets[..., 0] != IGNORE
    wanted, last = targets[..., 0][asked], asked.sum(1, keepdim=True)
    talker = cross_entropy(first.float(), wanted, reduction="none")
    frames, groups = inner.each.shape
    parts = {
        f"head_{number}": (inner.each[:, number - 1].sum(), frames)
        for number in range(1, groups + 1)
    }
    ends = (asked.cumsum(1) == last)[asked]  # a sequence's last target
    parts["end_probability"] = ((-talker[ends]).exp().detach().sum(), int(ends.sum()))
    logits = {}
    if inner.logits is not None:
        logits = {"talker": first, "subtalker": inner.logits.flatten(0, 1)}
    terms = {
        "talker": Term(talker.sum()),
        "subtalker": Term(inner.total, recipe.model.subtalker_weight),
    }
    return Loss(terms, parts, logits)


@hookimpl
def train(recipe: Recipe[Options], run: Run) -> None:
    from sheen_lm import trained
    from sheen_lm.attention import taken
    from sheen_qwen3_tts import adapters, base, codec, lighter, selftest
    from sheen_qwen3_tts import checkpoint as saved

    options = recipe.model
    folder = place(recipe, run.artifacts)
    codec.check(folder, run.artifacts, str(run.rows.path.parent))
    speech = opened(recipe, run.resume, adapters.kept(recipe)) if run.resume else begun(recipe, run)
    # what is saved takes its other files from the base: a checkpoint may be rotated away
    speech.base = base.read(folder, options.tags)
    speech.to(run.accelerator.device)  # before modules are chosen by where they are
    if options.lora is None:
        adapters.freeze(speech, options.freeze)
        trained.masters(speech.talker)
    if options.gradient_checkpointing:  # after the adapters: it marks the layers that are there
        speech.talker.model.gradient_checkpointing_enable({"use_reentrant": False})
    if options.attention == "auto":
        run.say(f"attention: {taken(speech.attention, adapters.kept(recipe))}")
    lighter.lighten(speech.talker)
    groups = adapters.groups(
        speech, options.projection_learning_rate, options.subtalker_learning_rate
    )
    save: Any = saved.save_whole if options.lora is None else saved.save_adapter
    if options.selftest:
        save = selftest.after(save, recipe, shortest(recipe, run), run.warn)
    run.fit(speech, save, groups)


def begun(recipe: Recipe[Options], run: Run) -> "Speech":
    """The base with the run's voices, looked at and, where the recipe wants that, adapted."""
    from sheen_qwen3_tts import adapters, model, preflight
    from sheen_qwen3_tts import checkpoint as saved

    options, voices = recipe.model, saved.load_voices(run.artifacts)
    kind = adapters.kept(recipe)
    folder = place(recipe, run.artifacts)
    speech = model.load(folder, voices, options.attention, kind, options.tags)
    if options.preflight:
        some = run.rows[: min(len(run.rows), recipe.train.batch_size)]
        speech.to(run.accelerator.device)
        with run.accelerator.autocast():
            notice = preflight.check(speech, some, run.artifacts, options.base)
        if notice:
            run.warn(notice)
    if options.lora:
        adapted(speech, recipe)
    return speech


def shortest(recipe: Recipe[Options], run: Run) -> "dict[str, Tensor]":
    """The batch of the run's shortest row alone."""
    row = run.rows[int(run.rows.seconds.argmin())]
    return collate(recipe, [row], None, run.artifacts).inputs


@hookimpl
def synth(
    recipe: Recipe[Options], model: "Speech", requests: Iterable[Request], trace: bool
) -> Iterator[Audio]:
    from sheen_qwen3_tts import voice

    yield from voice.speak(recipe.model, model, list(requests), trace)


@hookimpl
def export(recipe: Recipe[Options], checkpoint: Path, kind: str, folder: Path) -> str:
    from sheen_qwen3_tts import exports

    return exports.write(recipe, checkpoint, kind, folder)
