"""The pretraining stage as data: sources become shards of windows, and windows, mixed, the rows
that the host trains on. A row points into its shard; nothing is written twice.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

from sheen_cli import Batch, Corpus, Filled, Row, Section, SheenError, Skip, remove, say, warn
from sheen_lm import mixing, packing, shard_writer, shards
from sheen_lm.convention import normalizer
from sheen_lm.corpora import HeldOut, Source, opened
from sheen_lm.layout import IGNORE
from sheen_lm.mixing import Blend, Mixture, Stratum
from sheen_lm.shard_writer import Document, Encode, Made

if TYPE_CHECKING:
    from sheen_lm.layout import Ids

FOLDER = "corpus"  # where the host lets a corpus write, in the data's folder
CHUNK = 4096  # windows whose order is computed at once


class Pretraining(Section):
    """What is pretrained on, and how it is laid out. An epoch is the mixture once."""

    sources: tuple[Source, ...] = ()
    window: PositiveInt = 2048  # tokens
    packing: Literal["documents", "concatenated"] = "documents"  # apart, or one after the other
    tokens: PositiveInt | None = None  # of the mixture; none: as many as the sources have
    temperature: PositiveFloat = 1.0  # of languages: 1 as they are, more: more alike
    languages: dict[str, PositiveFloat] | None = None  # or their weights; one without is left out
    shard: int = Field(1 << 24, ge=1)  # tokens of a file


@dataclass(frozen=True)
class Encoding:
    """How rows become tokens, and what that depends on: hashes of the tokenizer and the codec, the
    convention's name or hash, and the number of ids.
    """

    tokenizer: str
    codec: str | None
    convention: str
    vocabulary: int
    speech: Encode
    text: Encode


def encoding(ids: "Ids", codec: str | None) -> Encoding:
    """Speech by the convention; text between the tokenizer's own tokens of a beginning and an end,
    where it has them. Text that holds one of the convention's tokens is refused, and counted.
    """
    from sheen_lm import batches, layout

    words, places, normalize = ids.tokenizer, ids.places, normalizer(ids.convention.normalizer)
    around = [
        [token] if token is not None else [] for token in (words.bos_token_id, words.eos_token_id)
    ]

    def text(row: Row) -> Document | Skip:
        tokens = words(normalize(row["text"]), add_special_tokens=False)["input_ids"]
        if ids.controls.intersection(tokens):
            return Skip("control-tokens", f"{row.get('id')}: text with tokens of the convention")
        return Document(np.array([*around[0], *tokens, *around[1]], np.int64))

    def speech(row: Row) -> Document | Skip:
        prompt, codes = batches.prompt_of(row), row["audio_codes"]
        try:
            tokens, _ = layout.build(prompt, np.asarray(codes), ids)
            start = len(layout.head(prompt, ids))
        except SheenError as error:
            return Skip("bad-row", f"{row.get('id')}: {error}")
        frames = len(layout.flatten(np.asarray(codes), ids))
        return Document(tokens, start, places, len(tokens) - start - frames)

    state = (
        words.backend_tokenizer.to_str()
        if words.is_fast
        else str(sorted(words.get_vocab().items()))
    )
    return Encoding(
        tokenizer=hashed(state),
        codec=codec,
        convention=hashed(ids.convention.model_dump_json()),
        vocabulary=max(
            len(words), int(ids.codes.max()) + 1, *(each + 1 for each in ids.roles.values())
        ),
        speech=speech,
        text=text,
    )


def hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def collate(rows: Sequence[Row], options: Pretraining, pad: int, term: str) -> Batch:
    """Windows as a batch of tokens, targets and, where documents are kept apart, segments."""
    import torch

    apart = options.packing == "documents"
    found = packing.arrays([shards.tokens_of(row) for row in rows], options.window, pad, apart)
    names = ("tokens", "targets", "segments") if apart else ("tokens", "targets")
    inputs = {name: torch.from_numpy(getattr(found, name)) for name in names}
    return Batch(inputs, {term: int((found.targets != IGNORE).sum())})


@dataclass(frozen=True)
class Windows:
    """A stratum's windows: where each lies, (w, 2) shard and number, and its tokens (w,)."""

    stratum: Stratum
    places: np.ndarray
    lengths: np.ndarray


def corpus(
    options: Pretraining,
    held_out: HeldOut,
    codec: str | None,
    encoding: Callable[[Path], Encoding],
    codebooks: Sequence[int] | None = None,
) -> Corpus:
    """The host's corpus of these sources. `encoding` is called with the artifacts' folder once the
    sources are known to be there; the other arguments decide what is read. `codebooks` are the
    sizes of the recipe's; speech of others is refused.
    """
    blends = {source.name: source.blend for source in options.sources}
    mixing.source_shares(dict.fromkeys(blends, 1), blends)  # refused before anything is read
    ways = {source.name: opened(source, held_out, codec, codebooks) for source in options.sources}

    def fill(folder: Path, artifacts: Path, overwrite: bool) -> Filled:
        known = encoding(artifacts)
        if overwrite:
            for path in [each for each in folder.glob("*") if each.name not in ways]:
                remove(path)  # a source that is no more
        manifests = {}
        for source in options.sources:
            read, origin = ways[source.name]
            made = Made(
                tokenizer=known.tokenizer,
                codec=known.codec,
                convention=known.convention,
                vocabulary=known.vocabulary,
                window=options.window,
                packing=options.packing,
                split=held_out.model_dump(),
                origin=origin,
                shard=options.shard,
            )
            encode = known.speech if source.kind == "speech" else known.text
            manifests[source.name] = shard_writer.write(
                folder / source.name, read, encode, made, overwrite
            )
            say(line(source.name, manifests[source.name]["totals"]))
        return filled(options, blends, held_out.seed, folder, manifests)

    return Corpus({name: origin for name, (_, origin) in ways.items()}, fill)


def encoded(source: Source) -> bool:
    """Whether a codec made its codes, not the data that they came with."""
    from sheen_lm.codecs import record

    folder = Path(source.path).expanduser()
    return source.kind == "speech" and record.read(folder / "artifacts") is not None


def revision(sources: Sequence[Source]) -> str | None:
    """The Hub's commit of the codec that the first source was prepared with, if it was."""
    from sheen_lm.codecs import record

    folders = [Path(source.path).expanduser() for source in sources if encoded(source)]
    return record.revision(folders[0] / "artifacts") if folders else None


def check(data: Path, options: Pretraining, known: Encoding) -> None:
    """Before a training: raises SheenError where the windows of a prepared folder are not all
    there, or are of another tokenizer, codec or convention than is now used.
    """
    wanted = {key: getattr(known, key) for key in ("tokenizer", "codec", "convention")}
    for source in options.sources:
        shards.manifest(data / FOLDER / source.name, wanted)


def line(name: str, totals: dict[str, Any]) -> str:
    """What a source gave, in words."""
    refused = shard_writer.refused(totals["rejected"], totals["details"])
    return (
        f"{name}: {totals['documents']} documents, {totals['tokens']} tokens, "
        f"{totals['seconds'] / 3600:.2f} h, {totals['windows']} windows, "
        f"{100 * totals['fill']:.1f} % full" + (f"; left out: {refused}" if refused else "")
    )


def filled(
    options: Pretraining,
    blends: Mapping[str, Blend],
    seed: int,
    folder: Path,
    manifests: dict[str, dict[str, Any]],
) -> Filled:
    """The rows of training, mixed, and those of validation, as they lie."""
    training, validation = found(folder, list(manifests))
    mixed = mixing.mixture(
        [windows.stratum for windows in training],
        blends,
        options.tokens,
        options.temperature,
        options.languages,
        seed,
    )
    by_part = [
        next(windows for windows in training if windows.stratum == part.stratum)
        for part in mixed.parts
    ]
    for words in dropped([windows.stratum for windows in training], mixed):
        say(words)
    facts = mixing.report(mixed.parts, realised(mixed, by_part))
    for each in facts:
        wanted, came = (100 * float(each[name]) for name in ("wanted", "realised"))
        say(
            f"{each['source']} ({each['language'] or 'no language'}): {came:.2f} % of the tokens "
            f"(wanted {wanted:.2f} %), {mixing.times(float(each['passes']))}"
        )
    if again := mixing.repeated(facts):
        warn(
            f"windows come more than {mixing.OFTEN} times: {', '.join(again)}; that teaches little "
            f"that is new: set a smaller `model.pretraining.tokens`, or smaller weights or shares"
        )
    for words in mixing.distant(facts):
        warn(f"{words}: too few windows for shares within a hundredth")
    rows = {"train": mixed_rows(mixed, by_part, folder)}
    if validation:
        rows["validation"] = plain_rows(validation, folder)
    totals = [manifest["totals"] for manifest in manifests.values()]
    rejected: dict[str, int] = {}
    for each in totals:
        for reason, count in each["rejected"].items():
            rejected[reason] = rejected.get(reason, 0) + count
    return Filled(
        rows=rows,
        read=sum(each["read"] for each in totals),
        rejected=rejected,
        facts={"window": options.window, "sources": manifests, "mixture": facts},
    )


def found(folder: Path, names: Sequence[str]) -> tuple[list[Windows], list[Windows]]:
    """The windows of finished shards by source and language: for training, for validation."""
    training: list[Windows] = []
    validation: list[Windows] = []
    for name in names:
        lengths = shards.lengths(folder / name)
        for (language, held_out), places in shards.places(folder / name).items():
            mine = np.empty(len(places), np.uint32)
            for number, each in enumerate(lengths):
                here = places[:, 0] == number
                mine[here] = each[places[here, 1]]
            stratum = Stratum(name, language, len(mine), int(mine.sum(dtype=np.int64)))
            (validation if held_out else training).append(Windows(stratum, places, mine))
    return training, validation


def dropped(strata: Sequence[Stratum], mixed: Mixture) -> list[str]:
    """The sources that have no part in the mixture, in words."""
    there = {part.stratum.source for part in mixed.parts}
    return [
        f"{name}: left out, none of its languages has a weight: it has "
        + ", ".join(repr(stratum.language) for stratum in mine)
        for name, mine in mixing.by_source(strata).items()
        if name not in there
    ]


def drawn(mixed: Mixture) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The mixture's parts and windows, a chunk at a time."""
    for at in range(0, len(mixed), CHUNK):
        yield mixed.at(np.arange(at, min(at + CHUNK, len(mixed))))


def realised(mixed: Mixture, by_part: Sequence[Windows]) -> list[int]:
    """The tokens that the mixture has of each part."""
    tokens = [0] * len(by_part)
    for numbers, windows in drawn(mixed):
        for part in np.unique(numbers).tolist():
            mine = by_part[part].lengths[windows[numbers == part]]
            tokens[part] += int(mine.sum(dtype=np.int64))
    return tokens


def mixed_rows(mixed: Mixture, by_part: Sequence[Windows], folder: Path) -> Iterator[Row]:
    for numbers, windows in drawn(mixed):
        for part, window in zip(numbers.tolist(), windows.tolist(), strict=True):
            yield window_row(by_part[part], window, folder)


def plain_rows(some: Sequence[Windows], folder: Path) -> Iterator[Row]:
    for windows in some:
        for number in range(len(windows.places)):
            yield window_row(windows, number, folder)


def window_row(windows: Windows, number: int, folder: Path) -> Row:
    source = windows.stratum.source
    shard, window = windows.places[number].tolist()
    path = shards.name(folder / source, shard)
    beside = f"{folder.name}/{source}/{path.name}"
    return {**shards.row(shards.opened(path), window, beside), "source": source}
