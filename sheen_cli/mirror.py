"""W&B: a process of its own copies a run's log and samples there, so that training waits for
nothing and nobody: `mirrored` on this side, `python -m sheen_cli.mirror RUN STEP` on the other.

The files of the run are what passes between the two. W&B gets what stands in them and nothing
that it would collect by itself: no arguments, environment, code, packages or console.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread
from typing import Any

from sheen_cli import console, logins
from sheen_cli.errors import SheenError
from sheen_cli.files import FORMAT, read_json, write_json

ABOUT = "wandb.json"  # id, project and name of the run there, kept over all resumes
LOG, SAMPLES = "metrics.jsonl", "samples/step-*/samples.json"
WAIT = 30.0  # seconds that a training that is over waits for what is not sent yet
ANSWER = 2.0  # seconds in which the server must answer, or the run is offline
START = 15.0  # seconds that the server may take to begin a run
EACH = 1.0  # seconds between looks at the files
DONE = b"done"  # what a training that came to its end says to its mirror

SETTINGS = {
    "allow_val_change": True, "console": "off", "disable_code": True, "disable_git": True,
    "disable_job_creation": True, "finish_timeout": WAIT - 5, "host": "", "init_timeout": START,
    "save_code": False, "silent": True, "symlink": False, "x_disable_machine_info": True,
    "x_disable_meta": True, "x_disable_stats": True, "x_save_requirements": False,
}  # fmt: skip


# --- the training's side ------------------------------------------------------------------------


def check(wanted: bool) -> None:
    """Raise SheenError where W&B is wanted and not installed, before anything heavy is loaded."""
    spec = find_spec("wandb") if wanted else None
    if wanted and (spec is None or spec.origin is None):  # or just a folder that W&B left here
        raise SheenError(
            'W&B is not installed: `pip install "sheen-tts[wandb]"`, or train with --no-wandb'
        )


@contextmanager
def mirrored(folder: Path, log: Any, step: int) -> Iterator[None]:
    """Copy the run to W&B while the block trains, from the lines after `step` on. Nothing that
    happens there ends the training.
    """
    try:
        child = start(folder, log, step)
    except OSError as error:
        console.warn(f"no W&B: {error}")
        yield
        return
    said = b""
    try:
        yield
        said = DONE
    finally:
        end(child, said, folder)


def start(folder: Path, log: Any, step: int) -> subprocess.Popen[bytes]:
    """The other process. A run that W&B does not know yet is sent from its beginning."""
    about = folder / ABOUT
    after = step if about.is_file() else -1
    if not about.is_file():
        name = log.run_name or folder.resolve().name
        facts = {"format": FORMAT, "id": secrets.token_hex(4), "project": log.project}
        write_json(about, {**facts, "name": name})
    hidden = {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}  # not its business
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "sheen_cli.mirror", str(folder), str(after)],
        stdin=subprocess.PIPE,  # whose end tells it that the training is over
        stdout=2,
        start_new_session=True,  # Ctrl-C is for the training; the mirror still sends what is there
        env={
            "WANDB_ERROR_REPORTING": "false",
            **{name: value for name, value in os.environ.items() if name not in hidden},
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        },
    )


def end(child: subprocess.Popen[bytes], said: bytes, folder: Path) -> None:
    """Let the mirror send the rest, for a while."""
    assert child.stdin is not None
    with suppress(BrokenPipeError), child.stdin as stream:
        stream.write(said)
    try:
        child.wait(WAIT)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        console.warn(
            f"W&B was not done within {WAIT:g} s; what it lacks is in {folder}: `wandb sync "
            f"{folder}/wandb/*run-*`"
        )


# --- the mirror's side --------------------------------------------------------------------------


class Lifeline:
    """Standard input: it ends with the training, however that ends."""

    def __init__(self) -> None:
        self.over, self.done = Event(), False
        self.stream = os.dup(0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # nobody can be asked for a login here
        Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with os.fdopen(self.stream, "rb") as stream:
            self.done = stream.read() == DONE
        self.over.set()


class Source:
    """The run's files, read on from where the last look ended."""

    def __init__(self, folder: Path, after: int) -> None:
        self.folder, self.after = folder, after
        self.offset, self.heard = 0, set[Path]()

    def news(self) -> list[tuple[int, dict[str, Any]]]:
        """What came since the last look, in the order of steps: (step, record), where a record is
        a line of the log or {"samples": [...]}, each with the path of its sound.
        """
        # the log first: samples of a step are whole before the log's next line is there
        lines, listings = self._lines(), sorted(self.folder.glob(SAMPLES))
        found = [(line.pop("step"), line) for line in lines]
        for path in listings:
            if path not in self.heard:
                self.heard.add(path)
                facts = read_json(path)
                samples = [{**each, "path": path.parent / each["wav"]} for each in facts["samples"]]
                found.append((facts["step"], {"samples": samples}))
        return sorted([each for each in found if each[0] > self.after], key=lambda each: each[0])

    def _lines(self) -> list[dict[str, Any]]:
        path = self.folder / LOG
        if not path.is_file():
            return []
        with path.open("rb") as stream:
            stream.seek(self.offset)
            whole, _, _ = stream.read().rpartition(b"\n")  # the last may be half written
        self.offset += len(whole) + bool(whole)
        return [json.loads(line) for line in whole.splitlines()]


def mode() -> tuple[str, str]:
    """How W&B is to run, and why not online."""
    asked = os.environ.get("WANDB_MODE", "").lower()
    if asked in ("disabled", "offline", "dryrun"):
        return ("offline" if asked == "dryrun" else asked), f"WANDB_MODE={asked}"
    if not (logins.wandb() or os.environ.get("WANDB_IDENTITY_TOKEN_FILE")):
        return "offline", "no login: `wandb login`, or WANDB_API_KEY"
    address = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    if not answers(address):
        return "offline", f"{logins.host(address)} does not answer"
    return "online", ""


def without_password(address: str) -> str:
    """W&B takes the key alone, and writes its server's address into its logs."""
    kind, slashes, rest = address.partition("://")
    before, _, after = rest.partition("/")
    return kind + slashes + "/".join([before.rpartition("@")[2], *([after] if after else [])])


def answers(address: str) -> bool:
    """Whether there is a server, whatever it says."""
    try:
        with urllib.request.urlopen(address, timeout=ANSWER):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except (OSError, ValueError, HTTPException):
        return False


def begin(folder: Path) -> tuple[Any, str]:
    """The run at W&B, online or offline, and why not online; (None, reason) where it is off."""
    how, why = mode()
    if how == "disabled":
        return None, why
    import wandb

    about = read_json(folder / ABOUT)
    known = wandb.Settings.model_fields
    common = {
        "dir": str(folder), "project": about["project"], "id": about["id"],
        "name": about["name"], "config": config(folder),
        "settings": wandb.Settings(**{k: v for k, v in SETTINGS.items() if k in known}),
    }  # fmt: skip
    if how == "online":
        try:
            return wandb.init(mode="online", resume="allow", **common), ""
        except Exception as error:
            why = f"it could not start: {first(error)}"
            wandb.teardown()  # else the id would be in use
    return wandb.init(mode="offline", **common), why


def config(folder: Path) -> dict[str, Any]:
    """The recipe as it may be published, without secrets that somebody may have put there."""
    from sheen_cli.bundle import public_recipe
    from sheen_cli.recipe import read

    text = json.dumps(public_recipe(read(folder / "recipe.yaml")))
    values: dict[str, Any] = json.loads(logins.scrub(text, logins.values()))
    return values


def first(error: BaseException) -> str:
    """An error's first line, without secrets."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return logins.scrub(text, logins.values())


def copy(folder: Path, after: int, life: Lifeline) -> None:
    """Send what is there and what comes, until the training is over."""
    import wandb

    run, why = begin(folder)
    if run is None:
        return tell(f"W&B is off: {why}")
    place = folder / "wandb" / Path(run.settings.sync_dir).name
    kind = "" if why.startswith("WANDB_MODE") else "warning: "  # what was asked for is no surprise
    tell(f"{kind}W&B is offline: {why}; recording to {place}" if why else f"W&B: {run.url}")
    source = Source(folder, after)
    while True:
        over = life.over.is_set()
        for step, record in source.news():
            for number, sample in enumerate(record.pop("samples", ()), 1):
                sound = wandb.Audio(str(sample["path"]), caption=sample["text"])
                run.log({f"samples/{number:02}": sound}, step=step)
            numbers = {k: v for k, v in record.items() if isinstance(v, int | float)}
            if numbers:
                run.log(numbers, step=step)
        if over:
            break
        life.over.wait(EACH)
    run.finish(exit_code=0 if life.done else 1)
    tell(f"W&B: send it with `wandb sync {place}`" if why else f"W&B has it all: {run.url}")


_told: Any = sys.stderr


def tell(text: str) -> None:
    print(logins.scrub(text, logins.values()), file=_told, flush=True)


def main() -> None:
    global _told
    _told = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)  # W&B names addresses in its messages, and what is in them
    if address := os.environ.get("WANDB_BASE_URL"):
        os.environ["WANDB_BASE_URL"] = without_password(address)
    life, folder = Lifeline(), Path(sys.argv[1])
    try:
        copy(folder, int(sys.argv[2]), life)
    except Exception as error:
        tell(f"warning: W&B stopped, training goes on: {first(error)}")
    _told.flush()
    os._exit(0)  # what W&B has left to do when a process ends may wait for a server


if __name__ == "__main__":
    main()
