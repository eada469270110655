"""The wheel, installed into an environment of its own, starts the demo."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PLUGINS = {path.name for path in (ROOT / "plugins").iterdir() if path.is_dir()}


def test_the_wheel_in_a_clean_environment_starts_the_demo(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("sheen_tts-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if "dist-info" not in top} == {"sheen_cli", *PLUGINS}
    assert "sheen_cli/recipes/demo.yaml" in names and "sheen_demo/words/LICENSE.md" in names
    assert wheel.stat().st_size < 1_000_000

    home = tmp_path / "env"
    venv.create(home, with_pip=False, symlinks=True)
    site = home / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    pip = [sys.executable, "-m", "pip", "--python", home / "bin" / "python", "install"]
    options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*pip, *options, wheel], check=True)
    # What sheen depends on comes from this environment, as a plain folder: its .pth files, and so
    # the checkout that is installed in it for development, are not followed.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}

    def sheen(*arguments: str) -> str:
        command = [home / "bin" / "sheen", *arguments]
        out = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert out.returncode == 0, out.stderr[-3000:]
        return out.stdout

    where = [home / "bin" / "python", "-c", "import sheen_cli; print(sheen_cli.__file__)"]
    out = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert str(site) in out.stdout
    assert "sheen-tts" in sheen("plugins", "list")
    small = ["model.hidden=32", "model.layers=1", "model.heads=2", "model.vocoder_rounds=2"]
    out = sheen("demo", "--max-steps", "2", "data.max_samples=300", *small)
    assert 'sheen synth runs/demo/best --text "flight two nine one leaves from gate seven"' in out
    assert len(list((tmp_path / "runs" / "demo" / "heldout").glob("[0-9][0-9].wav"))) == 30
