"""Ten kinds of broken plugins, installed together as pip would leave them, and what sheen's
commands make of them.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from sheen_cli import audio
from sheen_cli.babble import speech

# Seconds for an import, on a busy machine: PyTorch's own must fit in, but for a Python that has it
COLD, WARM = 25, 8

WHOLE = """
import sheen_cli
from sheen_cli import BackboneSpec, Section, hookimpl
@hookimpl
def describe():
    return BackboneSpec(
        options=Section, sample_rate=16000, terms=("t",), recipe="{name}", tiny=lambda folder: (),
        {more}
    )
@hookimpl
def prepare(clips):
    {prepare}
@hookimpl
def collate(rows): ...
@hookimpl
def load(): ...
@hookimpl
def loss(): ...
@hookimpl
def train(): ...
@hookimpl
def synth(): ...
"""
# Computes without end where the command itself imports it. A child of the listings, which is killed
# from outside whatever it does, need not keep a core busy until then.
BUSY = """import os, time
while True:
    if os.environ["SHEEN_PLUGIN_TIMEOUT"] == "0":
        time.sleep(0.1)
"""
HOOK = "from sheen_cli import hookimpl\n@hookimpl\n"


@dataclass(frozen=True)
class Plugin:
    """A package to install: its module's source, what must be said of it, and its metadata."""

    name: str
    source: str
    cause: str
    entry_points: bytes | None = None
    metadata: bytes | None = None
    packages: tuple[str, ...] = ()  # all that offer the name; itself alone if empty

    @property
    def distributions(self) -> tuple[str, ...]:
        return self.packages or (f"broken-{self.name}",)


def whole(name: str, more: str = "", prepare: str = "...") -> str:
    """A module with all hooks."""
    return WHOLE.format(name=name, more=more, prepare=prepare)


def plugins(seed: int = 0) -> list[Plugin]:
    """The ten kinds; the seed picks among ways to be so."""
    random = Random(seed)
    metadata = [
        ("metadata", None, b"[sheen]\nmetadata\n", "TypeError"),
        ("metadata", None, "[sheen]\nmetadata = caf\xe9\n".encode("latin-1"), "UnicodeDecodeError"),
        ("metadata", b"Name: caf\xe9\n", None, "UnicodeDecodeError"),
        ("metadata", b"Metadata-Version: 2.1\n", None, "no Name or Version"),
        ("metadata", None, b"[sheen]\nmetadata = \n", "names no module"),
    ]
    _, text, points, cause = random.choice(metadata)
    hang = random.choice(["import time\ntime.sleep(600)\n", BUSY])
    crash = random.choice(["yield {}; 1 / 0", "return 1 / 0"])
    return [
        Plugin("import", "import nothing_of_this_name\n", "nothing_of_this_name"),
        Plugin("syntax", "def describe(:\n", "SyntaxError"),
        Plugin("exit", f"raise SystemExit({random.randint(0, 3)})\n", "SystemExit"),
        Plugin("hang", hang, "import"),
        Plugin("signature", f"{HOOK}def collate(recipe, lines): ...\n", "'lines'"),
        Plugin("unknown", f"{HOOK}def colate(rows): ...\n", "'colate'"),
        Plugin("twin", "", "is offered by", packages=("broken-twin", "broken-twin2")),
        Plugin("api", whole("api", more="api=99"), "written for hook API 99"),
        Plugin("metadata", "", cause, points, text),
        Plugin("crash", whole("crash", prepare=crash), "ZeroDivisionError"),
    ]


def install(folder: Path, plugin: Plugin) -> None:
    """A package with an entry point, a recipe and metadata, as pip would leave it."""
    for number, distribution in enumerate(plugin.distributions):
        module = f"broken_{plugin.name}{number or ''}"
        (folder / module).mkdir()
        (folder / module / "__init__.py").write_text(plugin.source)
        info = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        facts = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n".encode()
        (info / "METADATA").write_bytes(plugin.metadata or facts)
        points = f"[sheen]\n{plugin.name} = {module}\n".encode()
        (info / "entry_points.txt").write_bytes(plugin.entry_points or points)
        recipes = folder / module / "recipes"
        recipes.mkdir()
        (recipes / f"{plugin.name}.yaml").write_text(f"# {plugin.name}\nbackbone: {plugin.name}\n")


def sheen(
    folder: Path, *arguments: object, python: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A real process, of this Python or another, that sees the packages in `folder`."""
    return subprocess.run(
        [python or sys.executable, "-m", "sheen_cli", *map(str, arguments)],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(folder),
            "SHEEN_PLUGIN_TIMEOUT": str(WARM if python else COLD),
            "OMP_NUM_THREADS": "1",
            **environment,
        },
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def recordings(folder: Path) -> Path:
    """Three short clips with a metadata.csv."""
    lines = ["file_name|text"]
    for text in ("one", "two three", "four"):
        audio.write(folder / f"{text}.wav", speech(text, 16_000), 16_000)
        lines.append(f"{text}.wav|{text}")
    (folder / "metadata.csv").write_text("\n".join(lines))
    return folder


def patient(folder: Path, name: str, python: Path | None) -> subprocess.CompletedProcess[str]:
    """Ask for a backbone that hangs, until sheen says so; it is stopped then, as by Ctrl-C's
    stronger brother, with code -9.
    """
    environment = {**os.environ, "PYTHONPATH": str(folder), "SHEEN_PLUGIN_TIMEOUT": "1"}
    command = [python or sys.executable, "-m", "sheen_cli", "recipes", "show", name]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        process.kill()
    return subprocess.CompletedProcess(command, process.returncode, "", said)


def ask(folder: Path, plugin: Plugin, python: Path | None) -> list[str]:
    """Ask for one broken backbone: what is wrong with the answer."""
    if plugin.name == "hang":
        out, codes = patient(folder, plugin.name, python), {-9}
    elif plugin.name == "crash":
        arguments = ("--recipe", "crash", "--dataset", folder / "set", "--out", folder / "out")
        out, codes = sheen(folder, "prepare", *arguments, python=python), {1}
    else:
        out, codes = sheen(folder, "recipes", "show", plugin.name, python=python), {2}
    wanted = [plugin.cause, f"pip uninstall {plugin.distributions[0]}", *plugin.distributions]
    wanted += ["Traceback", "hook prepare()", "package broken-crash 1.0"] * (plugin.name == "crash")
    problems = [
        f"asked: no {each!r} in {out.stderr[-200:]}" for each in lacking(wanted, out.stderr)
    ]
    if "Traceback" in out.stderr and plugin.name != "crash":
        problems.append(f"asked: a traceback: {out.stderr[-200:]}")
    return problems + ([] if out.returncode in codes else [f"asked: exit {out.returncode}"])


def lacking(wanted: Iterable[str], text: str) -> list[str]:
    return [each for each in wanted if each not in text]


def listed(plugin: Plugin, table: str, rows: list[dict[str, str | None]], health: str) -> list[str]:
    """What is wrong with how `plugins list` (as text, as JSON) and `doctor` name a plugin."""
    named = [row for row in rows if row["distribution"] in plugin.distributions]
    problems = [] if len(named) == len(plugin.distributions) else [f"listed {len(named)} times"]
    if plugin.name == "crash":  # which shows only when it is used
        problems += [f"listed: {row['error']}" for row in named if row["error"]]
        return problems + lacking(["ZeroDivisionError", "pip uninstall broken-crash"], health)
    wanted = [plugin.cause, f"pip uninstall {plugin.distributions[0]}"]
    for row in named:
        problems += [f"no {each!r} in {row}" for each in lacking(wanted, row["error"] or "")]
    problems += [f"no {each!r} in the table" for each in lacking(wanted, table)]
    return problems + [f"doctor does not say {each!r}" for each in lacking(wanted, health)]


def findings(folder: Path, seed: int = 0, python: Path | None = None) -> dict[str, list[str]]:
    """Install the ten kinds into `folder`, run the commands, by `python` if it is given: kind ->
    what is wrong.

    What is wrong with the other commands stands under "the rest".
    """
    kinds = plugins(seed)
    for plugin in kinds:
        install(folder, plugin)
    recordings(folder / "set")
    (folder / "rows.jsonl").write_text('{"text": "one"}\n')
    commands = {
        "doctor": ["doctor"],
        "table": ["plugins", "list"],
        "rows": ["plugins", "list", "--json"],
        "help": ["--help"],
        "version": ["--version"],
        "recipes": ["recipes", "list"],
        "show": ["recipes", "show", "demo"],
        "info": ["info", "rows.jsonl"],
    }
    # most of the time goes into waiting for one that hangs
    with ThreadPoolExecutor(3) as pool:
        running = {
            name: pool.submit(sheen, folder, *words, python=python)
            for name, words in commands.items()
        }
        asked = {plugin.name: pool.submit(ask, folder, plugin, python) for plugin in kinds}
        out = {name: future.result() for name, future in running.items()}
    found = {plugin.name: asked[plugin.name].result() for plugin in kinds}
    bad = {"doctor": 1}
    found["the rest"] = [
        f"{name}: exit {each.returncode}: {each.stderr[-200:]}"
        for name, each in out.items()
        if each.returncode != bad.get(name, 0) or "Traceback" in each.stderr
    ]
    try:
        rows = json.loads(out["rows"].stdout)
    except ValueError:
        rows = []
    health = " ".join(out["doctor"].stdout.split())
    for plugin in kinds:
        if plugin.name == "hang":
            limit = WARM if python else COLD
            plugin = replace(plugin, cause=f"did not end within {limit} s")
        found[plugin.name] += listed(plugin, out["table"].stdout, rows, health)
    demo = [row for row in rows if row["name"] == "demo"]
    if [row["error"] for row in demo] != [None] or "ok backbone demo" not in health:
        found["the rest"].append(f"demo: {demo} {health}")
    return found


def broken_plugins(seed: int) -> tuple[int, int, str]:
    """How many of the ten kinds are isolated and named, of how many, and what is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        found = findings(Path(folder), seed)
    rest = found.pop("the rest")
    good = 0 if rest else sum(not problems for problems in found.values())
    wrong = [f"{name}: {'; '.join(each)}" for name, each in found.items() if each]
    return good, len(found), " | ".join(rest + wrong)[:2000]
