"""Sources on this disk beyond metadata.csv: parquet, metadata.jsonl, .csv; codes and references
that they bring; what train prepares by itself.
"""

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pyarrow
import pytest
import soundfile
from conftest import TINY, digit_sentences, sheen, write_folder
from pyarrow import parquet

from sheen_cli.backbones import resolve
from sheen_cli.clips import Clips
from sheen_cli.rows import Rows
from sheen_cli.sources import Source
from sheen_demo import words

DEMO = ["--recipe", "demo", "data.validation=0"]
FRAME = 800  # samples of the demo's frames, at 16 kHz


def wav(path: Path, text: str = "one two", rate: int = 16_000) -> int:
    """Recorded words; the number of samples."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = words.compose(text.split(), Random(text))
    soundfile.write(path, samples, rate)
    return len(samples)


def jsonl(path: Path, *rows: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prepared(dataset: Path, out: Path, *more: object) -> list[dict]:
    sheen("prepare", "--dataset", dataset, "--out", out, *DEMO, *more)
    return list(Rows(out / "train.jsonl"))


def refused(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]


def clips_of(dataset: Path, *settings: str, takes_codes: bool = True) -> Clips:
    """The clips that a backbone with the demo's codec is given, if it takes codes."""
    recipe, backbone = resolve("demo", [f"data.dataset={dataset}", *settings])
    spec = replace(backbone.spec, takes_codes=takes_codes)
    return Clips(Source(str(dataset), recipe, spec), recipe, spec.sample_rate)


# --- tables --------------------------------------------------------------------------------------


def test_d_5_every_form_gives_the_same_rows(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", digit_sentences(6))
    lines = (folder / "metadata.csv").read_text().splitlines()
    names = ("file_name", "text", "speaker", "language")
    rows = [dict(zip(names, line.split("|"), strict=True)) for line in lines[1:]]
    stored = [
        row | {"audio": {"bytes": (folder / row["file_name"]).read_bytes(), "path": "x.wav"}}
        for row in rows
    ]
    for row in stored:
        row["audio"]["path"] = Path(row.pop("file_name")).name
    for part, name in ((stored[:4], "train-00000-of-00002"), (stored[4:], "train-00001-of-00002")):
        (tmp_path / "parquet" / "data").mkdir(parents=True, exist_ok=True)
        table = pyarrow.Table.from_pylist(part)
        parquet.write_table(table, tmp_path / "parquet" / "data" / f"{name}.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(stored), tmp_path / "one.parquet")
    (tmp_path / "other" / "wavs").mkdir(parents=True)
    for row in rows:
        (tmp_path / "other" / row["file_name"]).write_bytes(
            (folder / row["file_name"]).read_bytes()
        )
    jsonl(tmp_path / "other" / "metadata.jsonl", *rows)
    (folder / "list.csv").write_text("\n".join(line.replace("|", ",") for line in lines))
    forms = [folder, tmp_path / "parquet", tmp_path / "one.parquet", tmp_path / "other",
             folder / "list.csv"]  # fmt: skip
    found = [prepared(form, tmp_path / f"out {number}") for number, form in enumerate(forms)]
    for got in found:
        assert [{**row, "audio": None} for row in got] == [
            {**row, "audio": None} for row in found[0]
        ]
    assert [row["audio"] for row in found[1]] == [None] * 6


def test_parquet_is_split_by_its_names_and_pinned_by_its_footers(tmp_path: Path) -> None:
    said = {"train": "one two", "test": "two", "validation": "one"}
    for name, text in said.items():
        wav(tmp_path / "set" / f"{name}.wav", text)
        table = pyarrow.Table.from_pylist([{"path": f"{name}.wav", "sentence": text}])
        parquet.write_table(table, tmp_path / "set" / f"{name}-00000-of-00001.parquet")
    arguments = ["prepare", "--dataset", tmp_path / "set", "--recipe", "demo", "--out"]
    sheen(*arguments, tmp_path / "out")
    for name, text in said.items():
        assert [row["text"] for row in Rows(tmp_path / "out" / f"{name}.jsonl")] == [text]
    parquet.write_table(
        pyarrow.Table.from_pylist([{"path": "test.wav", "sentence": "two one"}]),
        tmp_path / "set" / "test-00000-of-00001.parquet",
    )
    assert "made otherwise (listing" in sheen(*arguments, tmp_path / "out", code=2).output
    (tmp_path / "set" / "test-00000-of-00001.parquet").write_bytes(b"PAR1 and no more")
    output = sheen(*arguments, tmp_path / "new", code=2).output
    assert "test-00000-of-00001.parquet: not readable as parquet" in output


def test_values_that_json_lacks_are_kept_as_text_and_files_are_not(tmp_path: Path) -> None:
    from datetime import date

    wav(tmp_path / "a.wav")
    row = {"audio": "a.wav", "text": "one two", "day": date(2024, 5, 1), "snr": float("nan"),
           "picture": {"bytes": b"png", "path": "p.png"}, "tags": ["a", "b"]}  # fmt: skip
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "set.parquet")
    (got,) = prepared(tmp_path / "set.parquet", tmp_path / "out")
    assert (got["day"], got["snr"], got["tags"]) == ("2024-05-01", None, ["a", "b"])
    assert "picture" not in got


def test_s4_40_one_split_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    rows = []
    for number, text in enumerate(digit_sentences(6)):
        wav(folder / f"{number}.wav", text)
        split = ("train", "dev", "clean")[number % 3]
        rows.append({"audio": f"{number}.wav", "text": text, "split": split})
    jsonl(folder / "metadata.jsonl", *rows)
    for wanted, numbers in (("validation", (1, 4)), ("clean", (2, 5))):
        got = prepared(folder, tmp_path / wanted, "--split", wanted)
        assert [row["text"] for row in got] == [rows[number]["text"] for number in numbers]
    output = sheen("prepare", "--dataset", folder, *DEMO, "--split", "test", code=2).output
    assert "has no row of split 'test'; its splits: train, validation" in output


def test_flags_of_prepare(tmp_path: Path) -> None:
    samples = [wav(tmp_path / f"{n}.wav", text) for n, text in enumerate(digit_sentences(5))]
    lines = [f"{n}.wav,{text},7" for n, text in enumerate(digit_sentences(5))]
    (tmp_path / "set.csv").write_text("\n".join(["Datei,Satz,Wer", *lines]))
    columns = ["--columns", "audio=Datei,text=Satz", "--columns", "speaker=Wer"]
    hours = (samples[0] + 1) / 16_000 / 3600
    got = prepared(tmp_path / "set.csv", tmp_path / "out", *columns, "--max-hours", hours,
                   "--language", "ha")  # fmt: skip
    assert [(row["text"], row["speaker"], row["language"]) for row in got] == [
        (text, "7", "ha") for text in digit_sentences(2)
    ]
    for given, message in (("text", "give ours=theirs"), ("txt=Satz", "data.columns.txt")):
        output = sheen(
            "prepare", "--dataset", tmp_path / "set.csv", *DEMO, "--columns", given, code=2
        )
        assert message in output.output
    rows = [{"audio": f"{n}.wav", "text": text} for n, text in enumerate(digit_sentences(2))]
    dataset = jsonl(tmp_path / "set.jsonl", rows[0] | {"speaker": ""}, rows[1] | {"speaker": "bo"})
    got = prepared(dataset, tmp_path / "named", "--speaker", "anna")
    assert [row["speaker"] for row in got] == ["anna", "bo"]
    output = sheen("prepare", "--dataset", tmp_path / "set.csv", *DEMO, "data.config=a", code=2)
    assert "data.config is for data sets on the Hub" in output.output


def test_a_source_without_validation_gives_some_of_training(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", digit_sentences(12))
    lines = (folder / "metadata.csv").read_text().splitlines()
    marked = [line + "|" + ("test" if n > 8 else "train") for n, line in enumerate(lines[1:])]
    (folder / "metadata.csv").write_text("\n".join([lines[0] + "|split", *marked]))
    out = tmp_path / "out"
    sheen("prepare", "--dataset", folder, "--out", out, "--recipe", "demo", "data.validation=0.2")
    said = {
        name: {row["text"] for row in Rows(out / f"{name}.jsonl")}
        for name in ("train", "validation")
    }
    held = {line.split("|")[1] for line in marked if line.endswith("test")}
    assert said["validation"] and not (said["train"] | said["validation"]) & held


# --- codes and references that the source brings -------------------------------------------------


def codes(frames: int) -> list[list[int]]:
    random = Random(frames)
    return [[random.randrange(128) for _ in range(4)] for _ in range(frames)]


def test_s4_43_codes_stand_in_for_sound(tmp_path: Path) -> None:
    frames = -(-wav(tmp_path / "a.wav") // FRAME)
    dataset = jsonl(
        tmp_path / "set.jsonl",
        {"audio": "a.wav", "text": "one", "audio_codes": codes(frames)},
        {"audio": "gone.wav", "text": "two", "audio_codes": codes(30), "ref_text": "hm"},
        {"audio": "a.wav", "text": "three", "audio_codes": codes(frames + 5)},
        {"audio": "gone.wav", "text": "four"},
        {"audio": "a.wav", "text": "five", "audio_codes": [[1, 2, 3], [1, 2, 3]]},
        {"audio": "a.wav", "text": "six", "audio_codes": [*codes(3), [1, 2, 128, 3]]},
        {"audio": "gone.wav", "text": "seven", "audio_codes": codes(1)},
    )
    clips = clips_of(dataset, "data.min_seconds=0.1")
    whole, bare = clips
    assert whole.path == tmp_path / "a.wav" and np.array_equal(whole.codes, codes(frames))
    assert bare.path is None and len(bare.audio) == 0 and len(bare.codes) == 30
    assert clips.pending[1].seconds == 1.5 and clips.pending[1].entry.extra["audio"] == "gone.wav"
    details = [(row["reason"], row["detail"]) for row in clips.rejected.values()]
    assert [reason for reason, _ in details] == [
        "codes-mismatch", "missing-audio", "bad-codes", "bad-codes", "too-short",
    ]  # fmt: skip
    assert f"set.jsonl:3: audio_codes has {frames + 5} frames" in details[0][1]
    assert "set.jsonl:5: audio_codes: whole numbers, frames x 4" in details[2][1]
    assert "set.jsonl:6: audio_codes: frame 3, codebook 2: 128 is not in 0..127" in details[3][1]


def test_a_backbone_that_takes_no_codes_hears_the_sound(tmp_path: Path) -> None:
    wav(tmp_path / "a.wav")
    dataset = jsonl(
        tmp_path / "set.jsonl",
        {"audio": "a.wav", "text": "one two", "audio_codes": [[1]]},
        {"audio": "gone.wav", "text": "two", "audio_codes": codes(9)},
    )
    (clip,) = clips_of(dataset, takes_codes=False)
    assert clip.codes is None and len(clip.audio)
    (row,) = prepared(dataset, tmp_path / "out")
    assert len(row["audio_codes"]) > 1 and refused(tmp_path / "out")[0]["reason"] == "missing-audio"


def test_references_are_files_and_kept_as_such(tmp_path: Path) -> None:
    wav(tmp_path / "a.wav")
    wav(tmp_path / "voice.wav", "three four", 44_100)
    given = {
        "audio": "a.wav",
        "text": "one two",
        "ref_audio": "voice.wav",
        "ref_text": "three four",
    }
    dataset = jsonl(tmp_path / "set.jsonl", given, {**given, "ref_audio": "none.wav"})
    (row,) = prepared(dataset, tmp_path / "plain")
    assert (row["ref_audio"], row["ref_text"]) == (str(tmp_path / "voice.wav"), "three four")
    assert list(row)[:8] == [
        "id", "audio", "text", "duration", "speaker", "language", "ref_audio", "ref_text",
    ]  # fmt: skip
    (bad,) = refused(tmp_path / "plain")
    assert bad["reason"] == "missing-ref-audio" and "set.jsonl:2" in bad["detail"]
    (row,) = prepared(dataset, tmp_path / "kept", "--keep-audio")
    samples, rate = soundfile.read(row["ref_audio"])
    heard, native = soundfile.read(tmp_path / "voice.wav")
    assert rate == 16_000 and len(samples) == pytest.approx(len(heard) / native * 16_000, abs=2)
    assert Path(row["ref_audio"]).parent == tmp_path / "kept" / "audio"
    stored = {**given, "audio": {"bytes": (tmp_path / "a.wav").read_bytes()},
              "ref_audio": {"bytes": (tmp_path / "voice.wav").read_bytes()}}  # fmt: skip
    parquet.write_table(pyarrow.Table.from_pylist([stored]), tmp_path / "set.parquet")
    output = sheen("prepare", "--dataset", tmp_path / "set.parquet", *DEMO, code=2).output
    assert "no usable row" in output and "add --keep-audio" in output
    (again,) = prepared(tmp_path / "set.parquet", tmp_path / "stored", "--keep-audio")
    assert np.array_equal(soundfile.read(again["ref_audio"])[0], samples)


def test_a_common_reference_is_that_of_rows_that_bring_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("a", "one two"), ("b", "three"), ("own", "four"), ("voice", "five six")):
        wav(tmp_path / f"{name}.wav", text)
    own = {"audio": "a.wav", "text": "one two", "ref_audio": "own.wav", "ref_text": "four"}
    bare = {"audio": "b.wav", "text": "three", "ref_audio": ""}
    dataset = jsonl(tmp_path / "set.jsonl", own, bare)
    prepare = ["prepare", "--dataset", dataset, *DEMO]
    rows = prepared(dataset, tmp_path / "out", "--ref", "voice.wav", "--ref-text", "five six")
    assert [(row["ref_audio"], row["ref_text"]) for row in rows] == [
        (str(tmp_path / "own.wav"), "four"), (str(tmp_path / "voice.wav"), "five six"),
    ]  # fmt: skip
    rows = prepared(dataset, tmp_path / "kept", "--ref", "voice.wav", "--keep-audio")
    assert Path(rows[1]["ref_audio"]).parent == tmp_path / "kept" / "audio"
    assert "ref_text" not in rows[1]
    output = sheen(*prepare, "--ref", "none.wav", code=2).output
    assert "error: --ref none.wav: no such file" in output and "Traceback" not in output
    output = sheen(*prepare, "--ref-text", "five six", code=2).output
    assert "ref_text belongs to a recording: give it with ref_audio (--ref)" in output
    assert not (tmp_path / "data").exists()


# --- kept recordings -----------------------------------------------------------------------------


def test_a_kept_clip_is_to_the_bit_what_was_encoded(tmp_path: Path) -> None:
    wav(tmp_path / "a.wav", rate=44_100)
    dataset = jsonl(tmp_path / "set.jsonl", {"audio": "a.wav", "text": "one two"})
    clips = clips_of(dataset, "data.keep_audio=true")
    clips.folder = tmp_path / "kept"
    (first,), (second,) = clips, clips
    samples, rate = soundfile.read(first.path, dtype="float32")
    assert rate == 16_000 and first.path.parent == tmp_path / "kept"
    assert np.array_equal(first.audio, samples) and np.array_equal(second.audio, samples)
    assert (second.id, second.path, second.text) == (first.id, first.path, first.text)


def test_somebodys_audio_folder_is_left_alone(tmp_path: Path) -> None:
    wav(tmp_path / "a.wav")
    dataset = jsonl(tmp_path / "set.jsonl", {"audio": "a.wav", "text": "one two"})
    out = tmp_path / "out"
    wav(out / "audio" / "mine.wav")
    output = sheen("prepare", "--dataset", dataset, "--out", out, *DEMO, "--keep-audio", code=2)
    assert "holds what sheen did not write" in output.output
    prepared(dataset, out)
    prepared(dataset, out, "--overwrite")
    assert (out / "audio" / "mine.wav").exists()


def test_a_refused_clip_is_not_kept(tmp_path: Path) -> None:
    for name, text in (("a", "one"), ("b", "two")):
        wav(tmp_path / f"{name}.wav", text)
    dataset = jsonl(
        tmp_path / "set.jsonl",
        {"audio": "a.wav", "text": "one", "split": "train"},
        {"audio": "b.wav", "text": "two", "split": "dev"},  # training never says it
    )
    (row,) = prepared(dataset, tmp_path / "out", "--keep-audio")
    kept = list((tmp_path / "out" / "audio").glob("*.wav"))
    assert kept == [Path(row["audio"])]


# --- info, train ---------------------------------------------------------------------------------


def test_s4_41_info_of_somebodys_jsonl(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "set.jsonl",
        {"audio": "a.wav", "text": "one", "speaker_id": "x", "age": 30, "lang": "ha"},
        {"audio": "b.wav", "text": "three", "speaker_id": "y", "age": None, "lang": "ha"},
        {"audio": "c.wav", "text": "two", "gender": "female"},
    )
    facts = json.loads(sheen("info", path, "--json").stdout)
    assert facts["rows"] == 3 and facts["hours"] is None and facts["seconds"] is None
    assert facts["speaker"] == {"x": 1, "y": 1, "unknown": 1}
    assert facts["age"] == {"unknown": 2, "30": 1}
    assert facts["gender"] == {"unknown": 2, "female": 1} and "phase" not in facts
    assert facts["language"] == {"ha": 2, "unknown": 1} and facts["characters"]["p100"] == 5


def test_s4_10_train_prepares_what_is_not_prepared(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["train", "--recipe", "demo", *TINY]
    output = sheen(*command, "--dataset", folder, "data.max_samples=6", "--out", "run").output
    assert f"preparing {folder} in data" in output
    assert json.loads((tmp_path / "data" / "dataset.json").read_text())["read"] == 6
    before = (tmp_path / "data" / "dataset.json").stat().st_mtime_ns
    output = sheen(*command, "--dataset", folder, "data.max_samples=6", "--out", "two").output
    assert "already prepared" in output
    assert (tmp_path / "data" / "dataset.json").stat().st_mtime_ns == before
    output = sheen(*command, "--dataset", folder, "--out", "three", code=2).output
    assert "data.max_samples: 6 -> None" in output and "sheen prepare --overwrite" in output
    # the recipe's own data set is for where nothing is prepared
    assert "preparing" not in sheen(*command, "--out", "four").output
    (tmp_path / "mine.yaml").write_text(f"backbone: demo\ndata: {{dataset: {folder}}}\n")
    mine = ["train", "--recipe", tmp_path / "mine.yaml", *TINY, "--data", "new", "--out", "five"]
    assert f"preparing {folder} in new" in sheen(*mine).output


def test_s4_9_a_plain_jsonl_is_prepared_beside_the_others(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = (folder / "metadata.csv").read_text().splitlines()[1:7]
    rows = [dict(zip(("audio", "text"), line.split("|"), strict=False)) for line in lines]
    mine = jsonl(tmp_path / "mine.jsonl", *(r | {"audio": str(folder / r["audio"])} for r in rows))
    command = ["train", "--recipe", "demo", *TINY, "--data"]
    anna = ["--speaker", "anna"]
    assert f"preparing {mine} in data/mine" in sheen(*command, mine, *anna, "--out", "one").output
    assert {row["speaker"] for row in Rows(tmp_path / "data/mine/train.jsonl")} == {"anna"}
    assert "already prepared" in sheen(*command, mine, *anna, "--out", "two").output
    output = sheen(*command, "data/mine", *anna, "--out", "no", code=2).output
    assert 'data.speaker="anna": `sheen prepare` settles the data' in output
    # rows that sheen prepared are taken for what they are
    assert "prepar" not in sheen(*command, "data/mine/train.jsonl", "--out", "three").output
    output = sheen(*command, "data/mine/validation.jsonl", "--out", "four", code=2).output
    assert "is one part of data/mine" in output
    output = sheen(*command, mine, "--dataset", folder, code=2).output
    assert "one of them is the data" in output
