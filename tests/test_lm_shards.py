"""The pretraining stage: documents into windows, windows into shards, shards into a mixture."""

import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import sheen
from crash import Case, Disk, Job, schedule
from fakehub import FakeHub
from torch.nn.functional import cross_entropy

from sheen_cli import Batch, HubSet, Loss, Row, Run, SheenError, Skip, Term, jobs
from sheen_cli.backbones import Backbone, resolve
from sheen_cli.prepare import prepare
from sheen_cli.recipe import Recipe
from sheen_cli.rows import Rows, encode
from sheen_lm import (
    corpora,
    families,
    layout,
    miniature,
    mixing,
    packing,
    pretraining,
    shard_writer,
    shards,
    vocabulary,
)
from sheen_lm.convention import Convention
from sheen_lm.corpora import HeldOut, Source
from sheen_lm.mixing import Blend, Stratum
from sheen_lm.packing import IGNORE, Shape
from sheen_lm.pretraining import Encoding, Pretraining, corpus
from sheen_lm.shard_writer import Document, Item, Made

STRIDE, CODES, START, END, PAD = 3, 16, 256, 257, 258
VOCABULARY = 260 + STRIDE * CODES
NOBODY = HeldOut(seed=1, share=0)


def text_document(row: Row) -> Document:
    return Document(np.array([*row["text"].encode(), END]))


def speech_document(row: Row) -> Document | Skip:
    """A toy grammar: the text's bytes, a start, three tokens a frame, an end."""
    codes = np.array(row["audio_codes"])
    if codes.max() >= CODES:
        return Skip("bad-codes")
    head = [*row["text"].encode(), START]
    ids = [*head, *(260 + codes + np.arange(STRIDE) * CODES).ravel(), END]
    return Document(np.array(ids), len(head), STRIDE, 1)


def encoding(artifacts: Path, codec: str = "codec-1") -> Encoding:
    return Encoding("tokenizer-1", codec, "toy", VOCABULARY, speech_document, text_document)


def made(**changes: object) -> Made:
    whole = Made("t", "c", "toy", VOCABULARY, 32, "documents", {"seed": 1}, {"files": "x"}, 500)
    return replace(whole, **changes)


def rows_of(count: int, seed: int = 0) -> list[Row]:
    """Speech and text by turns, a few of them empty or longer than a window."""
    random = Random(seed)
    rows = []
    for number in range(count):
        row: Row = {"id": f"r{number}", "text": "ab c"[: number % 5] * random.choice((1, 2, 9))}
        if number % 2:
            row["audio_codes"] = [
                [random.randrange(CODES) for _ in range(STRIDE)]
                for _ in range(random.choice((1, 2, 5, 30)))
            ]
        rows.append(row)
    return rows


def items(rows: list[Row], skip: int) -> Iterator[Item | Skip]:
    for number, row in enumerate(rows[skip:], skip):
        if not row["text"]:
            yield Skip("empty-text", f"{row['id']} has no words")
        else:
            language = "ha" if number % 3 else "no"
            yield Item(row, language, len(row.get("audio_codes", [])) / 4, number % 7 == 0)


def either(row: Row) -> Document | Skip:
    return speech_document(row) if "audio_codes" in row else text_document(row)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# --- packing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape, window, pieces",
    [
        (Shape(10), 10, [10]),
        (Shape(11), 10, [10, 1]),
        (Shape(25), 10, [10, 10, 5]),
        (Shape(4 + 9 + 1, 4, 3, 1), 14, [14]),
        (Shape(4 + 9 + 1, 4, 3, 1), 13, [10, 4]),  # the end is never alone
        (Shape(4 + 9 + 1, 4, 3, 1), 9, [7, 7]),
        (Shape(4 + 9 + 1, 4, 3, 1), 4, [4, 3, 3, 4]),
        (Shape(12 + 6 + 1, 12, 3, 1), 5, [5, 5, 5, 4]),
        (Shape(5, 4, 3, 1), 4, [4, 1]),
        (Shape(4 + 6 + 3, 4, 3, 3), 7, [7, 6]),  # an end of three tokens, as long as a frame
    ],
)
def test_long_documents_are_cut_between_frames(
    shape: Shape, window: int, pieces: list[int]
) -> None:
    assert packing.cut(shape, window) == pieces


def test_a_window_without_room_for_a_frame_is_refused() -> None:
    with pytest.raises(SheenError, match="a window of 3 tokens holds no frame of 3 and the end"):
        packing.cut(Shape(14, 4, 3, 1), 3)


def test_best_fit_fills_the_fullest_window_that_holds_a_piece() -> None:
    assert packing.best_fit([3, 6, 4, 5, 2], 10) == [[1, 2], [3, 0, 4]]
    assert packing.best_fit([10, 10], 10) == [[0], [1]]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("way", list(packing.PACKINGS))
def test_packing_loses_no_token_and_cuts_only_what_does_not_fit(way: str, seed: int) -> None:
    random, window = Random(seed), 64
    shapes = []
    for _ in range(400):
        start, frames = random.randrange(1, 40), random.choice((0, 1, 4, 40))
        stride = random.choice((1, 3, 7))
        tail = random.randint(0, 3) if frames else 1
        shapes.append(Shape(start + frames * stride + tail, start, stride, tail))
    windows = packing.PACKINGS[way](shapes, window)
    assert all(0 < sum(piece.length for piece in each) <= window for each in windows)
    places = sorted((piece for each in windows for piece in each), key=lambda piece: piece[:2])
    tokens = [
        (piece.document, at)
        for piece in places
        for at in range(piece.begin, piece.begin + piece.length)
    ]
    assert tokens == [(n, at) for n, shape in enumerate(shapes) for at in range(shape.length)]
    total = sum(shape.length for shape in shapes)
    assert total / (len(windows) * window) > 0.95
    if way == "concatenated":
        assert len(windows) == -(-total // window)
        return
    for piece in places:
        shape = shapes[piece.document]
        assert not piece.begin or shape.length > window
        assert piece.begin <= shape.start or (piece.begin - shape.start) % shape.stride == 0
        assert shape.length - piece.begin > shape.tail or piece.begin <= shape.start


def test_targets_are_every_token_that_has_one_before_it_in_its_document() -> None:
    windows = [(np.array([5, 6, 7, 8, 9]), [3, 2]), (np.array([1]), [1])]
    got = packing.arrays(windows, 6, PAD)
    assert got.tokens.tolist() == [[5, 6, 7, 8, 9, PAD], [1, *[PAD] * 5]]
    assert got.segments.tolist() == [[1, 1, 1, 2, 2, 0], [1, 0, 0, 0, 0, 0]]
    assert got.targets.tolist() == [[6, 7, IGNORE, 9, IGNORE, IGNORE], [IGNORE] * 6]
    along = packing.arrays(windows, 6, PAD, apart=False)
    assert along.segments.tolist()[0] == [1, 1, 1, 1, 1, 0]
    assert along.targets.tolist()[0] == [6, 7, 8, 9, IGNORE, IGNORE]


def test_a_token_that_equals_the_padding_is_still_a_target() -> None:
    got = packing.arrays([(np.array([5, PAD, PAD]), [3])], 4, PAD)
    assert got.targets.tolist() == [[PAD, PAD, IGNORE, IGNORE]]


# --- shards --------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", list(packing.PACKINGS))
def test_s2_20_shards_load_back_to_identical_ids(tmp_path: Path, way: str) -> None:
    rows = rows_of(200)
    facts = shard_writer.write(tmp_path / "s", partial(items, rows), either, made(packing=way))
    assert len(facts["shards"]) > 5
    due = [either(item.row).ids for item in items(rows, 0) if isinstance(item, Item)]
    got = list(shards.documents(tmp_path / "s"))
    assert [each.tolist() for each in got] == [each.tolist() for each in due]
    assert got[0].dtype == np.uint32
    totals = facts["totals"]
    assert (totals["read"], totals["documents"]) == (200, len(due))
    assert totals["tokens"] == sum(map(len, due))
    assert totals["rejected"] == {"empty-text": 200 - len(due)}
    assert totals["details"] == {"empty-text": "r0 has no words"}
    languages = totals["languages"]
    assert set(languages) == {"ha", "no"}
    for name in ("documents", "tokens", "seconds"):
        assert sum(each[name] for each in languages.values()) == pytest.approx(totals[name])
    assert totals["seconds"] == sum(
        item.seconds for item in items(rows, 0) if isinstance(item, Item)
    )


def test_windows_hold_one_language_and_one_side(tmp_path: Path) -> None:
    rows = rows_of(200)
    shard_writer.write(tmp_path / "s", partial(items, rows), either, made())
    sides = {}
    number = 0
    for item in items(rows, 0):
        if isinstance(item, Item):
            sides[number] = (item.language, item.held_out)
            number += 1
    found = Counter()
    opened = list(shards.all_of(tmp_path / "s"))
    for key, places in shards.places(tmp_path / "s").items():
        for shard, window in places.tolist():
            facts = opened[shard].windows[window]
            pieces = opened[shard].pieces[facts[shards.PIECE] :][: facts[shards.PIECES]]
            assert {sides[each] for each in pieces[:, shards.DOCUMENT].tolist()} == {key}
            tokens, lengths = opened[shard].window(window)
            assert len(tokens) == sum(lengths) == pieces[:, shards.COUNT].sum() <= 32
            found[key] += len(tokens)
    assert (
        sum(found.values())
        == json.loads((tmp_path / "s" / "manifest.json").read_text())["totals"]["tokens"]
    )


def test_a_long_source_says_how_far_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(folder: Path, count: int) -> None:
        many = [Item({"id": f"d{n}", "text": "x" * 99_999}) for n in range(count)]
        shard_writer.write(folder, lambda skip: many[skip:], text_document, made(shard=500_000))

    write(tmp_path / "wiki", 11)
    said = capsys.readouterr().err.splitlines()
    assert said == ["wiki: 1 shard, 0.5 M tokens", "wiki: 2 shards, 1.0 M tokens"]
    write(tmp_path / "wiki", 11)
    assert capsys.readouterr().err == ""
    # killed after its second shard
    for name in ("manifest.json", "00002.safetensors"):
        (tmp_path / "wiki" / name).unlink()
    write(tmp_path / "wiki", 15)
    said = capsys.readouterr().err.splitlines()
    assert said == ["wiki: going on after 2 shards", "wiki: 3 shards, 1.5 M tokens"]


def test_finished_shards_stay_as_they_are(tmp_path: Path) -> None:
    rows = rows_of(60)
    first = shard_writer.write(tmp_path / "s", partial(items, rows), either, made())
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").iterdir()}

    def unread(skip: int) -> Iterator[Item]:
        raise AssertionError("read again")

    assert shard_writer.write(tmp_path / "s", unread, either, made()) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s").iterdir()} == times


@pytest.mark.parametrize(
    "changes, shown",
    [
        ({"codec": "d"}, r"codec c -> d"),
        ({"tokenizer": "u", "window": 64}, r"tokenizer t -> u, window 32 -> 64"),
        ({"origin": {"files": "y"}}, r"origin"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_s2_21_shards_made_otherwise_are_refused_in_a_line(
    tmp_path: Path, changes: dict, shown: str, finished: bool
) -> None:
    shard_writer.write(tmp_path / "s", partial(items, rows_of(60)), either, made())
    if not finished:
        (tmp_path / "s" / "manifest.json").unlink()
    before = contents(tmp_path)
    with pytest.raises(SheenError, match=rf"s holds shards made otherwise \({shown}") as caught:
        shard_writer.write(tmp_path / "s", partial(items, rows_of(60)), either, made(**changes))
    assert "\n" not in str(caught.value) and contents(tmp_path) == before


def test_a_training_refuses_shards_of_another_codec(tmp_path: Path) -> None:
    facts = shard_writer.write(tmp_path / "s", partial(items, rows_of(60)), either, made())
    assert shards.manifest(tmp_path / "s", {"codec": "c", "tokenizer": "t"}) == facts
    with pytest.raises(SheenError, match="codec c -> other"):
        shards.manifest(tmp_path / "s", {"codec": "other", "tokenizer": "t"})


def test_damaged_and_missing_shards_are_named(tmp_path: Path) -> None:
    shard_writer.write(tmp_path / "s", partial(items, rows_of(100)), either, made())
    path = tmp_path / "s" / "00001.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-8])
    with pytest.raises(SheenError, match=r"00001\.safetensors has \d+ bytes, not \d+"):
        shards.manifest(tmp_path / "s")
    with pytest.raises(SheenError, match=r"00001\.safetensors is damaged"):
        shards.opened(path)
    path.unlink()
    with pytest.raises(SheenError, match=r"00001\.safetensors is missing"):
        shards.manifest(tmp_path / "s")
    with pytest.raises(SheenError, match="holds no finished shards"):
        shards.manifest(tmp_path / "t")


def test_a_damaged_shard_of_an_unfinished_writer_is_written_again(tmp_path: Path) -> None:
    rows = rows_of(100)
    shard_writer.write(tmp_path / "s", partial(items, rows), either, made())
    due = contents(tmp_path / "s")
    (tmp_path / "s" / "manifest.json").unlink()
    (tmp_path / "s" / "00001.safetensors").write_bytes(b"\x10")
    shard_writer.write(tmp_path / "s", partial(items, rows), either, made())
    assert contents(tmp_path / "s") == due


def test_tokens_beyond_the_vocabulary_are_refused(tmp_path: Path) -> None:
    """They would be raw ids of something else, or crash the model."""
    row = {"id": "r1", "text": "x"}
    with pytest.raises(SheenError, match="r1 becomes the token 999, beyond the vocabulary of 308"):
        shard_writer.write(
            tmp_path / "s", lambda skip: [Item(row)], lambda row: Document(np.array([999])), made()
        )
    odd = [Skip("empty-text", "a.txt:1"), Skip("bad-row", "\ud800\n" * 99), Skip("bad-row")]
    with pytest.raises(SheenError) as caught:
        shard_writer.write(tmp_path / "s", lambda skip: odd, either, made())
    said = "no usable document for s: 1 empty-text (a.txt:1), 2 bad-row (\\ud800 \\ud800 "
    assert str(caught.value).startswith(said) and len(str(caught.value)) < len(said) + 160
    with pytest.raises(SheenError, match="no usable document for s: it is empty"):
        shard_writer.write(tmp_path / "s", lambda skip: [], either, made())


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    def read(count: int, skip: int) -> Iterator[Item]:
        for number in range(skip, count):
            yield Item({"text": f"document {number} " * 20})

    def peak(count: int) -> int:
        tracemalloc.start()
        settings = made(window=256, shard=20_000)
        facts = shard_writer.write(tmp_path / f"{count}", partial(read, count), either, settings)
        assert len(facts["shards"]) > count / 80
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(100)  # what is imported and compiled once
    assert peak(4000) < 1.2 * peak(500)


# --- mixing --------------------------------------------------------------------------------------

TWO = [Stratum("speech", "ha", 4000, 8_000_000), Stratum("text", "ha", 9000, 18_300_000)]


def test_s2_23_a_mixture_of_two_realises_its_shares() -> None:
    mixed = mixing.mixture(
        TWO, {"speech": Blend(weight=7), "text": Blend(weight=3)}, tokens=10_000_000
    )
    numbers, _ = mixed.at(np.arange(len(mixed)))
    tokens = [int((numbers == n).sum()) * TWO[n].tokens / TWO[n].windows for n in (0, 1)]
    assert sum(tokens) == pytest.approx(10_000_000, rel=0.01)
    assert tokens[0] / sum(tokens) == pytest.approx(0.7, rel=0.01)
    assert mixing.distant(mixing.report(mixed.parts, [round(each) for each in tokens])) == []
    # and every stretch of a thousand windows has about that
    for at in range(0, len(mixed) - 1000, 1000):
        assert (numbers[at : at + 1000] == 0).mean() == pytest.approx(0.7, abs=0.06)


def test_s2_42_the_order_is_a_pure_function_of_seed_and_position() -> None:
    blends = {"speech": Blend(), "text": Blend()}
    mixed = mixing.mixture(TWO, blends, seed=5)
    whole = mixed.at(np.arange(len(mixed)))
    again = mixing.mixture(TWO, blends, seed=5)
    for at in (0, 17, len(mixed) - 1):
        numbers, windows = again.at(np.array([at]))
        assert (numbers[0], windows[0]) == (whole[0][at], whole[1][at])
    assert (mixing.mixture(TWO, blends, seed=6).at(np.arange(50))[1] != whole[1][:50]).any()


def test_no_window_comes_twice_before_all_have_come_once() -> None:
    strata = [Stratum("a", "", 37, 3700), Stratum("b", "", 10, 1000)]
    for tokens in (200, 2400, 7400, 24_100):
        blends = {"a": Blend(weight=1), "b": Blend(weight=1)}
        mixed = mixing.mixture(strata, blends, tokens=tokens)
        numbers, windows = mixed.at(np.arange(len(mixed)))
        for number, stratum in enumerate(strata):
            times = np.bincount(windows[numbers == number], minlength=stratum.windows)
            assert len(times) == stratum.windows and max(times) - min(times) <= 1
            assert sum(times) == mixed.parts[number].count == round(tokens / 200)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 1000])
def test_permuted_is_a_permutation(count: int) -> None:
    got = mixing.permuted(np.arange(count), count, "key")
    assert sorted(got.tolist()) == list(range(count))
    assert count < 16 or got.tolist() != list(range(count))


def test_a_small_set_is_blended_in_with_a_share_of_its_own() -> None:
    """And a set of one window is not rounded away."""
    strata = [*TWO, Stratum("paired", "ha", 20, 40_000), Stratum("tiny", "ha", 1, 100)]
    blends = {name: Blend() for name in ("speech", "text")} | {
        "paired": Blend(share=0.1), "tiny": Blend(share=1e-9)
    }  # fmt: skip
    mixed = mixing.mixture(strata, blends, tokens=4_000_000)
    shares = {part.stratum.source: part for part in mixed.parts}
    assert shares["paired"].share == 0.1 and shares["paired"].count == 200
    assert shares["speech"].share == pytest.approx(0.9 * 8 / 26.3)
    assert shares["tiny"].count == 1


def test_what_comes_often_is_named_once(
    sources: list[Source], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = [mixing.times(passes) for passes in (0.01, 0.05, 1.0, 2.34, 4.04, 1234567.89)]
    assert shown == [
        "under 0.1 times", "0.1 times", "1 times", "2.3 times", "4 times", "1234567.9 times"
    ]  # fmt: skip
    facts = [
        {"source": "a", "language": "ha", "passes": 4.04},
        {"source": "a", "language": "", "passes": 12.25},
    ]
    assert mixing.repeated(facts) == ["a (no language) 12.2 times"]
    prepared(sources, tmp_path / "some", tokens=10_000)
    said = capsys.readouterr().err
    assert "times" in said and "come more than" not in said
    prepared(sources, tmp_path / "many", tokens=150_000)
    (line,) = [each for each in capsys.readouterr().err.splitlines() if "come more than" in each]
    again = r"talk \((ha|no)\) \d+(\.\d)? times, .*studio \((ha|no)\) \d+(\.\d)? times"
    due = rf"warning: windows come more than 4 times: {again}; .* `model\.pretraining\.tokens`, .*"
    assert re.fullmatch(due, line)


def test_s2_24_languages_are_balanced_within_a_source() -> None:
    tokens = {"en": 8_000_000, "ha": 80_000}
    as_they_are = mixing.language_shares(tokens, 1.0, None)
    assert as_they_are["ha"] == pytest.approx(1 / 101)
    assert mixing.language_shares(tokens, 2.0, None)["ha"] == pytest.approx(1 / 11)
    assert mixing.language_shares(tokens, 1e9, None)["ha"] == pytest.approx(0.5)
    assert mixing.language_shares(tokens, 1.0, {"ha": 1, "en": 3})["ha"] == 0.25
    strata = [Stratum("s", name, 100, count) for name, count in tokens.items()]
    assert wanted(strata, {}, 2.0) == pytest.approx({"s en": 10 / 11, "s ha": 1 / 11})
    assert wanted(strata, {}, 1.0, {"ha": 1, "no": 3}) == {"s ha": 1}


def wanted(
    strata: list[Stratum],
    blends: dict[str, Blend],
    temperature: float = 1.0,
    languages: dict[str, float] | None = None,
) -> dict[str, float]:
    """The parts of a mixture, by source and language."""
    blends = {each.source: Blend(kind="speech") for each in strata} | blends
    parts = mixing.mixture(strata, blends, 10_000_000, temperature, languages).parts
    assert sum(part.share for part in parts) == pytest.approx(1)
    return {f"{part.stratum.source} {part.stratum.language}": part.share for part in parts}


TALK, RADIO = Stratum("talk", "ha", 400, 100_000), Stratum("radio", "en", 9000, 1_600_000)
MORE = Stratum("more", "ha", 100, 300_000)
MIXED = [Stratum("both", "ha", 100, 200_000), Stratum("both", "en", 100, 600_000)]
WIKI = Stratum("wiki", "ha", 900, 500_000)
TEXT = {"wiki": Blend(kind="text")}


def test_languages_are_balanced_across_the_sources_of_a_kind() -> None:
    assert wanted([TALK, RADIO], {}, 2.0) == pytest.approx({"talk ha": 1 / 5, "radio en": 4 / 5})
    # speech and text apart: each keeps its part of the tokens
    speech = 1.7 / 2.2
    assert wanted([TALK, RADIO, WIKI], TEXT, 2.0) == pytest.approx(
        {"talk ha": speech / 5, "radio en": speech * 4 / 5, "wiki ha": 1 - speech}
    )
    # sources of one language keep their proportions, a small part of a source stays small
    assert wanted([TALK, MORE, RADIO], {}, 2.0) == pytest.approx(
        {"talk ha": 1 / 12, "more ha": 3 / 12, "radio en": 8 / 12}
    )
    assert wanted([*MIXED, TALK, RADIO], {}, 1.0, {"ha": 1, "en": 3}) == pytest.approx(
        {"both ha": 1 / 6, "both en": 9 / 44, "talk ha": 1 / 12, "radio en": 24 / 44}
    )
    strata = [TALK, RADIO, MORE, *MIXED, WIKI]
    tokens = sum(each.tokens for each in strata)
    due = {f"{each.source} {each.language}": each.tokens / tokens for each in strata}
    assert wanted(strata, TEXT) == pytest.approx(due)


def test_weights_of_sources_count_inside_a_language() -> None:
    blends = {
        "talk": Blend(6, kind="speech"), "more": Blend(2, kind="speech"),
        "radio": Blend(1, kind="speech"), "wiki": Blend(1, kind="text"),
    }  # fmt: skip
    strata = [TALK, MORE, RADIO, WIKI]
    as_they_are = {"talk ha": 0.6, "more ha": 0.2, "radio en": 0.1, "wiki ha": 0.1}
    assert wanted(strata, blends) == as_they_are
    assert wanted(strata, blends, 2.0) == pytest.approx(
        {
            "talk ha": 0.9 / 3 * 3 / 4,
            "more ha": 0.9 / 3 / 4,
            "radio en": 0.9 * 2 / 3,
            "wiki ha": 0.1,
        }
    )
    assert wanted(strata, blends, 2.0, {"ha": 1, "en": 2}) == pytest.approx(
        wanted(strata, blends, 2.0)
    )
    # where all speak one language nothing is to be balanced
    assert wanted([TALK, MORE], {}, 3.0) == pytest.approx(wanted([TALK, MORE], {}))


def test_a_source_with_a_share_keeps_it_and_is_balanced_inside() -> None:
    blends = {"both": Blend(share=0.2, kind="speech")}
    due = {"talk ha": 0.8 / 5, "radio en": 0.8 * 4 / 5}
    root = 3**0.5
    inside = {"both ha": 0.2 / (1 + root), "both en": 0.2 * root / (1 + root)}
    assert wanted([TALK, RADIO, *MIXED], blends, 2.0) == pytest.approx(due | inside)
    assert wanted([TALK, RADIO, *MIXED], blends, 2.0, {"ha": 1}) == pytest.approx(
        {"talk ha": 0.8, "both ha": 0.2}
    )


def test_sources_in_other_languages_are_as_if_not_there() -> None:
    blends = {"talk": Blend(3), "radio": Blend(9), "more": Blend(1)}
    assert wanted([TALK, RADIO, MORE], blends, 1.0, {"ha": 1}) == {"talk ha": 0.75, "more ha": 0.25}
    assert len(mixing.mixture([TALK, RADIO], blends, None, 1.0, {"ha": 1})) == TALK.windows
    # only sources with a share are left
    blends = {"talk": Blend(share=0.3), "more": Blend(share=0.1), "radio": Blend(share=0.6)}
    due = pytest.approx({"talk ha": 0.75, "more ha": 0.25})
    assert wanted([TALK, RADIO, MORE], blends, 1.0, {"ha": 1}) == due
    assert wanted([TALK, RADIO, MORE], blends | {"radio": Blend()}, 1.0, {"ha": 1}) == due
    blends = {"talk": Blend(share=0.3), "both": Blend(share=0.3), "no": Blend(share=0.4)}
    strata = [TALK, *MIXED, Stratum("no", "no", 9, 90)]
    assert wanted(strata, blends, 1.0, {"ha": 1, "en": 3}) == pytest.approx(
        {"talk ha": 0.5, "both ha": 0.125, "both en": 0.375}
    )
    with pytest.raises(SheenError, match="sources has a weight: they have 'ha', 'en'"):
        wanted([TALK, RADIO], {}, 1.0, {"no": 1})


def test_a_source_that_is_left_out_is_named(
    sources: list[Source], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = prepared(sources, tmp_path / "data", languages={"ha": 1}, tokens=10_000)["corpus"]
    assert {(each["source"], each["language"]) for each in facts["mixture"]} == {
        ("talk", "ha"), ("studio", "ha")
    }  # fmt: skip
    assert sum(each["realised"] for each in facts["mixture"]) == pytest.approx(1)
    due = "wiki: left out, none of its languages has a weight: it has ''"
    assert capsys.readouterr().err.splitlines().count(due) == 1


def test_a_part_that_rounds_to_nothing_is_reported() -> None:
    parts = mixing.mixture([TALK, RADIO], {"talk": Blend(1e-9), "radio": Blend(1)}, 10**9).parts
    facts = mixing.report(parts, [250, 10**9])
    assert facts[0]["wanted"] == 0 and mixing.distant(facts) == []


@pytest.mark.parametrize(
    "blends, problem",
    [
        ({"speech": Blend(share=0.8), "text": Blend(share=0.7)}, "add up to 1.5"),
        ({"speech": Blend(share=1.0), "text": Blend(weight=1)}, "leave something to the other"),
        ({"speech": Blend(share=0.2), "text": Blend(share=0.3)}, "without others they make 1"),
        ({"speech": Blend(weight=2), "text": Blend()}, "text has neither a weight nor a share"),
    ],
)
def test_shares_that_cannot_be_are_refused(blends: dict, problem: str) -> None:
    with pytest.raises(SheenError, match=problem):
        mixing.mixture(TWO, blends)
    # and before anything is read
    sources = [
        Source(name=name, kind="text", path="nothing", weight=blend.weight, share=blend.share)
        for name, blend in blends.items()
    ]
    with pytest.raises(SheenError, match=problem):
        corpus(Pretraining(sources=sources), NOBODY, None, encoding)


# --- corpora -------------------------------------------------------------------------------------


def read(source: Source, held_out: HeldOut = NOBODY, skip: int = 0) -> list[Item | Skip]:
    return list(corpora.opened(source, held_out, None)[0](skip))


def texts(found: list[Item | Skip]) -> list[str]:
    return [each.row["text"] if isinstance(each, Item) else each.reason for each in found]


def test_text_is_nfc_and_otherwise_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    lines = [{"text": " Ya\u0304ya\t"}, {"text": "  "}, {"other": "x"}, {"text": "\ud800"}]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\nno json\n")
    (folder / "b.txt").write_text("\ufeffone\r\ntwo\n\n\n three\n", "utf-8", newline="")
    (folder / "c.md").write_text("not read")
    source = Source(name="t", kind="text", path=str(folder), language="ha")
    found = read(source)
    assert texts(found) == [
        " Yāya\t", "empty-text", "no-text", "bad-text", "bad-row", "one\ntwo", " three"
    ]  # fmt: skip
    assert unicodedata.is_normalized("NFC", texts(found)[0])
    assert {each.language for each in found if isinstance(each, Item)} == {"ha"}
    assert read(source, skip=5) == found[5:]
    by_line = source.model_copy(update={"documents": "lines", "path": str(folder / "b.txt")})
    assert texts(read(by_line)) == ["one", "two", "empty-text", "empty-text", " three"]
    assert texts(read(by_line.model_copy(update={"max_documents": 2}))) == ["one", "two"]


def test_s2_22a_filters_count_what_they_leave_out(tmp_path: Path) -> None:
    lines = [
        {"text": "long enough", "language": "ha"},
        {"text": "no"},
        {"text": "other", "language": "en"},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    filters = {"languages": ["ha"], "min_characters": 3}
    path = str(tmp_path / "a.jsonl")
    source = Source(name="t", kind="text", path=path, language="ha", filters=filters)
    assert texts(read(source)) == ["long enough", "text-length", "other-language"]
    facts = shard_writer.write(
        tmp_path / "s", corpora.opened(source, NOBODY, None)[0], either, made()
    )
    assert facts["totals"]["rejected"] == {"text-length": 1, "other-language": 1}
    where = {"text-length": f"{path}:2: 2 characters", "other-language": f"{path}:3: 'en'"}
    assert facts["totals"]["details"] == where


def test_texts_without_words_are_left_out(tmp_path: Path) -> None:
    lines = ["?!", "\u2026 \u2014", "\U0001f600", "\u0301", "7", "\u0968", "\u4f60", "\u0e01", "b."]
    (tmp_path / "a.txt").write_text("\n".join(lines), "utf-8")
    source = Source(name="t", kind="text", path=str(tmp_path), documents="lines")
    found = read(source)
    assert texts(found) == ["no-words"] * 4 + lines[4:]
    assert isinstance(found[0], Skip) and found[0].detail == f"{tmp_path / 'a.txt'}:1: '?!'"
    everything = source.model_copy(update={"filters": corpora.Filters(punctuation=False)})
    assert texts(read(everything)) == lines


def test_rows_of_a_low_score_or_without_one_are_left_out(
    sources: list[Source], tmp_path: Path
) -> None:
    scores = [3, "3.5", 2.9, "2", None, "good", [4], float("nan"), 10**400, True]
    lines = [json.dumps({"text": f"row {n}", "mos": each}) for n, each in enumerate(scores)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, '{"text": "row"}']))
    filters = {"score": "mos", "min_score": 3}
    source = Source(name="t", kind="text", path=str(tmp_path / "a.jsonl"), filters=filters)
    found = read(source)
    kept = ["row 0", "row 1", "low-score", "low-score"]
    assert texts(found) == [*kept, *["no-score"] * 5, "low-score", "no-score"]
    assert isinstance(found[2], Skip) and found[2].detail.endswith("a.jsonl:3: mos 2.9")
    # speech: a column that `sheen prepare` kept
    folder = tmp_path / "studio"
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_bytes().splitlines()]
    rows = [{**row, "dnsmos": number / 2} for number, row in enumerate(rows)]
    (folder / "train.jsonl").write_bytes(b"".join(map(encode, rows)))
    best = sources[2].model_copy(update={"filters": corpora.Filters(score="dnsmos", min_score=2.5)})
    found = list(corpora.opened(best, NOBODY, "codec-1")[0](0))
    assert texts(found) == [
        *["low-score"] * 5, *[row["text"] for row in rows[5:]], "no-score", "no-score"
    ]  # fmt: skip
    for half in ({"score": "mos"}, {"min_score": 3}):
        with pytest.raises(ValueError, match="go together"):
            corpora.Filters(**half)


def test_held_out_texts_are_a_stable_share_and_equal_ones_go_together(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(f"line {n // 2}" for n in range(4000)))
    source = Source(name="t", kind="text", path=str(tmp_path), documents="lines")
    found = read(source, HeldOut(seed=3, share=0.1))
    sides = [each.held_out for each in found]
    assert sides[::2] == sides[1::2] and sum(sides) / 4000 == pytest.approx(0.1, abs=0.02)
    assert sides == [each.held_out for each in read(source, HeldOut(seed=3, share=0.1))]
    assert sides != [each.held_out for each in read(source, HeldOut(seed=4, share=0.1))]


@pytest.mark.parametrize(
    "settings, problem",
    [
        ({"kind": "text", "path": "nothing"}, "source t: nothing at nothing"),
        ({"kind": "speech", "path": "nothing"}, "holds no prepared data"),
        ({"kind": "text", "path": "latin.txt"}, "latin.txt is not UTF-8"),
        ({"kind": "text", "path": "empty"}, r"empty holds no \.jsonl or \.txt"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict, problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.txt").write_bytes("für".encode("latin-1"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SheenError, match=problem) as caught:
        read(Source(name="t", **settings))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nothing", "prepared", "audio"])
@pytest.mark.parametrize("file", ["metadata.csv", "a.WAV", "a.mp3"])
def test_recordings_are_to_be_prepared_into_another_folder(
    tmp_path: Path, name: str, file: str
) -> None:
    for folder in ("prepared", "audio"):
        (tmp_path / folder).mkdir()
    (tmp_path / "audio" / file).touch()
    path = tmp_path / name
    command = "`sheen prepare --recipe llama-codes-sft --dataset"
    due = f"holds no prepared data; run {command} RECORDINGS --out {path}`"
    if name == "audio":
        due = (
            f"holds recordings; prepare them into another folder first, with {command} {path} "
            f"--out OTHER`, and name that one in `path`"
        )
    with pytest.raises(SheenError) as caught:
        read(Source(name="t", kind="speech", path=str(path)))
    assert str(caught.value) == f"source t: {path} {due}"


def test_s2_4_text_without_speech_is_refused_in_sft(tmp_path: Path) -> None:
    rows = [{"id": "a", "audio_codes": [[1]], "text": "x"}, {"id": "b", "text": "y"}]
    corpora.refuse_text_only(rows[:1], "train.jsonl")
    with pytest.raises(SheenError, match=r"train.jsonl: row 2 \(b\) is text without speech"):
        corpora.refuse_text_only(rows, "train.jsonl")
    text = Source(name="wiki", kind="text", path="x")
    speech = Source(name="talk", kind="speech", path="y")
    corpora.check_stage("pt", [text, speech])
    corpora.check_stage("sft", [])
    for stage, sources, problem in [
        ("sft", [speech, text], "source wiki is text"),
        ("sft", [speech], "sources are for `stage: pt`"),
        ("pt", [], "needs sources"),
        ("pt", [text, text], "two sources are named wiki"),
    ]:
        with pytest.raises(ValueError, match=problem):
            corpora.check_stage(stage, sources)


def test_text_sets_of_the_hub_are_streamed(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "datasets" / "u" / "texts"
    folder.mkdir(parents=True)
    for name, count in (("train", 5), ("validation", 2), ("test", 3)):
        lines = [json.dumps({"body": f"{name} {n}"}) for n in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    script = (
        "from sheen_lm.corpora import *\n"
        "source = Source(name='t', kind='text', path='u/texts', column='body')\n"
        "read, origin = opened(source, HeldOut(seed=1, share=0), None)\n"
        "print([(each.row['text'], each.held_out) for each in read(3)], origin['hub'])\n"
    )
    with FakeHub(tmp_path / "hub") as hub:
        environment = hub.env(tmp_path / "cache") | {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, text=True, capture_output=True
        )
    assert not done.returncode, done.stderr
    assert "('train 4', False), ('validation 0', True), ('validation 1', True)]" in done.stdout
    assert "test" not in done.stdout.partition("]")[0] and "train 2" not in done.stdout
    assert re.search(r"'revision': '[0-9a-f]{40}'", done.stdout)


def test_a_set_of_the_hub_without_a_validation_split_is_held_out_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    splits = {name: [{"text": f"{name} {n}"} for n in range(400)] for name in ("Train", "test")}
    monkeypatch.setattr(HubSet, "splits", splits)
    monkeypatch.setattr(HubSet, "commit", "1" * 40)
    source, by_hash = Source(name="t", kind="text", path="u/texts"), HeldOut(seed=1, share=0.1)
    found = read(source, by_hash)
    assert [each.row["text"] for each in found] == [f"Train {n}" for n in range(400)]
    assert [each.held_out for each in found] == [by_hash.has(text) for text in texts(found)]
    assert 20 < sum(each.held_out for each in found) < 60
    splits["dev"] = splits.pop("test")
    found = read(source, by_hash)
    assert [each.held_out for each in found] == [False] * 400 + [True] * 400


# --- the host's rows -----------------------------------------------------------------------------


@pytest.fixture
def sources(tmp_path: Path) -> list[Source]:
    """A prepared folder of speech in two languages, a big one of text, a small one of speech."""
    random = Random(1)
    for name, count in (("talk", 120), ("studio", 12)):
        folder = tmp_path / name
        folder.mkdir()
        rows = [
            {
                "id": f"{name}-{number}",
                "text": "said " * random.randint(1, 4),
                "duration": number / 10,
                "language": "no" if number % 4 else "ha",
                "audio_codes": [[random.randrange(CODES)] * STRIDE] * random.randint(1, 40),
            }
            for number in range(count)
        ]
        parts = {"train": rows[: -count // 6], "validation": rows[-count // 6 :]}
        for split, mine in parts.items():
            (folder / f"{split}.jsonl").write_bytes(b"".join(map(encode, mine)))
        splits = {split: {"sha256": f"{name} {split}"} for split in parts}
        data = {"seed": 7, "validation": 0.16, "split_by": "speaker", "max_hours": None}
        about = {
            "splits": splits, "codebooks": [CODES] * STRIDE, "made_from": {"data": data}
        }  # fmt: skip
        (folder / "dataset.json").write_text(json.dumps(about))
        (folder / "artifacts").mkdir()
        facts = {"sha256": "codec-1", "sizes": [CODES] * STRIDE}
        (folder / "artifacts" / "codec.json").write_text(json.dumps(facts))
    lines = [
        {"text": " ".join(random.choices("abcde", k=random.randint(0, 60)))} for _ in range(800)
    ]
    (tmp_path / "wiki.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return [
        Source(name="talk", kind="speech", path=str(tmp_path / "talk"), weight=6),
        Source(name="wiki", kind="text", path=str(tmp_path / "wiki.jsonl"), weight=4),
        Source(name="studio", kind="speech", path=str(tmp_path / "studio"), share=0.2),
    ]


def with_corpus(
    sources: list[Source], codec: str = "codec-1", **options: object
) -> tuple[Recipe, Backbone]:
    """The demo's backbone, as one that pretrains."""
    recipe, backbone = resolve("demo", ["data.dataset=null"])
    settings = Pretraining(sources=sources, **{"window": 64, "shard": 2000, **options})
    made = partial(
        corpus, settings, HeldOut(seed=42, share=0.05), codec, partial(encoding, codec=codec)
    )
    return recipe, replace(backbone, spec=replace(backbone.spec, corpus=lambda recipe: made()))


def prepared(sources: list[Source], out: Path, **options: object) -> dict:
    recipe, backbone = with_corpus(sources, **options)
    return prepare(recipe, backbone, out)


def test_windows_are_rows_of_the_host(
    sources: list[Source], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = prepared(sources, tmp_path / "data", tokens=150_000)
    rows = Rows(tmp_path / "data" / "train.jsonl")
    assert len(rows) == manifest["splits"]["train"]["rows"]
    tokens: Counter[str] = Counter()
    for row in rows:
        ids, pieces = shards.tokens_of(row)
        assert len(ids) == sum(pieces) <= 64 and ids.max() < VOCABULARY
        tokens[row["source"]] += len(ids)
    whole = sum(tokens.values())
    assert whole == pytest.approx(150_000, rel=0.01)
    wanted = {"talk": 0.48, "wiki": 0.32, "studio": 0.2}
    for name, share in wanted.items():
        assert tokens[name] / whole == pytest.approx(share, rel=0.01)
    facts = manifest["corpus"]["mixture"]
    assert {each["source"]: 0 for each in facts} == dict.fromkeys(wanted, 0)
    assert sum(each["tokens"] for each in facts) == whole
    said = capsys.readouterr().err
    assert re.search(r"studio \(no\): \d+\.\d\d % of the tokens \(wanted", said)
    assert re.search(r"left out: \d+ empty-text \(\S+wiki\.jsonl:\d+\)\n", said)
    assert manifest["read"] == 932 and manifest["rejected"].keys() == {"empty-text"}
    # speech of validation is that of the prepared folders
    held_out = Rows(tmp_path / "data" / "validation.jsonl")
    ends = Counter()
    for row in held_out:
        ends[row["source"]] += int((shards.tokens_of(row)[0] == END).sum())
    assert ends["talk"] == 20 and ends["studio"] == 2 and 20 < ends["wiki"] < 60
    # the data's folder can be moved
    shutil.move(tmp_path / "data", tmp_path / "moved")
    assert (
        shards.tokens_of(Rows(tmp_path / "moved" / "train.jsonl")[0])[0].tolist()
        == shards.tokens_of(Rows(tmp_path / "moved" / "train.jsonl")[0])[0].tolist()
    )


def test_manifests_say_how_validation_was_split_off(sources: list[Source], tmp_path: Path) -> None:
    prepared(sources, tmp_path / "data")
    made = {
        name: json.loads((tmp_path / "data" / "corpus" / name / "manifest.json").read_text())[
            "made"
        ]
        for name in ("talk", "wiki")
    }
    due = {"seed": 7, "validation": 0.16, "split_by": "speaker"}
    assert made["talk"]["origin"]["held_out"] == due
    assert made["wiki"]["split"] == {"seed": 42, "share": 0.05}
    # another split of the same recordings is another source
    path = tmp_path / "talk" / "dataset.json"
    path.write_text(path.read_text().replace("speaker", "text"))
    problem = r"source\.talk\.held_out\.split_by: speaker -> text"
    with pytest.raises(SheenError, match=problem):
        prepared(sources, tmp_path / "data")
    path.write_text(path.read_text().replace("split_by", "by"))
    with pytest.raises(SheenError, match=r"dataset\.json is damaged"):
        prepared(sources, tmp_path / "data")


def test_info_of_a_corpus(sources: list[Source], tmp_path: Path) -> None:
    manifest = prepared(sources, tmp_path / "data", tokens=150_000)
    answer = sheen("info", tmp_path / "data", "--json").stdout
    facts = json.loads(answer)
    told = facts["corpus"]
    assert told["window"] == 64 and list(told["sources"]) == ["talk", "wiki", "studio"]
    for name, about in told["sources"].items():
        totals = manifest["corpus"]["sources"][name]["totals"]
        for key in ("documents", "tokens", "windows"):
            assert about[key] == totals[key] > 0
        assert 50 < about["full"] == round(100 * totals["fill"], 1) <= 100
    keys = {"documents", "tokens", "hours", "windows", "full", "refused"}
    assert {name for about in told["sources"].values() for name in about} == keys
    # each recording once, however often its windows come
    assert told["sources"]["talk"]["hours"] == round(sum(range(120)) / 10 / 3600, 4)
    assert told["sources"]["talk"]["refused"] == {} and told["sources"]["wiki"]["hours"] == 0
    (empty,) = told["sources"]["wiki"]["refused"].values()
    assert empty["count"] == manifest["rejected"]["empty-text"]
    assert re.fullmatch(r"\S+wiki\.jsonl:\d+", empty["first"])
    assert {name: set(each) for name, each in told["mixture"].items()} == {
        "talk": {"ha", "no"}, "wiki": {"unknown"}, "studio": {"ha", "no"}
    }  # fmt: skip
    wiki = told["mixture"]["wiki"]["unknown"]
    assert wiki["wanted"] == 0.32 == pytest.approx(wiki["realised"], rel=0.01)
    (due,) = [each for each in manifest["corpus"]["mixture"] if each["source"] == "wiki"]
    assert wiki["passes"] == round(due["passes"], 1) > 1
    for split in facts["splits"].values():
        assert split["hours"] is None and split["characters"] is None and split["rows"]
    shown = sheen("info", tmp_path / "data").stdout
    assert re.search(r"\n        empty-text +count \d+, first \S+wiki\.jsonl:\d+\n", shown)
    assert re.search(r"\n    wiki\n      unknown +wanted 0\.32, realised 0\.3\d+, passes ", shown)
    assert "hours" not in shown.partition("corpus")[0] and "p0 0, p5 0" not in shown
    for text in (answer, shown):
        for odd in ("sha256", "codec-1", "talk train", "tokenizer"):
            assert odd not in text
    # somebody else's corpus says what it likes
    path = tmp_path / "data" / "dataset.json"
    path.write_text(json.dumps({**manifest, "corpus": {"sources": 3}}))
    assert json.loads(sheen("info", tmp_path / "data", "--json").stdout)["corpus"] == {}


def test_a_changed_shard_is_noticed_when_its_row_is_read(
    sources: list[Source], tmp_path: Path
) -> None:
    prepared(sources, tmp_path / "data")
    row = Rows(tmp_path / "data" / "train.jsonl")[0]
    path = Path(row["beside"])
    content = bytearray(path.read_bytes())
    content[shards.opened(path).tokens.offset + 4 * row["at"]] ^= 1
    path.write_bytes(content)
    with pytest.raises(SheenError, match=r"\.safetensors was changed since row"):
        shards.tokens_of(row)


def test_what_is_prepared_stays_and_what_is_made_otherwise_is_refused(
    sources: list[Source], tmp_path: Path
) -> None:
    first = prepared(sources, tmp_path / "data")
    before = contents(tmp_path / "data")
    assert prepared(sources, tmp_path / "data")["splits"] == first["splits"]
    assert contents(tmp_path / "data") == before
    (tmp_path / "wiki.jsonl").write_text('{"text": "other"}\n')
    with pytest.raises(SheenError, match=r"data made otherwise \(source\.wiki\.files"):
        prepared(sources, tmp_path / "data")
    recipe, backbone = with_corpus(sources)
    again = prepare(recipe, backbone, tmp_path / "data", overwrite=True)
    assert again["corpus"]["sources"]["wiki"]["totals"]["documents"] == 1


def test_an_overwrite_that_ended_early_is_gone_on_with(
    sources: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(sources, tmp_path / "data")
    recipe, backbone = with_corpus(sources, window=96)
    whole = prepared(sources, tmp_path / "whole", window=96)

    def ended(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shard_writer, "finish", ended)
        prepare(recipe, backbone, tmp_path / "data", overwrite=True)
    assert not (tmp_path / "data" / "dataset.json").exists()
    assert prepare(recipe, backbone, tmp_path / "data") == whole
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")


def test_an_overwrite_writes_what_is_made_otherwise_and_keeps_the_rest(
    sources: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another mixture of the same shards tokenizes nothing."""
    out, first = tmp_path / "data", prepared(sources, tmp_path / "data")
    before = contents(out / "corpus")
    weighted = [sources[0].model_copy(update={"weight": 1.0}), *sources[1:]]
    recipe, backbone = with_corpus(weighted, temperature=3)
    with monkeypatch.context() as patch:
        patch.setattr(shard_writer, "write_shard", None)
        again = prepare(recipe, backbone, out, overwrite=True)
    assert contents(out / "corpus") == before
    assert again["splits"]["train"] != first["splits"]["train"]
    # one source changed, one is gone
    (tmp_path / "wiki.jsonl").write_text('{"text": "other"}\n')
    times = {path: path.stat().st_mtime_ns for path in (out / "corpus" / "talk").iterdir()}
    recipe, backbone = with_corpus(sources[:2])
    prepare(recipe, backbone, out, overwrite=True)
    assert {path.name for path in (out / "corpus").iterdir()} == {"talk", "wiki"}
    assert {path: path.stat().st_mtime_ns for path in (out / "corpus" / "talk").iterdir()} == times
    (wiki,) = shards.documents(out / "corpus" / "wiki")
    assert wiki.tolist() == [*b"other", END]


@pytest.mark.parametrize("how", ["flipped", "missing", "short"])
def test_an_overwrite_mends_damaged_shards(sources: list[Source], tmp_path: Path, how: str) -> None:
    out = tmp_path / "data"
    prepared(sources, out)
    due = contents(out)
    path = out / "corpus" / "talk" / "00001.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + (b"" if how == "short" else bytes([content[-1] ^ 1])))
    if how == "missing":
        path.unlink()
    recipe, backbone = with_corpus(sources)
    prepare(recipe, backbone, out, overwrite=True)
    assert contents(out) == due


def test_an_overwrite_replaces_a_manifest_that_says_nothing(tmp_path: Path) -> None:
    write = partial(shard_writer.write, tmp_path / "s", partial(items, rows_of(60)), either, made())
    due = write()
    for text in ("{", '{"format": 0}'):
        (tmp_path / "s" / "manifest.json").write_text(text)
        with pytest.raises(SheenError, match=r"manifest\.json is"):
            write()
        assert write(overwrite=True) == due


def test_speech_of_another_codec_is_refused(sources: list[Source], tmp_path: Path) -> None:
    with pytest.raises(SheenError, match=r"talk holds codes of another codec \(codec-1, not other"):
        prepared(sources, tmp_path / "data", codec="other")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("by_codec", [True, False])
def test_speech_of_other_codebooks_is_refused(
    sources: list[Source], tmp_path: Path, by_codec: bool
) -> None:
    if not by_codec:  # the data brought its codes
        (tmp_path / "talk" / "artifacts" / "codec.json").unlink()
    options = Pretraining(sources=sources)
    corpus(options, NOBODY, "codec-1", encoding, (CODES,) * STRIDE)
    problem = r"source talk: \S+talk holds codes of 3 codebooks \(16, 16, 16\), not of 2 codebooks"
    with pytest.raises(SheenError, match=problem) as caught:
        corpus(options, NOBODY, "codec-1", encoding, (CODES,) * 2)
    assert "\n" not in str(caught.value)


def test_a_data_set_beside_the_sources_is_refused(sources: list[Source], tmp_path: Path) -> None:
    recipe, backbone = with_corpus(sources)
    data = recipe.data.model_copy(update={"dataset": "demo-words"})
    with pytest.raises(SheenError, match="leave the data set out"):
        prepare(recipe.model_copy(update={"data": data}), backbone, tmp_path / "data")


def test_a_real_convention_is_encoded_as_training_lays_it_out() -> None:
    """Orpheus' turns over a small codec: three tokens come after the last frame."""
    known = families.family("orpheus").model_dump()
    small = {**known["codes"], "sizes": (8,) * 7, "stride": 8}
    changes = {"codes": small, "instruct": "{instruct} "}
    words, convention = miniature.tokenizer("llama"), Convention(**{**known, **changes})
    vocabulary.extend(words, convention)
    ids = layout.resolve(convention, words)
    both = pretraining.encoding(ids, "codec-1")
    codes = np.random.default_rng(0).integers(8, size=(40, 7))
    row = {"id": "a", "text": "sannu", "speaker": "anna", "audio_codes": codes.tolist()}
    document = both.speech(row)
    due, _ = layout.build(layout.Prompt("sannu", "anna"), codes, ids)
    assert document.ids.tolist() == due.tolist() and due.max() < both.vocabulary
    assert document.stride == 7 and document.shape.tail == len(due) - document.start - 280
    at, read = 0, []
    for length in packing.cut(document.shape, 100):
        piece = document.ids[at : at + length]
        read.append(layout.read(piece[document.start :] if not at else piece, ids))
        at += length
    assert np.array_equal(np.concatenate([each.codes for each in read]), codes)
    told = both.speech({**row, "instruct": "slowly"})  # as fine-tuning writes it
    due, _ = layout.build(layout.Prompt("sannu", "anna", "slowly"), codes, ids)
    assert told.ids.tolist() == due.tolist() and told.start > document.start
    text = both.text({"id": "b", "text": "ina kwana"})
    assert text.ids[0] == words.bos_token_id and text.ids[-1] == words.eos_token_id
    assert words.decode(text.ids, skip_special_tokens=True) == "ina kwana"
    assert both.text({"text": "x <custom_token_3>"}).reason == "control-tokens"
    assert both.speech({**row, "audio_codes": [[8] * 7]}).reason == "bad-row"
    other = pretraining.encoding(layout.resolve(convention, words), None)
    assert (other.tokenizer, other.convention) == (both.tokenizer, both.convention)
    words.add_tokens(["new"])
    assert pretraining.encoding(ids, None).tokenizer != both.tokenizer


def test_the_ordinary_loop_trains_on_windows(sources: list[Source], tmp_path: Path) -> None:
    """A bigram table, through `prepare` and `train` as any backbone's rows; stopped and resumed it
    ends as one that was not.
    """
    options = Pretraining(sources=sources, window=64, shard=2000)
    recipe, backbone = with_corpus(sources)
    changes = {
        "max_steps": 6, "batch_size": 8, "save_every": 3, "validate_every": 3, "bucket": 1,
        "learning_rate": 0.5, "warmup_steps": 0, "schedule": "constant",
    }  # fmt: skip
    train = recipe.train.model_copy(update={**changes, "max_minutes": None, "threads": None})
    recipe = recipe.model_copy(
        update={"train": train, "log": recipe.log.model_copy(update={"samples": 0, "every": 1})}
    )

    def collate(rows: list[Row], **_: object) -> Batch:
        return pretraining.collate(rows, options, PAD, "tokens")

    def loss(model: torch.nn.Module, batch: Batch, **_: object) -> Loss:
        logits = model(batch.inputs["tokens"])
        wanted = batch.inputs["targets"]
        total = cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum")
        return Loss({"tokens": Term(total)})

    def save(model: torch.nn.Module, folder: Path) -> None:
        torch.save(model.state_dict(), folder / "model.pt")

    def fit(run: Run, **_: object) -> None:
        model = torch.nn.Embedding(VOCABULARY, VOCABULARY)
        if run.resume:
            model.load_state_dict(torch.load(run.resume / "model.pt", weights_only=True))
        run.fit(model, save)

    hook = SimpleNamespace(collate=collate, loss=loss, train=fit)
    backbone = replace(backbone, hook=hook, spec=replace(backbone.spec, terms=("tokens",)))
    prepare(recipe, backbone, tmp_path / "data")
    pretraining.check(tmp_path / "data", options, encoding(tmp_path))
    with pytest.raises(
        SheenError, match=r"talk holds shards made otherwise \(codec codec-1 -> new"
    ):
        pretraining.check(tmp_path / "data", options, encoding(tmp_path, "new"))
    jobs.train(recipe, backbone, tmp_path / "data", tmp_path / "whole", resume=False)
    short = recipe.model_copy(update={"train": train.model_copy(update={"max_steps": 3})})
    jobs.train(short, backbone, tmp_path / "data", tmp_path / "parts", resume=False)
    jobs.train(recipe, backbone, tmp_path / "data", tmp_path / "parts", resume=True)
    ended = [
        torch.load(tmp_path / name / "last" / "model.pt", weights_only=True)["weight"]
        for name in ("whole", "parts")
    ]
    assert torch.equal(*ended)
    log = (tmp_path / "whole" / "metrics.jsonl").read_text("utf-8")
    lines = [json.loads(line) for line in log.splitlines()]
    scores = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert len(scores) == 2 and scores[1] < scores[0] < np.log(VOCABULARY) + 1
    facts = json.loads(sheen("info", tmp_path / "data", "--json").stdout)
    assert facts["splits"]["train"]["language"].keys() == {"ha", "no", "unknown"}


def resumes(
    filling: Callable[[Path], object],
    tmp_path: Path,
    every: int,
    old: Path | None = None,
    again: Callable[[Path], object] | None = None,
) -> int:
    """Kill `filling(folder)`, which holds what `old` does, at every so many operations on the file
    system, half a write on the disk included, and run it (or `again`) again: the folder is then as
    if nothing had been. Returns how many.
    """
    whole, outputs = tmp_path / "whole" / "data", tmp_path / "outputs"
    outputs.mkdir()

    def run(out: Path, fatal: int | None) -> None:
        if old is not None:
            shutil.copytree(old, out)
        Disk(outputs / f"{out.parent.name}.txt", fatal)
        filling(out)

    def undisturbed() -> Case:
        end = yield Job(partial(run, whole, None))
        return end.code, end.output

    ((code, output),) = schedule([undisturbed()], outputs)
    assert code == 0, output
    due = contents(whole)
    operations = (outputs / "whole.txt").read_text().splitlines()

    def case(at: int) -> Case:
        out, where = tmp_path / f"run-{at}" / "data", operations[at - 1]
        end = yield Job(partial(run, out, at))
        if not end.killed:
            return f"{where}: it ended with {end.code}: {end.output[-600:]}"
        end = yield Job(partial(again or filling, out))
        got = {name: each for name, each in contents(out).items() if name not in MARKS}
        shutil.rmtree(out.parent)
        names = [name for name in {*got, *due} if got.get(name) != due.get(name)]
        return f"{where}: {end.code} {names} {end.output[-600:]}" if end.code or names else None

    fatal = range(1, len(operations) + 1, every)
    assert [each for each in schedule([case(at) for at in fatal], outputs) if each] == []
    return len(fatal)


MARKS = (".unfinished", ".lock")  # which a process leaves that was killed right after it finished


def test_killed_at_any_write_and_started_again_shards_have_the_same_bytes(tmp_path: Path) -> None:
    rows = rows_of(100)
    settings = made(shard=1200)
    write = partial(shard_writer.write, read=partial(items, rows), encode=either, made=settings)
    assert resumes(lambda out: write(out), tmp_path, every=1) > 20


def test_killed_and_started_again_prepare_gives_the_same_bytes(
    sources: list[Source], tmp_path: Path
) -> None:
    assert resumes(partial(prepared, sources, shard=4000, tokens=3000), tmp_path, every=9) > 10


def test_a_killed_overwrite_is_gone_on_with_without_another(
    sources: list[Source], tmp_path: Path
) -> None:
    prepared(sources, tmp_path / "old", window=96, shard=4000, tokens=3000)
    (tmp_path / "old" / "corpus" / "gone").mkdir()
    fewer = [each.model_copy(update={"max_documents": 100}) for each in sources[:2]]
    changed = [*fewer, sources[2]]
    recipe, backbone = with_corpus(changed, window=96, shard=4000, tokens=3000)

    def overwrite(out: Path, anyhow: bool = True) -> None:
        untouched = (out / "dataset.json").is_file()  # then it is refused, as it must be
        prepare(recipe, backbone, out, overwrite=anyhow or untouched)

    again = partial(overwrite, anyhow=False)
    assert resumes(overwrite, tmp_path, every=9, old=tmp_path / "old", again=again) > 10
