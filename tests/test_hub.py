"""Upload: what goes, to whom, once, and what happens when the Hub does not want it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import soundfile
import yaml
from conftest import TINY, sheen
from fakehub import FakeHub, card_problems
from huggingface_hub import constants
from warm import Warm

from sheen_cli import bundle, card, checkpoints, hub
from sheen_cli.bundle import Bundle, without_paths
from sheen_cli.files import digests

TOKEN, REPO = "hf_canaryCANARYcanary", "tester/digits"


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hub") / "run"
    sheen("train", "--recipe", "demo", "--data", data, "--out", out, *TINY, "log.samples=1")
    return out


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub on this machine that the client in this process sees, and no waiting."""
    with FakeHub(tmp_path / "hub", tokens=[TOKEN], canaries=[TOKEN, str(tmp_path)]) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "DELAYS", (0.0,) * 4)
        rest = time.sleep  # the client has pauses of its own
        monkeypatch.setattr(time, "sleep", lambda seconds: rest(min(seconds, 0.01)))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server
        huggingface_hub.configure_http_backend()
        huggingface_hub.utils.enable_progress_bars()


def commits(server: FakeHub, repo: str = REPO) -> int:
    """Commits beside the one that making the repository is."""
    return len(server.store.get("models", repo)["commits"]) - 1


def files(server: FakeHub, repo: str = REPO) -> set[str]:
    folder = server.store.root / "models" / repo
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return found - {".gitattributes"}


PUBLISHED = {
    "README.md", "recipe.yaml", "manifest.json", "model.safetensors",
    "artifacts/codec.safetensors", "artifacts/pace.json",
}  # fmt: skip


def test_push_and_pull(run: Path, there: FakeHub, tmp_path: Path) -> None:
    said = sheen("push", run, REPO)
    assert "warning: the Hub says of the model card: no license given" in said.stderr
    assert said.stdout.strip() == f"{there.url}/{REPO} (private)"
    (made,) = there.requests("POST", "/api/repos/create")
    assert there.store.get("models", REPO)["private"] is True and made["status"] == 200
    assert commits(there) == 1 and files(there) == PUBLISHED and not there.leaks()
    pulled = tmp_path / "pulled"
    script = (
        "import sys, huggingface_hub as h; h.snapshot_download(sys.argv[1], local_dir=sys.argv[2])"
    )
    environment = there.env(tmp_path / "cache", TOKEN)
    subprocess.run([sys.executable, "-c", script, REPO, pulled], check=True, env=environment)
    assert checkpoints.check(pulled) is None
    (pulled / "README.md").write_text("# our own words\n")  # the card is its readers'
    sheen("synth", pulled, "--text", "one two", "-o", tmp_path / "pulled.wav")
    sheen("synth", run, "--text", "one two", "-o", tmp_path / "ours.wav")
    sounds = [soundfile.read(tmp_path / f"{name}.wav")[0] for name in ("pulled", "ours")]
    assert len(sounds[0]) and sounds[0].tolist() == sounds[1].tolist()
    again = sheen("push", run / "best", REPO).stdout
    assert "it held all of this already" in again and commits(there) == 1


def test_the_recipe_that_is_published_is_nobody_s(run: Path, there: FakeHub, folder: Path) -> None:
    sheen("push", run, REPO)
    published = (there.store.root / "models" / REPO / "recipe.yaml").read_text()
    values = yaml.safe_load(published)
    assert values["data"]["dataset"] == folder.name and "hub" not in values
    assert set(values["log"]) == {"every", "samples", "sentences"}
    before = yaml.safe_load((run / "best" / "recipe.yaml").read_text())
    assert values["model"] == before["model"] and values["train"] == before["train"]


def test_a_dry_run_shows_all_and_sends_nothing(run: Path, there: FakeHub) -> None:
    shown = sheen("push", run, REPO, "--dry-run", "--license", "cc-by-4.0").stdout
    listed, _, text = shown.partition("\n\n")
    assert {line.split()[1] for line in listed.splitlines()} == PUBLISHED
    assert card_problems(text.strip()) == ([], []) and "license: cc-by-4.0" in text
    facts = json.loads(sheen("push", run, REPO, "--dry-run", "--json").stdout)
    assert set(facts["files"]) == PUBLISHED and facts["commit"] is None and facts["private"]
    assert there.requests() == []


def test_the_card_tells_the_figures_of_its_checkpoint(run: Path, there: FakeHub) -> None:
    sheen("push", run, REPO)
    text = (there.store.root / "models" / REPO / "README.md").read_text()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (loss,) = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert f"| validation_loss | {loss:.4g} |" in text and "After step 3" in text
    front = yaml.safe_load(text.split("---")[1])
    assert front["pipeline_tag"] == "text-to-speech" and front["language"] == ["en"]
    assert "base_model" not in front and "license" not in front
    assert f"hf download {REPO}" in text and "sheen synth digits --text" in text


def test_what_an_earlier_upload_left_is_removed_and_what_others_put_there_is_not(
    run: Path, there: FakeHub
) -> None:
    packed = hub.prepare((run / "best").resolve(), REPO)
    manifest = json.loads(packed.files["manifest.json"])
    more = {**manifest["files"], "adapter.safetensors": {"bytes": 3, "sha256": "0" * 64}}
    manifest = checkpoints.sealed(manifest["backbone"], more)
    older = {"adapter.safetensors": b"old", "manifest.json": json.dumps(manifest).encode()}
    older |= {"sample.wav": b"RIFF", "README.md": packed.files["README.md"]}
    hub.push(Bundle(older, [], packed.recipe, False), REPO, True)
    assert files(there) == set(older)
    hub.push(packed, REPO, True)
    assert files(there) == PUBLISHED | {"sample.wav"} and commits(there) == 2


# --- faults --------------------------------------------------------------------------------------

ENDPOINTS = {
    "whoami": "GET /whoami-v2", "look": "GET /api/models/tester/digits$",
    "create": "POST /repos/create", "tree": "GET /tree/", "card": "POST /validate-yaml",
    "preupload": "POST /preupload/", "batch": "POST /objects/batch", "send": "PUT /__lfs__/",
    "commit": "POST /commit/",
}  # fmt: skip


@pytest.mark.parametrize("fault", ["status=503", "status=503 then=1", "drop=1", "drop=1 then=1"])
@pytest.mark.parametrize("where", ENDPOINTS)
def test_one_failure_of_the_hub_is_survived(
    where: str, fault: str, run: Path, there: FakeHub
) -> None:
    """Also where the work was done and only the answer lost: there is one commit."""
    there.set_faults([f"{ENDPOINTS[where]} {fault}"])
    sheen("push", run, REPO)
    assert commits(there) == 1 and files(there) == PUBLISHED
    assert there.store.get("models", REPO)["private"] is True


def test_a_wait_that_is_asked_for_is_kept(
    run: Path, there: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    there.set_faults(["POST /commit/ status=429 retry_after=7"])
    sheen("push", run, REPO)
    assert 7 in waits and commits(there) == 1


@pytest.mark.parametrize(
    "fault, code, message",
    [
        ("POST /commit/ status=503 times=-1", 7, "the Hub cannot be had: 503"),
        ("GET /api/ drop=1 times=-1", 7, "the Hub cannot be had"),
        ("POST /commit/ status=403 times=-1", 2, "the Hub refuses the token: 403"),
        ("POST /commit/ status=400 times=-1", 2, "the Hub refuses the upload: 400"),
        ("POST /validate-yaml status=400 times=-1", 2, "the Hub refuses the"),
    ],
)
def test_a_failure_that_lasts_is_one_line(
    fault: str, code: int, message: str, run: Path, there: FakeHub
) -> None:
    there.set_faults([fault])
    error = sheen("push", run, REPO, code=code).stderr.splitlines()[-1]
    assert error.startswith("error: ") and message in error
    if ("models", REPO) in there.store.repos:
        assert commits(there) == 0 and not files(there)


def test_logins(run: Path, there: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def error() -> str:
        return sheen("push", run, REPO, code=2).stderr

    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrong")
    assert "the Hub refuses the token: 401" in error()
    there.read_tokens.add("hf_onlyonlyonly")
    monkeypatch.setenv("HF_TOKEN", "hf_onlyonlyonly")
    assert "can only read" in error()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    assert "there is no token for the Hub: `hf auth login`, or set HF_TOKEN" in error()
    assert ("models", REPO) not in there.store.repos


def test_a_public_repository_takes_nothing_that_is_to_be_private(run: Path, there: FakeHub) -> None:
    sheen("push", run, "tester/open", "--no-private")
    assert there.store.get("models", "tester/open")["private"] is False
    (run / "best" / "notes.txt").write_text("for us")
    error = sheen("push", run, "tester/open", code=2).stderr
    assert "tester/open is public already: add --no-private" in error
    assert "notes.txt" not in files(there, "tester/open")


@pytest.mark.parametrize("name", ["digits", "a/b/c", "/etc/passwd", "../x/y", "a/b--c", "a/ü"])
def test_a_name_that_is_none_is_refused(name: str, run: Path, data: Path, tmp_path: Path) -> None:
    assert "is named USER/NAME" in sheen("push", run, name, "--dry-run", code=2).stderr
    out = tmp_path / "run"
    arguments = ["train", "--recipe", "demo", "--data", data, "--out", out, *TINY]
    assert "hub.push_to" in sheen(*arguments, "--push-to-hub", name, code=2).stderr


# --- a training that uploads ---------------------------------------------------------------------


def training(data: Path, out: Path, *arguments: object) -> str:
    command = ["train", "--recipe", "demo", "--data", data, "--out", out, *TINY]
    return sheen(*command, "hub.license=cc0-1.0", "--push-to-hub", REPO, *arguments).stderr


def test_a_training_uploads_its_best_or_its_last(
    data: Path, there: FakeHub, tmp_path: Path
) -> None:
    settings = ["train.learning_rate=5", "train.max_steps=4", "train.validate_every=1"]
    settings += ["train.clip_norm=null", "train.schedule=constant"]
    said = training(data, tmp_path / "run", *settings)
    assert f"{there.url}/{REPO} (private)" in said and "warning" not in said
    best = (tmp_path / "run" / "best").resolve()
    assert best.name != "checkpoint-4"
    pushed = there.store.root / "models" / REPO / "model.safetensors"
    assert pushed.read_bytes() == (best / "model.safetensors").read_bytes()
    arguments = ["hub.which=last", "hub.private=false", "hub.push_to=tester/last", *settings]
    training(data, tmp_path / "other", *arguments)
    pushed = there.store.root / "models" / "tester/last" / "model.safetensors"
    last = tmp_path / "other" / "last" / "model.safetensors"
    assert pushed.read_bytes() == last.read_bytes()
    assert there.store.get("models", "tester/last")["private"] is False


def test_a_failed_upload_does_not_fail_the_training(
    data: Path, there: FakeHub, tmp_path: Path
) -> None:
    there.set_faults(["POST /commit/ status=503 times=-1"])
    out = tmp_path / "run"
    said = training(data, out)
    assert "warning: the upload failed: the Hub cannot be had: 503" in said
    again = said.partition("; run: sheen ")[2].split()
    assert again == ["push", str(out / "best"), REPO]
    there.set_faults([])
    sheen(*again)
    assert commits(there) == 1


def test_a_token_that_cannot_write_is_said_before_the_training(
    data: Path, there: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there.read_tokens.add("hf_onlyonlyonly")
    monkeypatch.setenv("HF_TOKEN", "hf_onlyonlyonly")
    said = training(data, tmp_path / "run")
    first, *_, last = said.splitlines()
    assert first.startswith(
        f"warning: no upload to {REPO} as things are: the token for the Hub can"
    )
    assert last.startswith("warning: the upload failed: the token for the Hub can only read")
    assert (tmp_path / "run" / "best").is_dir()


def test_somebody_elses_name_is_doubted_before_the_training(
    data: Path, there: FakeHub, tmp_path: Path
) -> None:
    there.set_faults(["POST /repos/create status=403 times=-1"])
    said = training(data, tmp_path / "run", "hub.push_to=anna/voice")
    first, *_, last = said.splitlines()
    assert first.startswith("warning: the upload to anna/voice may be refused: the token for the")
    assert "Hub is of tester, who is not known to write to anna" in first
    assert last.startswith("warning: the upload failed: the Hub refuses the token: 403")


def test_no_secret_in_any_byte_written_or_sent(data: Path, tmp_path: Path) -> None:
    """The command itself, with its own environment, W&B beside it, and the token stored by a login
    in a second run.
    """
    key, secret = "ca9a11ce5eed" * 3 + "cafe", "url-password"
    hub = FakeHub(tmp_path / "hub", tokens=[TOKEN], canaries=[TOKEN, key, secret])
    with hub as server, ExitStack() as quick:
        there = {**server.env(tmp_path / "cache"), "WANDB_API_KEY": key, "WANDB_MODE": "offline"}
        there["HTTPS_PROXY"] = f"http://user:{secret}@127.0.0.1:9"
        (tmp_path / "cache").mkdir()
        said = b""
        warm = quick.enter_context(
            Warm(tmp_path, "sheen_cli.training", "sheen_demo.voice", "wandb", environment=there)
        )
        for number, (name, extra) in enumerate([("env", {"HF_TOKEN": TOKEN}), ("stored", {})]):
            if not extra:
                (tmp_path / "cache" / "token").write_text(TOKEN)
            arguments = ["train", "--recipe", "demo", "--data", data, "--out", tmp_path / name]
            arguments += [
                *TINY,
                "log.samples=1",
                "hub.license=cc0-1.0",
                "--wandb",
                "--push-to-hub",
                f"{REPO}-{number}",
            ]
            done = subprocess.run(
                [warm.python, "-m", "sheen_cli", *map(str, arguments)],
                capture_output=True, env={**there, **extra},
            )  # fmt: skip
            assert done.returncode == 0 and b"warning" not in done.stderr, done.stderr
            assert commits(server, f"{REPO}-{number}") == 1
            said += done.stdout + done.stderr
        assert not server.leaks()
    (tmp_path / "cache" / "token").unlink()
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    for canary in (TOKEN, key, secret):
        assert all(canary.encode() not in each for each in [*written, said])


# --- bundle and card -----------------------------------------------------------------------------


def checkpoint(folder: Path, **files: bytes) -> Path:
    """A sealed checkpoint of these files, whose names have __ for / and no dots spared."""
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (folder / "manifest.json").write_text(
        json.dumps(checkpoints.sealed("qwen3-tts", digests(folder)))
    )
    return folder


def test_only_what_loading_needs_is_packed_and_without_paths(tmp_path: Path) -> None:
    home = f"{Path.home()}/secret project"
    cached = f"{home}/hub/models--Qwen--Qwen3-TTS/snapshots/0123/"
    config = {"_name_or_path": cached, "text": "/ not a path", "inner": [{"dir": f"{home}/x"}]}
    recipe = {"backbone": "qwen3-tts", "model": {"base": cached}, "hub": {"push_to": "me/mine"}}
    recipe |= {"data": {"dataset": f"{home}/anna"}, "log": {"project": "ours", "every": 3}}
    tokens = {"model": {"merges": ["/home /x"], "vocab": {"/home": 1}}, "a": "/usr/lib"}
    folder = checkpoint(
        tmp_path / "checkpoint-2",
        model_dot_safetensors=b"weights",
        config_dot_json=json.dumps(config).encode(),
        tokenizer_dot_json=json.dumps(tokens).encode(),
        merges_dot_txt=b"a b",
        recipe_dot_yaml=yaml.safe_dump(recipe).encode(),
        README_dot_md=b"---\nlicense: other\n---\nthe base's own card",
        speech_tokenizer__model_dot_safetensors=b"codec",
        artifacts__references_dot_jsonl=json.dumps({"audio": f"{home}/a.wav"}).encode() + b"\n",
        artifacts__table_dot_npy=b"table",
        training__optimizer_dot_pt=b"state",
        training__progress_dot_json=b'{"step": 2}',
        notes_dot_log=b"a log",
        pickled_dot_bin=b"pickle",
        _dot_hidden_dot_json=b"{}",
    )
    (folder / "unlisted.json").write_text("{}")
    packed = hub.prepare(folder, REPO)
    assert set(packed.files) == {
        "README.md", "manifest.json", "model.safetensors", "config.json", "tokenizer.json",
        "merges.txt", "recipe.yaml", "speech_tokenizer/model.safetensors",
        "artifacts/references.jsonl", "artifacts/table.npy",
    }  # fmt: skip
    assert sorted(packed.left) == [".hidden.json", "notes.log", "pickled.bin"]
    sent = {name: content for name, content in packed.files.items() if isinstance(content, bytes)}
    assert all(
        home.encode() not in content and b"secret" not in content for content in sent.values()
    )
    assert json.loads(sent["config.json"]) == {
        "_name_or_path": "Qwen/Qwen3-TTS", "text": "/ not a path", "inner": [{"dir": "x"}],
    }  # fmt: skip
    assert json.loads(sent["artifacts/references.jsonl"]) == {"audio": "a.wav"}
    assert packed.files["tokenizer.json"] == folder / "tokenizer.json"  # to the byte
    published = yaml.safe_load(sent["recipe.yaml"])
    assert published["model"]["base"] == "Qwen/Qwen3-TTS" and published["log"] == {"every": 3}
    assert published["data"]["dataset"] == "anna" and "hub" not in published
    assert (
        b"base_model: Qwen/Qwen3-TTS\n" in sent["README.md"] and b"license" not in sent["README.md"]
    )


def test_without_safetensors_there_is_nothing_to_send(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c", model_dot_pt=b"x", recipe_dot_yaml=b"backbone: demo\n")
    assert "holds no weights as .safetensors" in sheen("push", folder, REPO, code=2).stderr


def test_a_damaged_checkpoint_is_not_sent(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-rL", run / "best", folder], check=True)
    (folder / "model.safetensors").write_bytes(
        b"\0" * (folder / "model.safetensors").stat().st_size
    )
    assert "not a usable checkpoint" in sheen("push", folder, REPO, "--dry-run", code=2).stderr


@pytest.mark.parametrize(
    "base, known",
    [
        ("Qwen/Qwen3-TTS-12Hz-1.7B-Base", True), ("", False), (None, False), ("base", False),
        ("/home/me/base", False), ("./base", False), ("a/b/c", False), ("ü/ö", False),
        ("a/b c", False), ("user/no", True), ("--", False), ("user/a--b", False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("language", [None, "no", "de-DE", "Norwegian", "zh_CN", "", "yue", "🙂"])
def test_any_card_is_accepted(base: Any, known: bool, language: Any, tmp_path: Path) -> None:
    model = {} if base is None else {"base": base}
    recipe = {"backbone": "qwen3-tts", "model": model, "data": {"language": language}}
    packed = Bundle({"adapter.safetensors": b""}, [], bundle.public_recipe(recipe), False)
    text = card.write(packed, tmp_path, REPO, None)
    errors, _ = card_problems(text)
    front = yaml.safe_load(text.split("---")[1])
    assert errors == [] and all(front.values())
    assert front.get("base_model") == (base if known else None)
    assert front.get("base_model_relation") == ("adapter" if known else None)
    codes = {"no": ["no"], "de-DE": ["de"], "zh_CN": ["zh"], "yue": ["yue"]}
    assert front.get("language") == codes.get(language)
    assert "/home/me" not in text


def test_a_folder_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "base").mkdir(parents=True)
    assert card.hub_id("runs/base") is None and card.hub_id("runs/other") == "runs/other"
    assert bundle.public_recipe({"model": {"base": "runs/base"}}) == {"model": {"base": "base"}}


def test_paths_of_other_systems_are_paths_too() -> None:
    for text in (r"C:\Users\anna\base", "~/base", "../base", "file:///home/anna/base"):
        assert without_paths({"base": text}, bundle.of_here) == {"base": "base"}
    for text in ("Qwen/base", "cosine", "model.text_embedding.*", "and/or", "1/2", "a: b"):
        assert without_paths([text], bundle.of_here) == [text]


def test_push_imports_nothing_heavy(run: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from sheen_cli.cli import app\n"
        "try: app(sys.argv[1:])\nexcept SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'transformers', 'accelerate'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    out = subprocess.run(
        [sys.executable, "-c", script, "push", run, REPO, "--dry-run"],
        cwd=tmp_path, capture_output=True, text=True, env=os.environ,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
