"""Data sets on the Hub: the real libraries against a Hub on loopback, in a process of their own."""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pyarrow
import pytest
import soundfile
from conftest import TINY, digit_sentences, sheen
from fakehub import FakeHub
from pyarrow import parquet

from sheen_cli.rows import Rows
from sheen_demo import words

HAUSA = "vaghawan/hausa-tts-22k"
TOKEN = "hf_canaryCANARYcanaryCANARYcanary"
DEMO = ["--recipe", "demo", "data.validation=0"]


def flac(text: str, rate: int = 16_000) -> bytes:
    """Recorded words as the bytes of a file."""
    stream = io.BytesIO()
    soundfile.write(stream, words.compose(text.split(), Random(text)), rate, format="FLAC")
    return stream.getvalue()


def utterance(number: int, text: str) -> dict:
    return {
        "audio": {"bytes": flac(text), "path": f"{number:03}.flac"},
        "text": text,
        "speaker_id": f"speaker {number % 2}",
        "gender": ("female", "male")[number % 2],
        "age_range": "20-30",
        "phase": 1 + number % 2,
        "language": "ha",
    }


def save(path: Path, rows: list[dict]) -> None:
    """A parquet file as `datasets` writes it: its features are in the schema's metadata."""
    features = {name: {"dtype": "string", "_type": "Value"} for name in rows[0]}
    features |= {"audio": {"_type": "Audio"}, "phase": {"dtype": "int64", "_type": "Value"}}
    table = pyarrow.Table.from_pylist(rows)
    note = json.dumps({"info": {"features": features}})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(
        table.replace_schema_metadata({"huggingface": note}), path, row_group_size=4
    )


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    root = tmp_path_factory.mktemp("hub")
    sets = root / "datasets"
    rows = [utterance(n, text) for n, text in enumerate(digit_sentences(10))]
    rows[3]["audio"]["bytes"] = b"<html>not found</html>"
    save(sets / HAUSA / "data" / "train-00000-of-00001.parquet", rows)
    save(sets / "u/private" / "train.parquet", rows[:2])
    for number, name in enumerate(("train", "validation", "test")):
        save(sets / "u/three" / f"{name}.parquet", rows[number : number + 1])
        save(sets / "u/odd" / f"data/{name}_clean-00000-of-00001.parquet", rows[:1])
    for name in "ab":
        save(sets / "u/configs" / name / "train.parquet", rows[:2])
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/*\n" for name in "ab")
    (sets / "u/configs/README.md").write_text(f"---\nlicense: mit\nconfigs:\n{configs}---\n")
    (sets / "u/script").mkdir()
    (sets / "u/script/script.py").write_text("raise SystemExit('this must not run')\n")
    for name, listing in (("clips", "metadata.csv"), ("table", "train.csv")):
        (sets / "u" / name / "wavs").mkdir(parents=True)
        (sets / "u" / name / "wavs" / "a.flac").write_bytes(flac("one two"))
        column = "file_name" if name == "clips" else "audio"
        (sets / "u" / name / listing).write_text(
            f"{column},text,speaker_id\nwavs/a.flac,one two,ann\n"
            + ("" if name == "clips" else "wavs/none.flac,three,bob\n")
        )
    with FakeHub(root, tokens=[TOKEN]) as hub:
        hub.store.repos["datasets", "u/private"]["private"] = True
        yield hub


@pytest.fixture(scope="module")
def remote(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """`remote.sheen(...)` runs a command where the Hub is that of the tests."""
    cache, folder = tmp_path_factory.mktemp("cache"), tmp_path_factory.mktemp("work")
    worker = Path(__file__).with_name("hub_worker.py")
    environment = hub.env(cache)
    process = subprocess.Popen(
        [sys.executable, str(worker)], env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip

    def run(*arguments: object, code: int = 0, token: str | None = None) -> str:
        job = {
            "arguments": [str(each) for each in arguments],
            "environment": {"HF_TOKEN": token} if token else {},
            "folder": str(folder),
        }
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        assert answer["code"] == code, answer["output"] + answer["error"]
        return answer["output"]

    yield SimpleNamespace(sheen=run, cache=cache, folder=folder)
    process.stdin.close()
    assert process.wait(60) == 0
    process.stdout.close()


def taken(out: Path, name: str = "train") -> list[dict]:
    return list(Rows(out / f"{name}.jsonl"))


def without_id(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "id"} for row in rows]


def test_d_9_the_missions_data_set(hub: FakeHub, remote: SimpleNamespace, tmp_path: Path) -> None:
    output = remote.sheen("prepare", "--dataset", HAUSA, "--out", tmp_path, *DEMO)
    assert "10 read, 1 rejected (1 undecodable)" in output
    rows = taken(tmp_path)
    assert [row["text"] for row in rows] == [
        text for n, text in enumerate(digit_sentences(10)) if n != 3
    ]
    first = {key: rows[0][key] for key in ("speaker", "gender", "age_range", "phase", "language")}
    assert first == {
        "speaker": "speaker 0", "gender": "female", "age_range": "20-30", "phase": 1,
        "language": "ha",
    }  # fmt: skip
    assert rows[0]["audio"] is None  # bytes in the set: no file that other tools could open
    manifest = json.loads((tmp_path / "dataset.json").read_text())
    commit = hub.store.repos["datasets", HAUSA]["heads"]["main"]
    assert manifest["made_from"]["source"] == {
        "id": HAUSA, "revision": commit, "config": None, "splits": ["train"],
    }  # fmt: skip
    reads = hub.requests("GET", f"{HAUSA}/resolve")
    assert reads and all(f"/resolve/{commit}/" in read["path"] for read in reads)
    cached = sum(p.stat().st_size for p in remote.cache.rglob("*") if p.is_file())
    assert cached < 20_000 < sum(read["sent"] for read in reads)  # streamed, not copied
    facts = json.loads(remote.sheen("info", tmp_path / "train.jsonl", "--json"))
    assert facts["rows"] == 9 and facts["gender"] == {"female": 5, "male": 4}
    assert facts["language"] == {"ha": 9} and facts["age_range"] == {"20-30": 9}
    assert "nothing to do" in remote.sheen("prepare", "--dataset", HAUSA, "--out", tmp_path, *DEMO)


@pytest.mark.parametrize(
    "fault",
    [
        "GET /resolve/.*parquet status=503 times=2",
        "GET /resolve/.*parquet drop=1",
        "GET /resolve/.*parquet cut=1000 after=1",
        "GET /api/datasets status=503 times=2",
        "GET /api/datasets drop=1",
    ],
)
def test_a_hub_that_stumbles_is_asked_again(
    hub: FakeHub, remote: SimpleNamespace, tmp_path: Path, fault: str
) -> None:
    hub.set_faults([fault])
    remote.sheen("prepare", "--dataset", HAUSA, "--out", tmp_path, *DEMO, "--max-samples", 4)
    assert hub.faults[0]["times"] == 0  # it was met
    assert [row["text"] for row in taken(tmp_path)] == [
        text for n, text in enumerate(digit_sentences(5)) if n != 3
    ]


def test_a_hub_that_breaks_off_leaves_the_old_data(
    hub: FakeHub, remote: SimpleNamespace, tmp_path: Path
) -> None:
    command = ("prepare", "--dataset", "u/three", "--out", tmp_path, "--recipe", "demo")
    remote.sheen(*command, "--split", "train", "--columns", "text=text")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    hub.set_faults(["GET /resolve/.*test.parquet status=404 times=-1"])
    output = remote.sheen(*command, "--overwrite", code=2)
    hub.set_faults([])
    assert "u/three could not be read on at test row 1" in output and "run the same" in output
    assert output.count("error:") == 1 and "Traceback" not in output
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert {name: after[name] for name in before} == before


def test_splits_of_the_hub_are_ours(remote: SimpleNamespace, tmp_path: Path) -> None:
    command = ("prepare", "--dataset", "u/three", "--recipe", "demo", "--out")
    # words that training never says are refused by the demo: look at what was read
    manifest = json.loads(remote.sheen(*command, tmp_path / "all", "--json"))
    assert manifest["read"] == 3
    assert manifest["made_from"]["source"]["splits"] == ["train", "validation", "test"]
    remote.sheen(*command, tmp_path / "one", "--split", "val")
    (row,) = taken(tmp_path / "one")  # alone, and so to be split afresh
    assert row["text"] == digit_sentences(2)[1]
    output = remote.sheen(*command, tmp_path / "none", "--split", "dev2", code=2)
    assert "u/three has no split 'dev2'; it has train, validation, test" in output
    output = remote.sheen("prepare", "--dataset", "u/odd", *DEMO, code=2)
    assert "u/odd has the splits test_clean, train_clean" in output and "--split" in output
    remote.sheen("prepare", "--dataset", "u/odd", *DEMO, "--split", "test_clean", "--out",
                 tmp_path / "odd")  # fmt: skip
    assert len(taken(tmp_path / "odd")) == 1


def test_sets_of_loose_files(remote: SimpleNamespace, tmp_path: Path) -> None:
    for name in ("clips", "table"):
        out = tmp_path / name
        remote.sheen("prepare", "--dataset", f"u/{name}", "--out", out, *DEMO)
        (row,) = taken(out)
        assert (row["text"], row["speaker"]) == ("one two", "ann")
    (refused,) = (tmp_path / "table" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(refused)["reason"] == "missing-audio" and "wavs/none.flac" in refused


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["u/nothing"], "no data set u/nothing: no file or folder here, and no public one"),
        (["u/private"], "for a private one log in with `hf auth login` or HF_TOKEN"),
        (["u/script"], "script.py), which sheen does not run, and there is no trust_remote_code"),
        (["u/configs"], "u/configs has the configurations a, b; name one: data.config=NAME"),
        (["u/configs", "data.config=c"], "has the configurations a, b; name one"),
        (["u/three", "data.revision=v9"], "u/three has no revision 'v9'"),
        (["u/three", "--columns", "text=Satz"], "no column 'Satz'; the columns are audio, text"),
    ],
)
def test_what_is_wrong_is_one_line(
    remote: SimpleNamespace, tmp_path: Path, arguments: list[str], message: str
) -> None:
    output = remote.sheen(
        "prepare", "--out", tmp_path / "out", *DEMO, "--dataset", *arguments, code=2
    )
    assert message in output and output.count("error:") == 1 and "Traceback" not in output
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_a_gated_set_says_where_to_ask(
    hub: FakeHub, remote: SimpleNamespace, tmp_path: Path
) -> None:
    hub.set_faults(["GET /api/datasets/u/three status=403 times=-1"])
    output = remote.sheen("prepare", "--dataset", "u/three", "--out", tmp_path, *DEMO, code=2)
    hub.set_faults([])
    assert "the Hub refuses the login for u/three" in output


def test_a_private_set_is_read_with_a_token_that_is_written_nowhere(
    remote: SimpleNamespace, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shown = remote.sheen(
        "prepare", "--dataset", "u/private", "--out", out, *DEMO, "--keep-audio", token=TOKEN
    )
    run = ("train", "--recipe", "demo", "--data", out, "--out", tmp_path / "run", *TINY)
    shown += remote.sheen(*run, token=TOKEN)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"dataset.json", "run.json"} <= {path.name for path in files} and len(taken(out)) == 2
    assert TOKEN not in shown
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []


def test_kept_audio_is_what_the_rows_name_and_the_set_is_read_once(
    hub: FakeHub, remote: SimpleNamespace, tmp_path: Path
) -> None:
    def asked() -> int:
        return len(hub.requests("GET", f"{HAUSA}/resolve/"))

    command = ("prepare", "--dataset", HAUSA, *DEMO, "--out")
    start = asked()
    remote.sheen(*command, tmp_path / "not")
    middle = asked()
    remote.sheen(*command, tmp_path / "kept", "--keep-audio")
    assert asked() - middle < middle - start
    rows, plain = taken(tmp_path / "kept"), taken(tmp_path / "not")
    assert [row["text"] for row in rows] == [row["text"] for row in plain]
    for row in rows:
        samples, rate = soundfile.read(row["audio"])
        assert rate == 16_000 and len(samples) / rate == pytest.approx(row["duration"], abs=1e-4)
        assert Path(row["audio"]).parent == tmp_path / "kept" / "audio"
    remote.sheen(*command, tmp_path / "kept", "--keep-audio", "--max-samples", 2, "--overwrite")
    there = {path for path in (tmp_path / "kept" / "audio").glob("*.wav")}
    assert there == {Path(row["audio"]) for row in taken(tmp_path / "kept")} and len(there) == 2
    remote.sheen(*command, tmp_path / "kept", "--overwrite")
    assert not (tmp_path / "kept" / "audio").exists()


def test_train_prepares_a_data_set_and_then_uses_it(
    hub: FakeHub, remote: SimpleNamespace, tmp_path: Path
) -> None:
    command = ("train", "--recipe", "demo", "--dataset", HAUSA, "--data", tmp_path / "data", *TINY,
               "data.validation=0.2", "--out")  # fmt: skip
    output = remote.sheen(*command, tmp_path / "run")
    assert f"preparing {HAUSA} in {tmp_path / 'data'}" in output
    assert (tmp_path / "run" / "best").exists()
    asked = len(hub.log)
    output = remote.sheen(*command, tmp_path / "again")
    assert "which was prepared from" in output and len(hub.log) == asked
    output = remote.sheen(*command, tmp_path / "third", "data.validation=0.3", code=2)
    assert "data.validation: 0.2 -> 0.3" in output
    # nor does `prepare`, where the Hub cannot be asked (it is forbidden in this process)
    command = ("prepare", "--dataset", HAUSA, "--recipe", "demo", "--out", tmp_path / "data")
    output = sheen(*command, "data.validation=0.2").output
    assert "is already prepared from it, and stays as it is" in output


def test_offline_is_said() -> None:
    output = sheen("prepare", "--dataset", "u/three", *DEMO, code=2).output
    assert "HF_HUB_OFFLINE forbids to ask the Hub" in output
