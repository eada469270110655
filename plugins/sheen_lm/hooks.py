"""The hooks of a backbone of this kind; its module marks functions of these names and hands on what
they are given.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sheen_cli import (
    Audio,
    BackboneSpec,
    Batch,
    Clip,
    Corpus,
    Loss,
    Recipe,
    Request,
    Row,
    Run,
    SheenError,
    Skip,
    Term,
    say,
    warn,
)
from sheen_lm.layout import TERM
from sheen_lm.options import Options

if TYPE_CHECKING:
    from sheen_lm.codecs import Codec
    from sheen_lm.convention import Convention
    from sheen_lm.layout import Ids
    from sheen_lm.model import CodesLM

CODEC = ("model.codec", "model.codebooks", "model.stage")
PREPARED = {
    "sft": (*CODEC, "model.longest", "model.too_long"),
    "pt": (*CODEC, "model.base", "model.family", "model.convention", "model.pretraining"),
}
SNAC = (1, 2, 2, 3, 3, 3, 3)  # the layers of its codebooks
EXPORTS = ("merged", "adapter")
TINY = (
    "train.max_steps=150", "train.learning_rate=3e-3", "train.precision=fp32", "train.weights=fp32",
    "model.lora=null",
)  # fmt: skip


def describe(chosen: Options, name: str, tiny: Callable[[Path], Sequence[str]]) -> BackboneSpec:
    """What a recipe's codec and convention make of the backbone."""
    from sheen_lm import codecs

    shape = codecs.shape(chosen.codec)
    return BackboneSpec(
        options=type(chosen),
        sample_rate=shape.rate,
        terms=(TERM,),
        recipe=name,
        frame_rate=shape.rate / shape.samples,
        codebooks=chosen.written.codes.sizes,
        prepared_by=PREPARED[chosen.stage],
        corpus=corpus if chosen.stage == "pt" else None,
        reads=(*heeded(chosen.written), "reference"),
        takes_codes=True,
        codes_of={"snac_codes": framed} if chosen.written.codes.layers == SNAC else {},
        exports=EXPORTS,
        tiny=tiny,
        stacks=({"torch": ">=2.8", "transformers": ">=4.57.3"},),
        free=tuple(
            f"model.{key}"
            for key in (
                "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "repetition_window",
            )
        ),
    )  # fmt: skip


def heeded(written: "Convention") -> tuple[str, ...]:
    """Which parts of a request beside its text have a place in the prompt."""
    return tuple(name for name in ("speaker", "instruct") if getattr(written, name))


# --- data -----------------------------------------------------------------------------------------


def framed(cell: Any) -> Any:
    """The column of Sheen's own data sets: a list of codes for each layer."""
    from sheen_lm.codecs import snac

    return snac.framed(cell)


def prepare(recipe: Recipe[Any], clips: Iterable[Clip], artifacts: Path) -> Iterator[Row | Skip]:
    """Codes, a clip at a time; clips that are too long for a row are left out and counted."""
    from sheen_lm import codecs, layout, model, prepared, references

    options = recipe.model
    ids, pool, cut, described = ids_of(options), references.Pool(), 0, False
    prepared.check_positions(
        options.longest, "model.longest", model.config(options.base), options.base
    )
    speakers: Counter[str | None] = Counter()
    codes_are, longest = options.written.codes, options.longest

    @cache
    def codec() -> "Codec":
        found = codec_of(options)
        codecs.note(found, artifacts)
        return found

    seconds = options.encode_seconds
    for clip, codes in codecs.encoded(codec, clips, codes_are.sizes, codes_are.layers, seconds):
        if codecs.constant(codes):
            yield Skip("constant-codes", "the codec hears the same in every frame")
            continue
        prompt = layout.Prompt(clip.text, clip.speaker, clip.extra.get("instruct") or None)
        described = described or prompt.instruct is not None
        try:
            length = len(layout.build(prompt, codes, ids)[0])
        except SheenError as error:
            yield Skip("bad-text", str(error))
            continue
        if length > longest:
            if options.too_long == "drop" or layout.cut(prompt, ids, longest) is None:
                yield Skip("too-long", f"{length} tokens, more than model.longest={longest}")
                continue
            cut += 1
        if clip.split in (None, "train"):
            references.offer(pool, clip.speaker, references.Heard(clip.id, clip.text, codes))
        speakers[clip.speaker] += 1
        yield {"audio_codes": codes.tolist(), "tokens": min(length, longest)}
    references.save(pool, artifacts)
    prepared.note(ids, speakers, artifacts)
    if options.written.instruct and not described:
        warn("no row has a column 'instruct', by which this family's voices are described")
    if cut:
        say(f"{cut} rows have more than model.longest={longest} tokens; training cuts them")


def corpus(recipe: Recipe[Any]) -> Corpus:
    """Of stage pt: windows of the recipe's sources."""
    from sheen_lm import codecs, pretraining
    from sheen_lm.corpora import HeldOut

    options = recipe.model
    heard = any(map(pretraining.encoded, options.pretraining.sources))
    codec = codec_of(options, pretraining.revision(options.pretraining.sources)) if heard else None
    sha256 = None if codec is None else codec.sha256

    def encoding(artifacts: Path) -> pretraining.Encoding:
        if codec is not None:
            codecs.note(codec, artifacts)
        return pretraining.encoding(ids_of(options), sha256)

    held_out = HeldOut(seed=recipe.data.seed, share=recipe.data.validation)
    sizes = options.written.codes.sizes
    return pretraining.corpus(options.pretraining, held_out, sha256, encoding, sizes)


def ids_of(options: Options) -> "Ids":
    """The ids of the base's own tokenizer, with what the convention adds to it."""
    return known_ids(options.base, options.written.model_dump_json())


@cache
def known_ids(base: str, convention: str) -> "Ids":
    from sheen_lm import layout, model, vocabulary
    from sheen_lm.convention import Convention

    written, tokenizer = Convention.model_validate_json(convention), model.tokenizer(base)
    vocabulary.extend(tokenizer, written)
    return layout.resolve(written, tokenizer)


def codec_of(options: Options, revision: str | None = None) -> "Codec":
    from sheen_lm import codecs, layout

    commit = options.codec_revision or revision
    codec = codecs.load(options.codec, revision=commit, codebooks=options.codebooks)
    layout.check_codec(options.written, codec.name, codec.sizes, codec.layers)
    return codec


def collate(recipe: Recipe[Any], rows: Sequence[Row], seed: int | None, artifacts: Path) -> Batch:
    from sheen_lm import batches, corpora, layout, pretraining, references

    options = recipe.model
    ids = ids_of(options)
    if options.stage == "pt":
        return pretraining.collate(rows, options.pretraining, ids.pad, TERM)
    corpora.refuse_text_only(rows, "batch")

    def fits(row: Row, prompt: layout.Prompt) -> bool:
        return bool(len(batches.whole(ids, row, prompt).tokens) <= options.longest)

    pool = references.load(artifacts) if options.clone else references.Pool()
    prompts = batches.prompts(rows, pool, options.clone, seed, fits)
    window = options.longest if options.pack and seed is not None else None
    return batches.collate(ids, rows, prompts, options.longest, options.too_long, window)


# --- the model ------------------------------------------------------------------------------------


def load(recipe: Recipe[Any], checkpoint: Path | None) -> "CodesLM":
    """To speak with: in bfloat16 on a GPU, in float32 elsewhere."""
    import torch

    from sheen_lm import prepared

    kind = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    model = opened(recipe, checkpoint, kind)
    if checkpoint is not None:
        model.artifacts = checkpoint / "artifacts"
        model.learnt = prepared.voices(model.artifacts)
    for parameter in model.parameters():  # and no buffers: angles of positions stay exact
        parameter.data = parameter.data.to(kind)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def opened(recipe: Recipe[Any], checkpoint: Path | None, kind: Any) -> "CodesLM":
    """The base, extended, or a checkpoint; adapters are attached."""
    from sheen_lm import adapters, layout, vocabulary
    from sheen_lm.model import CodesLM
    from sheen_lm.model import load as load_lm

    options, written = recipe.model, recipe.model.written
    adapted = checkpoint is not None and (checkpoint / adapters.CONFIG).is_file()
    base = options.base if checkpoint is None or adapted else checkpoint
    revision = adapters.revision(checkpoint) if checkpoint is not None and adapted else None
    lm, tokenizer = load_lm(base, options.attention, kind, revision)
    added = vocabulary.extend(tokenizer, written)
    report = vocabulary.resize(lm, tokenizer, written, added, options.new_rows, recipe.train.seed)
    if checkpoint is None:
        say(vocabulary.describe(added, report))
        if written.codes.token is None and report.rows > report.before:
            warn(f"model.base={base} is no model of family {options.family}: it lacks its ids")
    ids = layout.resolve(written, tokenizer)
    model = CodesLM(lm, ids, audible(ids) if options.audio_only else None)
    model.fresh = report.fresh
    if checkpoint is not None and adapted:
        attach(options, model)
        adapters.load_adapter(model, checkpoint)
    return model


def export(recipe: Recipe[Any], checkpoint: Path, kind: str, folder: Path) -> str:
    import torch

    from sheen_lm import exports

    load = partial(opened, recipe, checkpoint, torch.float32)
    return exports.write(load, checkpoint, kind, folder)


def audible(ids: "Ids") -> Any:
    """All code tokens, and the end."""
    import numpy as np

    return np.append(ids.codes[ids.codes >= 0], ids.stop)


def attach(options: Options, model: "CodesLM") -> None:
    """The recipe's adapters, and vectors of their own for the convention's tokens and all else that
    the base never learnt, which the softmax sees too.
    """
    import numpy as np

    from sheen_lm import adapters

    lora = options.lora
    assert lora is not None
    pattern = adapters.linear(model.lm) if lora.targets == "all" else adapters.QUERY_VALUE
    ours = audible(model.ids), list(model.ids.roles.values()), list(model.fresh)
    rows = np.unique(np.concatenate(ours)).astype(int)
    adapters.attach(model, lora.rank, lora.alpha, lora.dropout, pattern, rows.tolist())


def loss(model: Any, batch: Batch, trace: bool) -> Loss:
    scored = model(**batch.inputs, trace=trace)
    logits = {} if scored.logits is None else {TERM: scored.logits}
    return Loss({TERM: Term(scored.total)}, {}, logits)


def train(recipe: Recipe[Any], run: Run) -> None:
    import torch

    from sheen_lm import adapters, codecs, prepared, pretraining, references, trained
    from sheen_lm import model as models
    from sheen_lm.attention import taken

    options = recipe.model
    data, noted = run.rows.path.parent, codecs.read(run.artifacts) or {}
    if noted:  # else the codes are the source's
        codecs.check(codec_of(options, noted["revision"]), run.artifacts, str(data))
    if options.clone and not any(len(each) > 1 for each in references.load(run.artifacts).values()):
        raise SheenError(
            f"model.clone={options.clone}: no speaker of {data} is named in two rows, so that none "
            f"has another recording to go on from; set model.clone=0, or name the speakers"
        )
    if options.stage == "pt":
        known = pretraining.encoding(ids_of(options), noted.get("sha256"))
        pretraining.check(data, options.pretraining, known)
    elif options.too_long == "drop":
        prepared.check_lengths(run.rows, ids_of(options), options.longest, run.artifacts)
    half = recipe.train.precision == "bf16" and options.lora is not None
    model = opened(recipe, run.resume, torch.bfloat16 if half else torch.float32)
    model.to(run.accelerator.device)
    model.artifacts = run.artifacts
    if options.lora is None:
        trained.freeze(model.lm, options.freeze)
    elif run.resume is None:
        attach(options, model)
    trained.masters(model.lm)
    if options.gradient_checkpointing:
        models.checkpoint(model)
    if options.attention == "auto":
        run.say(f"attention: {taken(model.attention, torch.bfloat16 if half else torch.float32)}")
    save: Any = models.save_whole if options.lora is None else adapters.save_adapter
    run.fit(model, save, adapters.groups(model, options.rows_learning_rate))


def synth(
    recipe: Recipe[Any], model: Any, requests: Iterable[Request], trace: bool
) -> Iterator[Audio]:
    from sheen_lm import codecs, voice

    noted = model.artifacts and codecs.read(model.artifacts)
    codec = codec_of(recipe.model, noted["revision"] if noted else None)
    if noted:  # other weights decode other sounds
        codecs.check(codec, model.artifacts, "the model's data")
    yield from voice.speak(recipe.model, model, codec, list(requests), trace)
