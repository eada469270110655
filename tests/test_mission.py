"""The four commands that sheen is for, as anybody types them, against a Hub on loopback: it has a
tiny base under the name of the released one, and real recordings under that of the Hausa set.
"""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import soundfile
from fakehub import FakeHub
from pyarrow import parquet
from warm import Warm

from sheen_qwen3_tts import miniature, stock

HAUSA, BASE = "vaghawan/hausa-tts-22k", "Qwen/Qwen3-TTS-12Hz-1.7B-Base"
TOKEN = "hf_canaryCANARYcanaryCANARYcanary"
SPEECH = Path(__file__).with_name("data") / "speech"
WORDS = "Nessun ulteriore messaggio."

# In every process of the test: nothing but loopback can be reached.
WATCH = """
import sys
from ipaddress import ip_address

def watch(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        if arguments[1][0] != "localhost" and not ip_address(arguments[1][0]).is_loopback:
            raise PermissionError(f"left loopback: {arguments[1]}")
    if event == "socket.getaddrinfo" and arguments[0] not in (None, "localhost", "127.0.0.1"):
        raise PermissionError(f"left loopback: {arguments[0]}")

sys.addaudithook(watch)
"""

Sheen = Callable[..., str]
MODULES = ("sheen_qwen3_tts.stock:load", "sheen_cli.training", "datasets", "wandb")


def utterances() -> list[dict]:
    """Real speech with the columns of the Hausa set, and one recording that is broken."""
    with (SPEECH / "metadata.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="|"))
    found = [
        {
            "audio": {"bytes": (SPEECH / row["file_name"]).read_bytes(), "path": row["file_name"]},
            "text": row["text"], "speaker_id": row["speaker"],
            "gender": "male" if row["speaker"].startswith("carlo") else "female",
            "age_range": "30-40", "phase": 1, "language": "ha",
        }
        for row in rows
    ]  # fmt: skip
    found[3]["audio"] = {"bytes": b"RIFF" + found[3]["audio"]["bytes"][:99], "path": "broken.wav"}
    return found


def publish(root: Path) -> None:
    features = {name: {"dtype": "string", "_type": "Value"} for name in utterances()[0]}
    features |= {"audio": {"_type": "Audio"}, "phase": {"dtype": "int64", "_type": "Value"}}
    note = json.dumps({"info": {"features": features}})
    table = pyarrow.Table.from_pylist(utterances()).replace_schema_metadata({"huggingface": note})
    place = root / "datasets" / HAUSA / "data"
    place.mkdir(parents=True)
    parquet.write_table(table, place / "train-00000-of-00001.parquet", row_group_size=4)
    miniature.build(root / "models" / BASE)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    root = tmp_path_factory.mktemp("hub")
    publish(root)
    with FakeHub(root, tokens=[TOKEN], canaries=[TOKEN]) as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def sheen(hub: FakeHub, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sheen]:
    """Run a command as a user does, in a process of its own, in one folder; the `fresh` one has
    imported nothing before.
    """
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(WATCH)
    environment = hub.env(tmp_path_factory.mktemp("cache"), TOKEN)
    environment |= {"WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(site), *filter(None, sys.path)])

    with Warm(site, *MODULES, environment=environment) as warm:

        def run(line: str, fresh: bool = False, place: Path = folder) -> str:
            words = [sys.executable if fresh else warm.python, "-m", "sheen_cli", *line.split("|")]
            out = subprocess.run(words, env=environment, cwd=place, capture_output=True, text=True)
            assert out.returncode == 0, out.stdout + out.stderr
            # no bar where nobody sees it move; one that has imported its drawer is too late
            assert "it/s]" not in out.stderr or not fresh
            return out.stdout + out.stderr

        yield run


def test_prepare_info_train_synth(sheen: Sheen, hub: FakeHub, folder: Path) -> None:
    said = sheen(f"prepare|--dataset|{HAUSA}")
    assert "14 read, 1 rejected (1 undecodable)" in said
    assert "of the language 'ha', which the base lacks" in " ".join(said.split())

    said = sheen("info|data/train.jsonl|--json")
    facts = json.loads(said.splitlines()[0])
    assert facts["language"].keys() == {"ha"} and facts["gender"].keys() == {"female", "male"}

    shown = sheen("info|data/train.jsonl")
    assert "language" in shown and "ha 1" in shown and "female" in shown

    said = sheen("train|--recipe|qwen3tts-lora|--wandb|--push-to-hub|me/hausa-voice")
    run = folder / "runs" / "qwen3tts-lora"
    assert (run / "best" / "adapter.safetensors").is_file()
    assert list(run.glob("samples/step-*/*.wav"))
    assert list(folder.rglob("*.wandb"))
    kept = hub.store.repos["models", "me/hausa-voice"]
    assert kept["private"] and (hub.store.root / "models/me/hausa-voice/README.md").is_file()
    card = (hub.store.root / "models/me/hausa-voice/README.md").read_text()
    assert f"base_model: {BASE}" in card

    sound, rate = soundfile.read(SPEECH / "carlo_it-vm-nomore.flac")
    soundfile.write(folder / "ref.wav", sound, rate)
    (folder / "ref.txt").write_text(WORDS, "utf-8")
    for limit in ("", "|--max-seconds|2"):
        said = sheen(f"synth|--ref|ref.wav|--icl|--text|Sannu da zuwa.{limit}")
        sound, rate = soundfile.read(folder / "out.wav")
        assert rate == 24_000 and len(sound)
        assert np.isfinite(sound).all() and np.abs(sound).max() > 0
        assert "out.wav: " in said and "real time" in said
        (folder / "out.wav").unlink()
    # what was pushed speaks, too, for somebody who has nothing but its name
    speak = "synth|me/hausa-voice|--speaker|carlo_it|--text|Sannu.|--max-seconds|1|-o|pulled.wav"
    sheen(speak, fresh=True)
    assert (folder / "pulled.wav").is_file()


def test_one_command_from_a_data_set_to_a_model_of_the_stock_package(
    sheen: Sheen, folder: Path
) -> None:
    fresh = folder / "fresh"
    fresh.mkdir()
    said = sheen(f"train|--recipe|qwen3tts-full|--dataset|{HAUSA}", place=fresh)
    assert f"preparing {HAUSA} in data" in said and "already prepared" not in said
    assert "warning: 14 read, 1 rejected (1 undecodable), see data/rejected.jsonl" in said
    assert json.loads((fresh / "data" / "dataset.json").read_text())["read"] == 14
    best = (fresh / "runs" / "qwen3tts-full" / "best").resolve()
    theirs = stock.load().Qwen3TTSModel.from_pretrained(str(best))
    sound, rate = soundfile.read(SPEECH / "carlo_it-vm-nomore.flac")
    spoken, _ = theirs.generate_voice_clone(
        "Sannu.", ref_audio=(sound, rate), ref_text=WORDS, max_new_tokens=6
    )
    assert np.isfinite(spoken[0]).all()


def test_no_token_is_in_any_byte_that_was_written(hub: FakeHub, folder: Path) -> None:
    assert list(folder.rglob("*.safetensors"))  # the tests above have run
    for path in folder.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path
    assert not hub.leaks()
