"""From data sets as people have them to rows: forms of metadata, bad rows, splits, re-runs."""

import json
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import numpy as np
import pytest
import soundfile
from conftest import TINY, digit_sentences, sheen, write_folder

from sheen_cli.backbones import resolve
from sheen_cli.files import sha256
from sheen_cli.rows import Rows
from sheen_cli.splits import Kept, assign
from sheen_demo import words

BASE = ["--recipe", "demo", "data.validation=0"]


def wav(path: Path, text: str = "one two", rate: int = 16_000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, words.compose(text.split(), Random(text)), rate)


def prepared(dataset: Path, out: Path, *more: str) -> list[dict]:
    sheen("prepare", "--dataset", dataset, "--out", out, *BASE, *more)
    return list(Rows(out / "train.jsonl"))


def bare_recipe(folder: Path) -> list[object]:
    """The demo without a data set of its own, which `train` would prepare."""
    (folder / "bare.yaml").write_text("backbone: demo\n")
    return ["--recipe", folder / "bare.yaml"]


def refused(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "rejected.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize(
    "metadata",
    [
        # LJSpeech: id without ending, third column when it is filled
        "a|One two.|one two\nb|three|\n",
        "a|one two\nb|three\n",
        "file_name,text\nwavs/a.wav,one two\nwavs/b.wav,three\n",
        # as Windows writes it
        "\ufefffile_name|text\r\nwavs/a.wav|one two\r\nwavs/b.wav|three\r\n",
        'text,audio\n"one two",a\n"three",b.wav\n',
        "Sentence|path\none two|a.wav\nthree|b.wav\n",
    ],
)  # fmt: skip
def test_s1_a4_forms_of_metadata(tmp_path: Path, metadata: str) -> None:
    for name, text in (("a", "one two"), ("b", "three")):
        wav(tmp_path / "set" / "wavs" / f"{name}.wav", text)
    (tmp_path / "set" / "metadata.csv").write_text(metadata, "utf-8", newline="")
    rows = prepared(tmp_path / "set", tmp_path / "out")
    assert [row["text"] for row in rows] == ["one two", "three"]
    assert all(Path(row["audio"]).is_file() for row in rows)
    assert refused(tmp_path / "out") == []


def test_jsonl_keeps_fields_that_it_does_not_know(tmp_path: Path) -> None:
    wav(tmp_path / "x.wav")
    row = {"audio": "x.wav", "text": "one two", "speaker_id": 7, "gender": "female", "phase": 2}
    (tmp_path / "set.jsonl").write_text(json.dumps(row) + "\n")
    (got,) = prepared(tmp_path / "set.jsonl", tmp_path / "out", "data.language=ha")
    assert (got["speaker"], got["language"]) == ("7", "ha")
    assert (got["gender"], got["phase"]) == ("female", 2)
    assert got["duration"] == pytest.approx(len(got["audio_codes"]) / 20, abs=0.05)


def test_columns_can_be_named(tmp_path: Path) -> None:
    wav(tmp_path / "x.wav")
    (tmp_path / "set.jsonl").write_text(
        '{"Aufnahme": "x.wav", "Satz": "one two", "text": "wrong"}\n'
    )
    (got,) = prepared(
        tmp_path / "set.jsonl", tmp_path / "out", "data.columns={audio: Aufnahme, text: Satz}"
    )
    assert got["text"] == "one two"


def test_s1_6_bad_rows_are_named_counted_and_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for name in ("good", "again", "cut", "nan", "short", "quiet"):
        wav(folder / f"{name}.wav", "one two" if name != "again" else "three four")
    content = (folder / "cut.wav").read_bytes()
    (folder / "cut.wav").write_bytes(content[: len(content) // 2])
    broken = np.full(16_000, np.nan, np.float32)
    soundfile.write(folder / "nan.wav", broken, 16_000, subtype="FLOAT")
    soundfile.write(folder / "short.wav", np.ones(100), 16_000)
    soundfile.write(folder / "quiet.wav", np.zeros(16_000), 16_000)
    (folder / "page.wav").write_text("<html>not found</html>")
    wav(tmp_path / "secret.wav")
    names = {
        "good": None,
        "again": None,
        "gone": "missing-audio",
        "cut": "truncated",
        "nan": "non-finite",
        "short": "too-short",
        "quiet": "silent",
        "page": "undecodable",
        "../secret": "outside-folder",
    }
    lines = [f"{name}.wav|one two" for name in names]
    lines[1] = "again.wav|three four"
    lines += ["good.wav|", "good.wav|one two", "good.wav|a|b|c", "good.wav|bell \x07"]
    reasons = [*names.values(), "empty-text", "duplicate", "bad-row", "bad-text"]
    (folder / "metadata.csv").write_text("file_name|text\n" + "\n".join(lines) + "\n")
    out = tmp_path / "out"
    rows = prepared(folder, out)
    assert len(rows) == 2
    assert [row["reason"] for row in refused(out)] == [reason for reason in reasons if reason]
    manifest = json.loads((out / "dataset.json").read_text())
    assert manifest["read"] == len(lines) == len(rows) + sum(manifest["rejected"].values())
    result = sheen("prepare", "--dataset", folder, "--out", out, "--overwrite", *BASE)
    assert "13 read, 11 rejected" in result.output and "1 truncated" in result.output


def test_a_broken_line_of_jsonl_is_one_reject(tmp_path: Path) -> None:
    wav(tmp_path / "x.wav")
    lines = [
        '{"audio": "x.wav", "text": "one two"}',
        "{",
        "[1]",
        '{"text": "one"}',
        '{"audio": "x.wav"}',
    ]
    (tmp_path / "set.jsonl").write_text("\n".join(lines))
    assert len(prepared(tmp_path / "set.jsonl", tmp_path / "out")) == 1
    bad = refused(tmp_path / "out")
    assert [row["reason"] for row in bad] == ["bad-row", "bad-row", "missing-audio", "empty-text"]
    assert "set.jsonl:2" in bad[0]["detail"] and "set.jsonl:4" in bad[2]["detail"]


def test_an_empty_cell_is_not_called_a_missing_column(tmp_path: Path) -> None:
    wav(tmp_path / "x.wav")
    rows = [
        {"audio": "x.wav", "text": "one two"},
        {"audio": "", "text": "one"},
        {"audio": None, "text": "one"},
        {"audio": {"path": None, "bytes": None}, "text": "one"},
        {"text": "one"},
        {"audio": "x.wav", "text": None},
        {"audio": "x.wav", "text": 12},
        {"audio": "x.wav"},
    ]
    (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert len(prepared(tmp_path / "set.jsonl", tmp_path / "out")) == 1
    found = [(row["reason"], row["detail"].partition(";")[0]) for row in refused(tmp_path / "out")]
    assert found == [
        *[("missing-audio", f"set.jsonl:{n}: the cell of audio is empty") for n in (2, 3, 4)],
        ("missing-audio", "set.jsonl:5: no audio column"),
        ("empty-text", "set.jsonl:6: the cell of text is empty"),
        ("empty-text", "set.jsonl:7: text is int"),
        ("empty-text", "set.jsonl:8: no text column"),
    ]


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("a.wav|one\nb.wav|two\n")
    result = sheen("prepare", "--dataset", tmp_path, "--out", tmp_path / "out", *BASE, code=2)
    assert "no usable row" in result.output and "2 missing-audio" in result.output
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_s1_1_a_long_clip_is_left_out_whole_never_cut(tmp_path: Path) -> None:
    wav(tmp_path / "set" / "a.wav", "one")
    wav(tmp_path / "set" / "b.wav", "one two three four one two three four")
    (tmp_path / "set" / "metadata.csv").write_text(
        "a|one\nb|one two three four one two three four\n"
    )
    rows = prepared(tmp_path / "set", tmp_path / "out", "data.max_seconds=2")
    assert [row["text"] for row in rows] == ["one"]
    assert refused(tmp_path / "out")[0]["reason"] == "too-long"


def test_the_manifest_comes_last_and_describes_the_data(data: Path) -> None:
    manifest = json.loads((data / "dataset.json").read_text())
    assert manifest["backbone"] == "demo" and manifest["sample_rate"] == 16_000
    assert manifest["splits"]["train"]["rows"] == len(Rows(data / "train.jsonl"))
    assert set(manifest["artifacts"]) == {"codec.safetensors", "pace.json"}
    newest = max(data.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert newest.name == "dataset.json"
    assert not [
        path for path in data.iterdir() if path.name.startswith(".") or path.name == "spool"
    ]


def test_the_same_again_is_kept_and_other_settings_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["prepare", "--dataset", folder, "--out", out, "--recipe", "demo"]
    sheen(*arguments)
    first = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert "already prepared" in sheen(*arguments).output
    result = sheen(*arguments, "data.seed=1", code=2)
    assert "data.seed: 42 -> 1" in result.output and "--overwrite" in result.output
    sheen(*arguments, "--overwrite")
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == first


def test_s1_11_max_samples(folder: Path, tmp_path: Path) -> None:
    assert len(prepared(folder, tmp_path / "out", "--max-samples", "5")) == 5


def test_text_stays_as_it_is_in_any_script(tmp_path: Path) -> None:
    texts = ["ɓauna ƙasa ɗan", "Привет, мир", "مرحبا", "हिन्दी में", "e\u0301t\u00e9"]
    lines = []
    for number, text in enumerate(texts):
        wav(tmp_path / "set" / f"{number}.wav", digit_sentences(5)[number])
        lines.append(f"{number}|{text}\n")
    (tmp_path / "set" / "metadata.csv").write_text("".join(lines), "utf-8")
    rows = prepared(tmp_path / "set", tmp_path / "out")
    assert [row["text"] for row in rows] == [*texts[:4], "\u00e9t\u00e9"]  # NFC, nothing else


# --- splits --------------------------------------------------------------------------------------


def split_of(groups: list[str], *settings: str) -> list[str]:
    recipe, _ = resolve("demo", ["data.dataset=x", *settings])
    return assign(recipe.data, [Kept(0, 0, 1.0, None, group) for group in groups])


def test_s0_5_split_is_seeded_and_leak_proof() -> None:
    groups = [f"text {i % 50}" for i in range(100)]  # every text twice
    places = split_of(groups, "data.validation=0.1")
    assert places == split_of(groups, "data.validation=0.1")
    assert places != split_of(groups, "data.validation=0.1", "data.seed=1")
    assert places.count("validation") == 10
    assert places[:50] == places[50:]  # both of a text on one side
    assert places != sorted(places)  # not the last ones


def test_the_split_of_a_row_does_not_move_when_others_come() -> None:
    few, many = [f"t{i}" for i in range(40)], [f"t{i}" for i in range(44)]
    before, after = split_of(few, "data.validation=0.5"), split_of(many, "data.validation=0.5")
    assert sum(a != b for a, b in zip(before, after, strict=False)) <= 4


@pytest.mark.parametrize("count, expected", [(1, 0), (2, 1), (3, 1), (10, 1), (100, 5)])
def test_s1_2_a_small_set_still_validates(count: int, expected: int) -> None:
    places = split_of([str(i) for i in range(count)], "data.validation=0.05")
    assert places.count("validation") == expected and "train" in places


def test_split_by_speaker(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", digit_sentences(12))
    settings = ["data.split_by=speaker", "data.validation=0.3"]
    arguments = ["--dataset", folder, "--out", tmp_path / "out", "--recipe", "demo"]
    sheen("prepare", *arguments, *settings)
    speakers = [
        {row["speaker"] for row in Rows(tmp_path / "out" / f"{name}.jsonl")}
        for name in ("train", "validation")
    ]
    assert speakers[0] and speakers[1] and not speakers[0] & speakers[1]


def test_a_source_with_splits_keeps_them(tmp_path: Path) -> None:
    said = {"train": "one two three", "validation": "two", "test": "three"}
    for name, text in zip("abcd", [*said.values(), "one"], strict=True):
        wav(tmp_path / "set" / f"{name}.wav", text)
    (tmp_path / "set" / "metadata.csv").write_text(
        "file_name|text|split\na|one two three|Train\nb|two|val\nc|three|test\nd|one|some\n"
    )
    sheen("prepare", "--dataset", tmp_path / "set", "--out", tmp_path / "out", "--recipe", "demo")
    for name, text in said.items():
        assert [row["text"] for row in Rows(tmp_path / "out" / f"{name}.jsonl")] == [text]
    assert "unknown split 'some'" in refused(tmp_path / "out")[0]["detail"]


def test_words_that_training_never_says_are_left_out_of_the_other_splits(tmp_path: Path) -> None:
    for name, text in (("a", "one"), ("b", "two")):
        wav(tmp_path / "set" / f"{name}.wav", text)
    (tmp_path / "set" / "metadata.csv").write_text("id|text|split\na|one|train\nb|two|dev\n")
    rows = prepared(tmp_path / "set", tmp_path / "out")
    assert [row["text"] for row in rows] == ["one"]
    assert refused(tmp_path / "out")[0]["reason"] == "unknown-word"


def test_prepare_writes_over_nothing_that_it_did_not_make(tmp_path: Path) -> None:
    wav(tmp_path / "data" / "x.wav")
    mine = tmp_path / "data" / "train.jsonl"
    mine.write_text('{"audio": "x.wav", "text": "one two"}\n')
    arguments = ["prepare", "--dataset", mine, *BASE]
    result = sheen(*arguments, "--out", tmp_path / "data", code=2)
    assert "holds the data set" in result.output
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "test.jsonl").write_text("{}\n")
    result = sheen(*arguments, "--out", tmp_path / "other", "--overwrite", code=2)
    assert "test.jsonl that sheen did not make" in result.output
    assert (
        mine.read_text().startswith('{"audio"') and not (tmp_path / "data" / "artifacts").exists()
    )


def test_an_overwrite_that_finds_nothing_leaves_the_old_data(tmp_path: Path) -> None:
    wav(tmp_path / "set" / "a.wav")
    (tmp_path / "set" / "metadata.csv").write_text("a|one two\n")
    out = tmp_path / "out"
    prepared(tmp_path / "set", out)
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    sheen("prepare", "--dataset", tmp_path / "set", "--out", out, *BASE, "--overwrite",
          "data.min_seconds=20", code=2)  # fmt: skip
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


def test_s0_14_a_killed_preparation_leaves_no_half(folder: Path, tmp_path: Path) -> None:
    """SIGKILL while rows are written: no manifest, train refuses; run again, the same bytes."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    arguments = ["prepare", "--dataset", str(folder), "--recipe", "demo", "--out"]
    process = subprocess.Popen([sys.executable, "-m", "sheen_cli", *arguments, str(out)])
    while not (out / ".spool.part").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert not (out / "dataset.json").exists()
    recipe = bare_recipe(tmp_path)
    assert "holds no prepared data" in sheen("train", *recipe, "--data", out, code=2).output
    sheen(*arguments, out)
    sheen(*arguments, whole)
    for path in (path for path in whole.rglob("*") if path.is_file() and path.suffix != ".idx"):
        assert (out / path.relative_to(whole)).read_bytes() == path.read_bytes()
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}


def test_a_changed_listing_is_other_data(tmp_path: Path) -> None:
    wav(tmp_path / "set" / "a.wav")
    (tmp_path / "set" / "metadata.csv").write_text("a|one two\n")
    prepared(tmp_path / "set", tmp_path / "out")
    (tmp_path / "set" / "metadata.csv").write_text("a|one three\n")
    arguments = ["prepare", "--dataset", tmp_path / "set", "--out", tmp_path / "out", *BASE]
    assert "made otherwise (listing" in sheen(*arguments, code=2).output


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    wav(tmp_path / "set" / "a.wav")
    (tmp_path / "set" / "metadata.csv").write_text("Datei;Satz\na;one two\n")
    arguments = ["prepare", "--dataset", tmp_path / "set", "--out", tmp_path / "out", *BASE]
    result = sheen(*arguments, "data.columns={audio: Datei, text: Text}", code=2)
    assert "no column 'Text'; the columns are Datei, Satz" in result.output
    sheen(*arguments, "data.columns={audio: Datei, text: Satz}")
    assert [row["text"] for row in Rows(tmp_path / "out" / "train.jsonl")] == ["one two"]


def test_csv_cells_keep_what_is_in_them(tmp_path: Path) -> None:
    """Line breaks in quotes, Unicode separators, a cell that is too long, a name that no file
    has.
    """
    for name in "abc":
        wav(tmp_path / "set" / f"{name}.wav", {"a": "one", "b": "two", "c": "three"}[name])
    long = "x" * 200_000
    text = f'audio,text\na,"one\ntwo, three"\nb,"x\u2028y\x85z"\n{long[:300]},one\nc,{long}\n'
    (tmp_path / "set" / "metadata.csv").write_text(text, "utf-8", newline="")
    rows = prepared(tmp_path / "set", tmp_path / "out")
    assert [row["text"] for row in rows] == ["one\ntwo, three"]
    assert [row["reason"] for row in refused(tmp_path / "out")] == [
        "bad-text",
        "missing-audio",
        "bad-row",
    ]


# --- data and recipe must fit --------------------------------------------------------------------


def test_training_refuses_data_that_is_unfinished_or_touched(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = sheen("train", *bare_recipe(tmp_path), "--data", out, code=2)
    assert "dataset.json is missing" in result.output and "sheen prepare" in result.output
    sheen("prepare", "--dataset", folder, "--out", out, "--recipe", "demo")
    lines = (out / "train.jsonl").read_bytes().splitlines(keepends=True)
    (out / "train.jsonl").write_bytes(b"".join(lines[:-1]))
    result = sheen(
        "train", "--recipe", "demo", "--data", out, "--out", tmp_path / "run", *TINY, code=2
    )
    assert "was changed since it was prepared" in result.output
    (out / "train.jsonl").unlink()
    result = sheen(
        "train", "--recipe", "demo", "--data", out, "--out", tmp_path / "run", *TINY, code=2
    )
    assert "is missing although" in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_s1_4_codes_damaged_by_hand_are_found_when_trained_on(
    folder: Path, tmp_path: Path, workers: int
) -> None:
    out = tmp_path / "out"
    sheen("prepare", "--dataset", folder, "--out", out, *BASE)
    rows = list(Rows(out / "train.jsonl"))
    rows[3]["audio_codes"][2][1] = 999
    (out / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = json.loads((out / "dataset.json").read_text())
    manifest["splits"]["train"]["sha256"] = sha256(out / "train.jsonl")
    (out / "dataset.json").write_text(json.dumps(manifest))
    result = sheen("train", "--recipe", "demo", "--data", out, "--out", tmp_path / "run", *TINY,
                   "train.batch_size=64", f"train.workers={workers}", code=2)  # fmt: skip
    assert "train.jsonl:4: audio_codes: frame 2, codebook 1: 999 is not in 0..127" in result.output
