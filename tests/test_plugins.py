"""Plugins: one that is broken breaks itself alone; the host names no backbone and imports none."""

import ast
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from broken import HOOK, Plugin, findings, install, recordings, sheen, whole
from broken import plugins as kinds

import sheen_cli
from sheen_cli import SheenError, hookspecs, plugins
from sheen_cli.backbones import HOOKS, OPTIONAL, Hooks, load

HOST = Path(sheen_cli.__file__).parent
ROOT = HOST.parent


def test_ten_kinds_of_broken_plugins_together_break_nothing_else(
    warm: Path, tmp_path: Path
) -> None:
    found = findings(tmp_path, python=warm)
    assert len(found) == 11
    assert not {name: problems for name, problems in found.items() if problems}


def test_each_way_to_damage_metadata_is_named_and_harms_nobody(tmp_path: Path) -> None:
    """One file each, so that no damage hides behind another."""
    damages = {
        "value": (b"[sheen]\nvalue\n", None, "TypeError"),
        "latin": ("[sheen]\nx = caf\xe9\n".encode("latin-1"), None, "UnicodeDecodeError"),
        "empty": (b"[sheen]\nempty = \n", None, "names no module"),
        "nameless": (None, b"Metadata-Version: 2.1\n", "no Name or Version"),
        "letters": (None, b"Name: caf\xe9\n", "UnicodeDecodeError"),
    }
    for name, (points, metadata, cause) in damages.items():
        install(tmp_path, Plugin(name, "", cause, points, metadata))
    script = (
        "import json; from sheen_cli import plugins, backbones; import torch, transformers\n"
        "found = plugins.scan()[1]; assert plugins.scan()[1] == found\n"
        "print(json.dumps([str(each) for each in found]))\n"
        "assert {'demo', 'qwen3-tts'} <= {point.name for point in plugins.points()}\n"
        "assert backbones.load('demo').hook.describe(recipe=None)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", script]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    named = {line.split()[3]: line for line in json.loads(out.stdout)}
    assert len(named) == len(damages)
    for name, (*_, cause) in damages.items():
        line = named[f"broken-{name}"]
        assert cause in line and f"{tmp_path}/broken_{name}-1.0.dist-info" in line


def test_of_two_copies_of_a_package_the_first_on_the_path_counts(tmp_path: Path) -> None:
    for place, name in (("first", "twin"), ("second", "twin")):
        (tmp_path / place).mkdir()
        install(tmp_path / place, Plugin(name, f"raise OSError('{place}')", place))
    path = os.pathsep.join([f"{tmp_path}/first", f"{tmp_path}/second"])
    out = sheen(tmp_path, "recipes", "show", "twin", PYTHONPATH=path)
    assert out.returncode == 2 and "OSError: first" in out.stderr and "offered" not in out.stderr


def test_a_plugin_that_ends_the_process_is_named(warm: Path, tmp_path: Path) -> None:
    install(tmp_path, Plugin("gone", "import os\nos._exit(0)\n", ""))
    install(tmp_path, Plugin("shot", "import os\nos.kill(os.getpid(), 11)\n", ""))
    install(tmp_path, Plugin("loud", "print('{}')\nraise KeyError('k')\n", ""))
    out = sheen(tmp_path, "plugins", "list", "--json", python=warm)
    errors = {row["name"]: row["error"] for row in json.loads(out.stdout)}
    assert out.returncode == 0 and errors["demo"] is None
    assert "its import ended the process (exit code 0)" in errors["gone"]
    assert "its import ended the process (signal SIGSEGV)" in errors["shot"]
    assert "KeyError: 'k'" in errors["loud"] and "{}" in out.stderr


def test_two_packages_with_one_name_are_both_named(tmp_path: Path) -> None:
    install(tmp_path, Plugin("twin", "", "", b"[sheen]\ndemo = broken_twin\n"))
    out = sheen(tmp_path, "recipes", "show", "demo")
    assert out.returncode == 2 and "offered by broken-twin and sheen-tts" in out.stderr


def test_a_crash_in_a_hook_names_the_package_and_keeps_its_traceback(
    warm: Path, tmp_path: Path
) -> None:
    crashes = {
        "late": ("yield {}; print('printed'); 1 / 0", "ZeroDivisionError: division by zero"),
        "exits": ("raise SystemExit(0)", "RuntimeError: hook prepare() ended the program"),
        "nothing": ("return None", "TypeError: 'NoneType' object is not iterable"),
        "file": ("open('/nowhere')", "error: /nowhere: No such file"),
    }
    for name, (source, cause) in crashes.items():
        install(tmp_path, Plugin(name, whole(name, prepare=source), cause))
    recordings(tmp_path / "set")
    for name, (_, cause) in crashes.items():
        arguments = ("--recipe", name, "--dataset", "set", "--out", name, "--json")
        out = sheen(tmp_path, "prepare", *arguments, python=warm)
        assert cause in out.stderr and out.stdout == "", out.stderr
        assert f"hook prepare() of backbone '{name}', package broken-{name} 1.0" in out.stderr
        assert (
            f"pip uninstall broken-{name}" in out.stderr.splitlines()[-2 if name == "file" else -1]
        )
        if name != "file":
            assert out.returncode == 1 and "Traceback" in out.stderr


def test_a_crash_inside_a_hook_inside_a_hook_is_blamed_once(tmp_path: Path) -> None:
    relay = SimpleNamespace(train=lambda run: run(), loss=lambda: 1 / 0)
    hooks = Hooks(relay, plugins.points()[0])
    with pytest.raises(ZeroDivisionError) as caught:
        hooks.train(run=hooks.loss)
    (note,) = caught.value.__notes__
    assert "hook loss() of backbone 'demo', package sheen-tts" in note


def test_a_backbone_crosses_to_another_process() -> None:
    backbone = load("demo")
    assert pickle.loads(pickle.dumps(backbone)) == backbone


@pytest.mark.parametrize(
    "name, command, cause",
    [
        ("import", ("recipes", "show", "import"), "ModuleNotFoundError: No module named"),
        ("exit", ("recipes", "show", "exit"), "SystemExit"),
        ("syntax", ("plugins", "list"), "SyntaxError"),
        ("asleep", ("plugins", "list"), "RuntimeError: backbone 'asleep' of package broken-asleep"),
        ("metadata", ("recipes", "list"), ""),
        ("yaml", ("recipes", "list"), "yaml."),
    ],
)
def test_strict_raises_the_original(
    name: str, command: tuple[str, ...], cause: str, warm: Path, tmp_path: Path
) -> None:
    asleep = Plugin("asleep", "import time\ntime.sleep(60)\n", "")
    others = [asleep, Plugin("yaml", "", "")]
    (plugin,) = (each for each in [*kinds(), *others] if each.name == name)
    install(tmp_path, plugin)
    if name == "yaml":
        (tmp_path / "broken_yaml" / "recipes" / "yaml.yaml").write_text("a: [")
    limits = {"SHEEN_STRICT_PLUGINS": "1"}
    if name == "asleep":  # it comes first, so nothing else meets the limit
        limits["SHEEN_PLUGIN_TIMEOUT"] = "2"
    out = sheen(tmp_path, *command, python=warm, **limits)
    assert (
        out.returncode == 1 and "Traceback" in out.stderr and (cause or plugin.cause) in out.stderr
    )
    assert f"broken-{name}" in out.stderr or "yaml.yaml" in out.stderr


def test_the_time_box_is_a_number(tmp_path: Path) -> None:
    out = sheen(tmp_path, "plugins", "list", SHEEN_PLUGIN_TIMEOUT="soon")
    assert out.returncode == 2 and "SHEEN_PLUGIN_TIMEOUT=soon: give seconds" in out.stderr


def test_a_plugins_recipes_are_found_without_importing_it(tmp_path: Path) -> None:
    install(tmp_path, Plugin("pack", "raise SystemExit('imported')\n", ""))
    recipes = tmp_path / "broken_pack" / "recipes"
    (recipes / "bad.yaml").write_text("a: [")
    (recipes / "theirs.yaml").write_text("# Their own.\nbackbone: pack\n")
    (recipes / "folder.yaml").mkdir()
    out = sheen(tmp_path, "recipes", "list")
    assert out.returncode == 0 and "theirs" in out.stdout and "Their own." in out.stdout
    assert "bad.yaml: not YAML" in out.stdout and "demo" in out.stdout
    assert "folder.yaml: cannot be read" in out.stdout


# --- boundaries ----------------------------------------------------------------------------------


def imports(path: Path, top_only: bool = False) -> set[str]:
    """Top-level names of the packages that a file imports, anywhere or at its top only."""
    tree = ast.parse(path.read_text("utf-8"))
    found = set()
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


QUICK = {
    "cli", "recipe", "types", "backbones", "plugins", "probe", "doctor", "machine", "hookspecs",
    "rows", "sources", "prepare", "info", "demo",
}  # fmt: skip


@pytest.mark.parametrize(
    "path", sorted(HOST.rglob("*.py")), ids=lambda path: str(path.relative_to(HOST))
)
def test_the_host_imports_no_backbone_and_no_model_library(path: Path) -> None:
    found = imports(path)
    assert not {name for name in found if name.startswith("sheen_") and name != "sheen_cli"}
    assert not found & {"transformers", "peft", "snac", "qwen_tts"}
    assert "sheen_demo" not in path.read_text("utf-8")
    if path.relative_to(HOST).parts[0].removesuffix(".py") in QUICK:
        assert "torch" not in imports(path, top_only=True)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "plugins").rglob("*.py")), ids=lambda path: path.name
)
def test_plugins_use_the_public_interface_alone(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sheen_cli"):
            assert node.module == "sheen_cli"
            assert {alias.name for alias in node.names} <= set(sheen_cli.__all__)


def test_synthesis_of_the_demo_reads_no_recordings() -> None:
    """Nothing that generates imports the recordings or the rows."""
    folder = ROOT / "plugins" / "sheen_demo"
    for name in ("voice", "generate", "model", "batches", "layout", "codec", "pace", "text"):
        name = f"{name}.py"
        assert "words import" not in (folder / name).read_text("utf-8")
        assert "import words" not in (folder / name).read_text("utf-8")


def test_public_names_are_lazy_and_complete() -> None:
    script = (
        "import sys, sheen_cli; assert 'torch' not in sys.modules and 'pydantic' not in "
        "sys.modules\n"
        "sheen_cli.hookimpl, sheen_cli.Audio, sheen_cli.Section, sheen_cli.SheenError\n"
        "assert 'torch' not in sys.modules\n"
        "assert all(getattr(sheen_cli, name) for name in sheen_cli.__all__)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    with pytest.raises(AttributeError):
        sheen_cli.nothing  # noqa: B018


def test_the_hooks_are_the_seven_and_an_optional_one_all_documented() -> None:
    specs = {name for name, value in vars(hookspecs).items() if hasattr(value, "sheen_spec")}
    assert specs == {*HOOKS, *OPTIONAL} and len(HOOKS) == 7
    for name in specs:
        assert vars(hookspecs)[name].__doc__


def test_an_export_and_its_kinds_go_together_and_may_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = f"{HOOK}def export(kind, folder):\n    (folder / kind).write_text(kind)\n"
    for name, source in {
        "onlykinds": whole("onlykinds", more="exports=('a',)"),
        "onlyhook": whole("onlyhook") + hook,
        "exporter": whole("exporter", more="exports=('a',)") + hook,
        "neither": whole("neither"),
    }.items():
        install(tmp_path, Plugin(name, source, ""))
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("onlykinds", "onlyhook"):
        with pytest.raises(SheenError, match=r"hook export and BackboneSpec\.exports go together"):
            load(name)
    assert load("neither").spec.exports == ()
    exporter = load("exporter")
    said = exporter.hook.export(recipe=None, checkpoint=tmp_path, kind="a", folder=tmp_path)
    assert said is None and (tmp_path / "a").read_text() == "a"


def test_a_package_under_development_is_mended_where_it_lies(tmp_path: Path) -> None:
    plugin = Plugin("mine", "import nothing_of_this_name\n", "nothing_of_this_name")
    install(tmp_path, plugin)
    (info,) = tmp_path.glob("*.dist-info")
    (info / "direct_url.json").write_text(
        json.dumps({"url": "file:///home/me/mine", "dir_info": {"editable": True}})
    )
    said = sheen(tmp_path, "recipes", "show", "mine").stderr
    assert "mend it in /home/me/mine; SHEEN_STRICT_PLUGINS=1 shows where it fails" in said
    assert "pip" not in said


def test_a_listing_that_is_killed_takes_its_child_with_it(tmp_path: Path) -> None:
    """Even one that imports a plugin without end."""
    package = tmp_path / "endless"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import os, pathlib, time\n"
        "pathlib.Path(__file__).with_name('pid').write_text(str(os.getpid()))\n"
        "while True: time.sleep(0.1)\n"
    )
    info = tmp_path / "endless-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: endless\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sheen]\na = endless\n")
    command = [sys.executable, "-m", "sheen_cli", "plugins", "list"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(command, env=environment, cwd=tmp_path) as process:
        wait_until((package / "pid").is_file)
        process.kill()
    child = int((package / "pid").read_text())
    wait_until(lambda: not Path(f"/proc/{child}").exists())


def wait_until(done: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not done():
        assert time.monotonic() < limit
        time.sleep(0.05)
