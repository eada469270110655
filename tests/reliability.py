"""What sheen promises of crashes, counted: one table, by `make reliability`.

    python tests/reliability.py [--seed S|random] [--only NAME] [--every N] [--json]

Everything runs on the demo backbone with a tiny model. A parent imports torch once and never
computes with it; each run is a child forked from it, killed by SIGKILL where a figure says so, and
each rerun is compared with a run that nobody disturbed.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import gc
import json
import re
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random, SystemRandom
from typing import Any, TypeVar

import torch
from broken import broken_plugins
from conftest import TINY, digit_sentences, write_folder
from crash import PHASES, Case, Disk, Ended, Job, Stop, ended, fork, schedule, watch

import sheen_demo.voice  # noqa: F401 - so that no child has to import transformers
from sheen_cli import checkpoints, cli, jobs
from sheen_cli.backbones import resolve
from sheen_cli.prepare import prepare

T = TypeVar("T")
SEED = 20_251
# Accumulation, a short last window (19 rows, windows of 8), dropout, augmentation, a schedule, and
# a rate so high that the best checkpoint is not the last one.
RUN = [
    *TINY, "train.batch_size=4", "train.accumulate=2", "train.threads=1", "train.warmup_steps=5",
    "train.schedule=cosine", "train.learning_rate=0.1", "model.dropout=0.1",
]  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """One line of the table. It holds if all of at least `promised` cases passed."""

    name: str
    passed: int
    n: int
    promised: int
    seed: int
    note: str
    failures: list[str]

    @property
    def holds(self) -> bool:
        return self.passed == self.n >= self.promised


@dataclass(frozen=True)
class Lab:
    """Where the runs lie, the data that all of them train on, the seed of all chance, and how many
    cases one stands for.
    """

    root: Path
    data: Path
    seed: int
    every: int = 1

    def random(self, *what: object) -> Random:
        return Random(repr((self.seed, *what)))

    def some(self, cases: Iterable[T]) -> list[T]:
        """One in `every` of the cases, drawn by the seed; all of them if that is 1."""
        pool = list(cases)
        chosen = self.random("some", len(pool)).sample(
            range(len(pool)), -(-len(pool) // self.every)
        )
        return [pool[number] for number in sorted(chosen)]

    def fresh(self, name: str) -> Path:
        folder = self.root / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def train(self, out: Path, *settings: str, resume: bool = False) -> None:
        recipe, backbone = resolve("demo", [*RUN, *settings])
        jobs.train(recipe, backbone, self.data, out, resume)

    def command(self, out: Path, *settings: str) -> None:
        """The same by the command line, for its exit codes and lines."""
        sys.argv = ["sheen", "train", "--recipe", "demo", "--data", str(self.data)]
        sys.argv += ["--out", str(out), *RUN, *settings]
        cli.main()

    def undisturbed(self, folder: Path, *settings: str) -> Path:
        """The run that the others must equal."""
        out = folder / "undisturbed"

        def case() -> Case:
            end = yield Job(partial(self.train, out, *settings))
            assert end.code == 0, end.output

        schedule([case()], folder)
        assert (out / "best").readlink() != (out / "last").readlink()  # or less would be tried
        return out


def count(name: str, lab: Lab, promised: int, note: str, results: list[str | None]) -> Figure:
    """A figure of cases, each of which returned what was wrong with it, or None; `promised` are
    those of all of them.
    """
    wrong = [result for result in results if result is not None]
    passed = len(results) - len(wrong)
    note = f"one case in {lab.every}; {note}" if lab.every > 1 else note
    least = promised // lab.every
    return Figure(name, passed, len(results), least, lab.seed, note, wrong[:5])


LINKS = ("best", "last")

# --- what must be equal --------------------------------------------------------------------------


def difference(run: Path, other: Path) -> str | None:
    """How a finished run differs from the undisturbed one; None where weights (as bytes), optimizer
    (by value), progress, log and links are equal, and nothing is left lying about.
    """
    for link in LINKS:
        if (run / link).readlink() != (other / link).readlink():
            return f"{link} is {(run / link).readlink()}, not {(other / link).readlink()}"
        weights = [each / link / "model.safetensors" for each in (run, other)]
        if weights[0].read_bytes() != weights[1].read_bytes():
            return f"the weights of {link} differ"
    if timeless_log(run) != timeless_log(other):
        return "metrics.jsonl differs"
    if progress(run / "last") != progress(other / "last"):
        return f"progress is {progress(run / 'last')}, not {progress(other / 'last')}"
    states = [
        torch.load(each / "last/training/optimizer.pt", weights_only=True) for each in (run, other)
    ]
    if not equal(*states):
        return "the optimizer's state differs"
    names = [{path.name for path in each.iterdir()} for each in (run, other)]
    if names[0] != names[1]:
        return f"the folder differs in {sorted(names[0] ^ names[1])}"
    return unsound(run)


def timeless_log(run: Path) -> list[dict[str, object]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def progress(checkpoint: Path) -> dict[str, object]:
    value = json.loads((checkpoint / "training" / "progress.json").read_text())
    return {key: each for key, each in value.items() if key != "seconds"}


def equal(one: object, other: object) -> bool:
    """Equality by value of nested containers of tensors."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and one == other


def unsound(run: Path) -> str | None:
    """What is not whole in a run folder, whenever one looks; None where all is."""
    for folder in checkpoints.listed(run):
        if problem := checkpoints.check(folder):
            return f"{folder.name}: {problem}"
    for link in LINKS:
        if (run / link).is_symlink() and (problem := checkpoints.check(run / link)):
            return f"{link}: {problem}"
    return None


def any_whole(run: Path) -> bool:
    return any(checkpoints.check(folder) is None for folder in checkpoints.listed(run))


def rerun_differs(end: Ended, run: Path, whole: Path) -> str | None:
    return f"the rerun failed: {end.output[-600:]}" if end.code else difference(run, whole)


# --- the figures ---------------------------------------------------------------------------------

SAVES = (
    "train.max_steps=3", "train.validate_every=1", "train.save_every=1", "train.keep=1",
)  # fmt: skip


def every_operation(lab: Lab) -> Figure:
    """A short run, killed at every single operation on the file system from its folder's making to
    its last link: three saves, with rotation and a changing best, half-written files and all.
    """
    folder = lab.fresh("operations")
    whole = lab.undisturbed(folder, *SAVES)
    results, saves = killed_everywhere(lab, folder, whole, whole, resume=False)
    note = f"{saves} saves of a run of 3 steps; half of a write is on the disk"
    return count("kill at every operation of a save", lab, 60, note, results)


def every_operation_of_a_resume(lab: Lab) -> Figure:
    """The same of a run that goes on from the checkpoint before a damaged one, whose log is ahead,
    and in whose folder an earlier crash left its traces; until it saves again.
    """
    folder = lab.fresh("resumes")
    whole = lab.undisturbed(folder, *SAVES, "train.keep=2")
    start = folder / "start"
    shutil.copytree(whole, start, symlinks=True)
    (start / "checkpoint-3" / "manifest.json").unlink()
    for name in (".checkpoint-9.part", ".checkpoint-1.old"):
        shutil.copytree(start / "checkpoint-2", start / name)
    with (start / "metrics.jsonl").open("a") as log:
        log.write('{"step": 4, "loss": 1}\n{"step": 5, "lo')
    results, _ = killed_everywhere(lab, folder, start, whole, resume=True)
    note = "newest checkpoint damaged, log ahead, leavings of a crash"
    return count("kill at every operation of a resume", lab, 30, note, results)


def killed_everywhere(
    lab: Lab, folder: Path, start: Path, whole: Path, resume: bool
) -> tuple[list[str | None], int]:
    """What was wrong after each kill of the run that makes `whole`, afresh or from a copy of
    `start`; and how many checkpoints it saved. A resumed run is killed until its first save.
    """
    settings = [*SAVES, *["train.keep=2"] * resume]

    def run(out: Path, fatal: int | None) -> None:
        Disk(folder / f"{out.name}.txt", fatal)
        lab.train(out, *settings, resume=resume)

    def prepared(out: Path) -> Path:
        if resume:
            shutil.copytree(start, out, symlinks=True)
        return out

    def counting() -> Case:
        end = yield Job(partial(run, prepared(folder / "operations"), None))
        return rerun_differs(end, folder / "operations", whole)

    (problem,) = schedule([counting()], folder)
    assert problem is None, problem
    operations = (folder / "operations.txt").read_text().splitlines()
    published = [
        number
        for number, line in enumerate(operations, 1)
        if re.search(r" rename \.checkpoint-\d+\.part checkpoint-", line)
    ]

    def case(fatal: int) -> Case:
        out, where = prepared(folder / f"run-{fatal}"), f"operation {operations[fatal - 1]}"
        end = yield Job(partial(run, out, fatal))
        if not end.killed:
            return f"{where}: it ended with {end.code} instead: {end.output[-600:]}"
        if problem := unsound(out) if out.exists() and not resume else None:
            return f"{where}: {problem}"
        if any((out / link).is_symlink() and not (out / link).is_dir() for link in LINKS):
            return f"{where}: best or last points to nothing"
        saved = resume or any(number < fatal for number in published)
        if saved and not any_whole(out):
            return f"{where}: a checkpoint was finished, and there is none"
        end = yield Job(partial(lab.train, out, *settings, resume=True))
        problem = rerun_differs(end, out, whole)
        shutil.rmtree(out)
        return problem and f"{where}: {problem}"

    ends = published[0] if resume else len(operations)
    # around what makes a checkpoint one, and between
    near = {number + step for number in published for step in (0, 1)}
    chosen = sorted({*near, *lab.some(range(1, ends + 1))} & {*range(1, ends + 1)})
    return schedule([case(fatal) for fatal in chosen], folder), len(published)


MOMENTS = (
    "train.max_steps=24", "train.validate_every=3", "train.save_every=3", "train.keep=2",
)  # fmt: skip


def random_moments(lab: Lab) -> Figure:
    """A longer run, killed from outside at moments drawn evenly from between its first and its last
    write; then run to its end.
    """
    folder, chance = lab.fresh("moments"), lab.random("moments")
    whole = lab.undisturbed(folder, *MOMENTS)
    steps = folder / "steps"
    steps.mkdir()

    def run(out: Path, resume: bool) -> None:
        Disk(folder / f"{out.name}{'-again' * resume}.txt")
        watch(None, steps / out.name)
        lab.train(out, *MOMENTS, resume=resume)

    def timing(out: Path) -> Case:
        start = time.time()
        yield Job(partial(run, out, False))
        first = (out / "recipe.yaml").stat().st_mtime
        return first - start, (out / "last").lstat().st_mtime - start

    # two at once, as the others will be
    times = schedule([timing(folder / "a"), timing(folder / "b")], folder)
    first, last = min(each[0] for each in times), min(each[1] for each in times)
    operations = len((folder / "a.txt").read_text().splitlines())
    between = repeated = most = 0

    def case(number: int) -> Case:
        nonlocal between, repeated, most
        out = folder / f"run-{number}"
        # a machine that got quicker since ends before: then the times are drawn from less
        scale = 0.5 if number >= half and between < number // 2 else 1.0
        moment = first + (last - first) * scale * chance.random()
        end = yield Job(partial(run, out, False), kill_after=moment)
        done = folder / f"{out.name}.txt"
        written = len(done.read_text().splitlines()) if done.is_file() else 0
        between += end.killed and 0 < written < operations
        if problem := unsound(out) if out.exists() else None:
            return f"kill {number}: {problem}"
        end = yield Job(partial(run, out, True))
        if problem := rerun_differs(end, out, whole):
            return f"kill {number}: {problem}"
        extra = len((steps / out.name).read_text().splitlines()) - 24
        repeated, most = repeated + extra, max(most, extra)
        return None

    cases = [case(number) for number in lab.some(range(20))]
    half = len(cases) // 2
    results = schedule(cases, folder)
    if between < half:
        results[0] = f"only {between} kills fell between the first and the last write"
    note = f"{between} between first and last write; {repeated} steps repeated, {most} at most"
    return count("kill at random moments", lab, 20, note, results)


EXACT = (
    "train.max_steps=10", "train.validate_every=3", "train.save_every=1", "train.keep=2",
    "train.learning_rate=0.5", "train.floor=0.3",
)  # fmt: skip
# epochs have three steps; where the run stands when it dies
STOPS = {
    "first": Stop(1, PHASES.index("saved")),
    "mid-accumulation": Stop(5, PHASES.index("mid-accumulation")),
    "epoch's last": Stop(3, PHASES.index("saved")),
    "epoch's first": Stop(4, PHASES.index("saved")),
    "after validation": Stop(6, PHASES.index("validated")),
    "last": Stop(10, PHASES.index("stepped")),
}


def exact_resume(lab: Lab) -> Figure:
    """Stop points x workers 0 and 2 x resumed once, twice and three times; after the named stop the
    others are drawn from the later ones.
    """
    folder = lab.fresh("exact")
    whole = lab.undisturbed(folder, *EXACT)
    steps = folder / "steps"
    steps.mkdir()
    possible = [
        Stop(step, phase)
        for step in range(1, 11)
        for phase, name in enumerate(PHASES)
        if name != "validated" or step % 3 == 0 or step == 10
    ]
    repeated = kills = 0

    def run(out: Path, stop: Stop | None, workers: int, resume: bool) -> None:
        watch(stop, steps / out.name)
        lab.train(out, *EXACT, f"train.workers={workers}", resume=resume)

    def case(name: str, workers: int, resumes: int) -> Case:
        nonlocal repeated, kills
        out = folder / f"{name.replace(' ', '-')}-{workers}-{resumes}"
        chance, stop = lab.random(out.name), STOPS[name]
        for number in range(resumes):
            end = yield Job(partial(run, out, stop, workers, number > 0))
            if not end.killed:
                return f"{out.name}: at {stop} it ended with {end.code}: {end.output[-600:]}"
            kills += 1
            stop = chance.choice([each for each in possible[:-1] if each > stop] or [stop])
        end = yield Job(partial(run, out, None, workers, True))
        if problem := rerun_differs(end, out, whole):
            return f"{out.name}: {problem}"
        repeated += len((steps / out.name).read_text().splitlines()) - 10
        return None

    cases = [case(name, workers, n) for name in STOPS for workers in (0, 2) for n in (1, 2, 3)]
    results = schedule(lab.some(cases), folder)
    note = "6 stop points x workers 0, 2 x resumed 1-3 times; "
    note += f"{repeated} steps repeated after {kills} kills"
    return count("exact resume (s0_12, s2_43)", lab, 36, note, results)


HALF = ("train.max_steps=4", "train.validate_every=2", "train.save_every=2", "train.keep=2")
REASONS = ("is missing", "is damaged", "bytes, not", "has other contents", "it is no folder")


def damaged_newest(lab: Lab) -> Figure:
    """Each file of the newest checkpoint deleted, emptied, cut in half, one bit flipped; a manifest
    that is another's; things that only look like checkpoints.
    """
    folder = lab.fresh("damaged")
    whole = lab.undisturbed(folder, *HALF)
    files = sorted(
        path.relative_to(whole / "checkpoint-4").as_posix()
        for path in (whole / "checkpoint-4").rglob("*")
        if path.is_file()
    )
    chance = lab.random("damaged")
    damages: dict[str, Callable[[Path], object]] = {
        "deleted": Path.unlink,
        "emptied": lambda path: path.write_bytes(b""),
        "halved": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        "flipped": partial(flip, chance),
    }

    def damaged(name: str, harm: str) -> Callable[[Path], object]:
        return lambda run: damages[harm](run / "checkpoint-4" / name)

    def another(run: Path) -> None:
        shutil.copy(run / "checkpoint-2" / "manifest.json", run / "checkpoint-4" / "manifest.json")

    def shorter(run: Path) -> None:
        path = run / "checkpoint-4" / "manifest.json"
        value = json.loads(path.read_text())
        path.write_text(json.dumps({**value, "files": {}}))

    # name -> (what is done to the run, what must be passed over, what must be used)
    mutations = {
        f"{name} {harm}": (damaged(name, harm), "checkpoint-4", "checkpoint-2")
        for name in files
        for harm in damages
    }
    mutations["another's manifest"] = (another, "checkpoint-4", "checkpoint-2")
    mutations["a manifest of nothing"] = (shorter, "checkpoint-4", "checkpoint-2")
    mutations["an empty folder"] = (
        lambda run: (run / "checkpoint-999").mkdir(), "checkpoint-999", "checkpoint-4",
    )  # fmt: skip
    mutations["a file"] = (
        lambda run: (run / "checkpoint-6").write_text("mine"), "checkpoint-6", "checkpoint-4",
    )  # fmt: skip

    def case(number: int, what: str) -> Case:
        mutate, passed_over, used = mutations[what]
        out = folder / f"run-{number}"
        shutil.copytree(whole, out, symlinks=True)
        mutate(out)
        end = yield Job(partial(lab.train, out, *HALF, resume=True))
        lines = end.output.splitlines()
        start = f"warning: {out / passed_over} is passed over: "
        said = [line for line in lines if line.startswith(start)]
        if not said or not any(reason in said[0] for reason in REASONS):
            return f"{what}: it did not say so: {end.output[-600:]}"
        if f"resuming from {out / used}" not in lines:
            return f"{what}: it did not use {used}: {end.output[-600:]}"
        problem = rerun_differs(end, out, whole)
        return problem and f"{what}: {problem}"

    results = schedule([case(*each) for each in enumerate(lab.some(mutations))], folder)
    note = "the one before is used, folder and reason are said"
    return count("damaged newest checkpoint", lab, 30, note, results)


def flip(chance: Random, path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def full_disk(lab: Lab) -> Figure:
    """No file may grow beyond a limit that one of a checkpoint's files, or the log, does not meet:
    exit 5, one line, nothing lost that was finished; with room again, as if nothing had been.
    """
    folder, settings = lab.fresh("disk"), (*SAVES, "train.keep=2")
    whole = lab.undisturbed(folder, *settings)
    start = folder / "start"
    shutil.copytree(whole, start, symlinks=True)
    shutil.rmtree(start / "checkpoint-3")
    checkpoints.link(start, start / "checkpoint-2", None)
    files = [whole / "metrics.jsonl", *(whole / "checkpoint-3").rglob("*")]
    sizes = {path.stat().st_size for path in files if path.is_file()}
    # what the command says must fit, too
    limits = sorted({int(size * part) for size in sizes for part in (0.5, 0.95)} - {*range(900)})

    def limited(out: Path, limit: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        lab.command(out, *settings, "--resume")

    def case(limit: int) -> Case:
        out, where = folder / f"run-{limit}", f"{limit} bytes"
        shutil.copytree(start, out, symlinks=True)
        end = yield Job(partial(limited, out, limit))
        said = [line for line in end.output.splitlines() if "error" in line.lower()]
        if end.code != 5 or len(said) != 1 or f"{out}/" not in said[0] or "MB free" not in said[0]:
            return f"{where}: it ended with {end.code}: {end.output[-600:]}"
        if (problem := unsound(out)) or not any_whole(out):
            return f"{where}: {problem or 'no checkpoint is left'}"
        if left := [path.name for path in out.glob(".*")]:
            return f"{where}: it left {left}"
        end = yield Job(partial(lab.train, out, *settings, resume=True))
        problem = rerun_differs(end, out, whole)
        return problem and f"{where}: {problem}"

    results = schedule([case(limit) for limit in lab.some(limits)], folder)
    note = "exit 5, one line with file and free space; the rerun equals"
    return count("full disk", lab, 8, note, results)


def two_writers(lab: Lab) -> Figure:
    """Two commands at once on one run folder; the holder is then killed, its reading processes
    still alive, and the next one starts at once.
    """
    folder = lab.fresh("writers")
    results = [race(lab, folder, number) for number in lab.some(range(20))]
    note = "exit 3 names pid, host, command; after kill -9 (half: 2 workers) the next one starts"
    return count("two writers at once", lab, 20, note, results)


def race(lab: Lab, folder: Path, number: int) -> str | None:
    out, workers = folder / f"run-{number}", 2 * (number % 2)
    settings = ("train.save_every=1", f"train.workers={workers}")
    ready, go = os.pipe()

    def start() -> None:
        os.close(go)
        os.read(ready, 1)  # both wait for the pipe to be closed
        lab.command(out, *settings, "train.max_steps=1000000")

    outputs = [folder / f"writer-{number}-{side}.txt" for side in (0, 1)]
    pids = [fork(start, output) for output in outputs]
    os.close(ready)
    os.close(go)
    try:
        return raced(lab, out, settings, pids, outputs)
    finally:
        for pid in pids:  # whatever went wrong, none of them trains on
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def raced(
    lab: Lab, out: Path, settings: tuple[str, ...], pids: list[int], outputs: list[Path]
) -> str | None:
    number = out.name
    first = wait_for(lambda: [e for e in map(partial(ended, wait=False), pids, outputs) if e])
    # the holder trains by now, and has read rows
    wait_for(lambda: checkpoints.listed(out))
    if len(first) != 1:
        return f"{number}: {len(first)} of two ended: {[end.output[-300:] for end in first]}"
    loser, (holder,) = first[0], [pid for pid in pids if pid != first[0].pid]
    os.kill(holder, signal.SIGKILL)
    if os.waitstatus_to_exitcode(os.waitpid(holder, 0)[1]) != -signal.SIGKILL:
        return f"{number}: the holder had ended by itself"
    last = checkpoints.step(checkpoints.listed(out)[-1])
    more = partial(lab.command, out, *settings, "--resume", f"train.max_steps={last + 2}")
    pid = fork(more, outputs[0])
    after = wait_for(lambda: [e for e in [ended(pid, outputs[0], wait=False)] if e])
    said = (f"{out} is being", f"process {holder} on host {socket.gethostname()}", "`sheen train ")
    if loser.code != 3 or not all(part in loser.output for part in said):
        return f"{number}: the loser ended with {loser.code}: {loser.output[-600:]}"
    if len(loser.output.splitlines()) != 1:
        return f"{number}: more than one line: {loser.output}"
    if not after or after[0].code or not (out / f"checkpoint-{last + 2}").is_dir():
        return f"{number}: the next one failed: {[end.output[-600:] for end in after]}"
    shutil.rmtree(out)
    return None


def wait_for(found: Callable[[], list[Any]]) -> list[Any]:
    """What `found` gives as soon as it gives something; nothing after a minute."""
    limit = time.monotonic() + 60
    while not (result := found()) and time.monotonic() < limit:
        time.sleep(0.005)
    return result


# --- the table -----------------------------------------------------------------------------------


# A new figure is a function Lab -> Figure that is added here; tests/test_reliability.py and
# `make reliability` then run it, too. What one needs beyond the demo's tiny runs it makes itself.
def plugins_fail_alone(lab: Lab) -> Figure:
    """Ten kinds of broken plugins, installed together, against every command."""
    passed, n, note = broken_plugins(lab.seed)
    failures = [] if passed == n else [note]
    return Figure("broken plugins", passed, n, 10, lab.seed, note, failures)


FIGURES: dict[str, Callable[[Lab], Figure]] = {
    "operations": every_operation,
    "resumes": every_operation_of_a_resume,
    "moments": random_moments,
    "exact": exact_resume,
    "damaged": damaged_newest,
    "disk": full_disk,
    "writers": two_writers,
    "plugins": plugins_fail_alone,
}


def laboratory(root: Path, seed: int, every: int) -> Lab:
    """The demo's rows of 24 short sentences, prepared once."""
    data = root / "data"

    def make() -> Case:
        source = write_folder(root / "set", digit_sentences(24))
        recipe, backbone = resolve("demo", [f"data.dataset={source}", "data.validation=0.2"])
        end = yield Job(partial(prepare, recipe, backbone, data))
        assert end.code == 0, end.output

    schedule([make()], root)
    return Lab(root, data, seed, every)


def memory() -> Path | None:
    """A RAM disk, if there is one with room: a killed process loses nothing that it has written,
    synced or not, and waiting for a disk is two thirds of a run's time.
    """
    folder = Path("/dev/shm")
    roomy = folder.is_dir() and shutil.disk_usage(folder).free > 1 << 30
    return folder if roomy and os.access(folder, os.W_OK) else None


def table(figures: list[Figure]) -> str:
    rows = [("figure", "passed", "seed", "")]
    rows += [(each.name, f"{each.passed}/{each.n}", str(each.seed), each.note) for each in figures]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="What sheen promises of crashes, counted.")
    parser.add_argument("--seed", default=str(SEED), help="a number, or `random`")
    parser.add_argument("--only", action="append", choices=FIGURES, help="may be given again")
    parser.add_argument("--every", type=int, default=1, help="try one case of so many")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    seed = SystemRandom().randrange(1_000_000) if given.seed == "random" else int(given.seed)
    torch.set_num_threads(1)
    gc.freeze()  # children share the memory of what is loaded
    figures = []
    with tempfile.TemporaryDirectory(
        prefix="sheen-", dir=memory(), ignore_cleanup_errors=True
    ) as root:
        lab = laboratory(Path(root), seed, given.every)
        for name in given.only or FIGURES:
            began = time.monotonic()
            figures.append(FIGURES[name](lab))
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    print(json.dumps([asdict(each) for each in figures]) if given.json else table(figures))
    for each in figures:
        for failure in each.failures:
            print(f"{each.name}: {failure}", file=sys.stderr)
    return int(not all(each.holds for each in figures))


if __name__ == "__main__":
    sys.exit(main())
