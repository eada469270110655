"""Plugins: one that is broken breaks itself alone; the host names no backbone and imports none."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sheen_cli
from sheen_cli import hookspecs
from sheen_cli.backbones import HOOKS

HOST = Path(sheen_cli.__file__).parent
ROOT = HOST.parent

BROKEN = {
    "import": ("import nothing_of_this_name\n", "ModuleNotFoundError"),
    "syntax": ("def describe(:\n", "SyntaxError"),
    "exit": ("raise SystemExit(3)\n", "SystemExit"),
    "signature": (
        "from sheen_cli import hookimpl\n@hookimpl\ndef collate(recipe, lines): ...\n",
        "PluginValidationError",
    ),
    "unknown": (
        "from sheen_cli import hookimpl\n@hookimpl\ndef colate(rows): ...\n",
        "PluginValidationError",
    ),
    "missing": (
        "from sheen_cli import hookimpl\n@hookimpl\ndef describe(): ...\n",
        "lacks the hooks prepare",
    ),
}


def install(folder: Path, name: str, source: str) -> None:
    """A package with an entry point, as pip would leave it."""
    (folder / f"broken_{name}.py").write_text(source)
    info = folder / f"broken_{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: broken-{name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[sheen]\n{name} = broken_{name}\n")


def sheen(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sheen_cli", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )


def test_broken_plugins_leave_the_rest_working(tmp_path: Path) -> None:
    for name, (source, _) in BROKEN.items():
        install(tmp_path, name, source)
    assert sheen(tmp_path, "--help").returncode == 0
    listed = sheen(tmp_path, "plugins", "list")
    assert listed.returncode == 0
    lines = {line.split()[0]: line for line in listed.stdout.splitlines()}
    assert lines["demo"].endswith("ok")
    for name, (_, cause) in BROKEN.items():
        assert cause in lines[name] and f"pip uninstall broken-{name}" in lines[name]
    assert sheen(tmp_path, "recipes", "show", "demo").returncode == 0
    (tmp_path / "x.yaml").write_text("backbone: import\n")
    asked = sheen(tmp_path, "recipes", "show", "x.yaml")
    assert (
        asked.returncode == 2
        and "broken-import" in asked.stderr
        and "nothing_of_this_name" in asked.stderr
    )
    assert "Traceback" not in asked.stderr


def test_two_packages_with_one_name_are_both_named(tmp_path: Path) -> None:
    install(tmp_path, "twin", "")
    (tmp_path / "broken_twin-1.0.dist-info" / "entry_points.txt").write_text(
        "[sheen]\ndemo = broken_twin\n"
    )
    out = sheen(tmp_path, "recipes", "show", "demo")
    assert out.returncode == 2 and "offered by broken-twin and sheen-tts" in out.stderr


def test_a_plugins_recipes_are_found_without_importing_it(tmp_path: Path) -> None:
    (tmp_path / "broken_pack" / "recipes").mkdir(parents=True)
    (tmp_path / "broken_pack" / "__init__.py").write_text("raise SystemExit('imported')\n")
    (tmp_path / "broken_pack" / "recipes" / "bad.yaml").write_text("a: [")
    (tmp_path / "broken_pack" / "recipes" / "theirs.yaml").write_text(
        "# Their own.\nbackbone: pack\n"
    )
    install(tmp_path, "pack", "")
    (tmp_path / "broken_pack.py").unlink()
    out = sheen(tmp_path, "recipes", "list")
    assert out.returncode == 0 and "theirs" in out.stdout and "Their own." in out.stdout
    assert "bad.yaml: not YAML" in out.stdout and "demo" in out.stdout


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


@pytest.mark.parametrize("path", sorted(HOST.glob("*.py")), ids=lambda path: path.name)
def test_the_host_imports_no_backbone_and_no_model_library(path: Path) -> None:
    found = imports(path)
    assert not {name for name in found if name.startswith("sheen_") and name != "sheen_cli"}
    assert not found & {"transformers", "peft", "snac", "qwen_tts"}
    assert "sheen_demo" not in path.read_text("utf-8")
    if path.stem in (
        "cli",
        "recipe",
        "types",
        "backbones",
        "hookspecs",
        "rows",
        "sources",
        "prepare",
        "info",
        "demo",
    ):
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


def test_the_hooks_are_the_seven_and_documented() -> None:
    specs = {name for name, value in vars(hookspecs).items() if hasattr(value, "sheen_spec")}
    assert specs == set(HOOKS)
    for name in HOOKS:
        assert vars(hookspecs)[name].__doc__
