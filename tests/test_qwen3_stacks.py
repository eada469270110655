"""The two stacks that are proved, and the refusal of every other.

The comparison of the two needs both environments: `make test-hf` makes the second and runs it.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from stack_facts import facts
from warm import Warm

import sheen_cli
from sheen_cli.babble import LETTER, speech
from sheen_qwen3_tts import codec, miniature, stock

HERE = Path(__file__).parent
OURS = next(name for name in stock.SHARERS if stock.installed(name))
OTHER = os.environ.get("SHEEN_OTHER_STACK")  # the python of an environment with the other stack


def sound(seconds: int) -> np.ndarray:
    """Babble that does not repeat itself, at 24 kHz."""
    letters = Random(0).choices("abcdefghijklmnopqrstuvwxyz ", k=round(seconds / LETTER))
    return speech("".join(letters), codec.RATE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose codec hears by attention, too; that of fresh weights is too weak to count."""
    folder = miniature.build(tmp_path_factory.mktemp("base"))
    path = folder / "speech_tokenizer" / "model.safetensors"
    state = load_file(path)
    for name, tensor in state.items():
        if name.startswith("encoder.encoder_transformer."):
            tensor.fill_(1) if name.endswith("layer_scale.scale") else tensor.mul_(10)
    save_file(state, path, {"format": "pt"})
    return folder


@pytest.mark.skipif(OTHER is None, reason="needs a second environment: make test-hf")
def test_both_stacks_encode_and_speak_the_same(folder: Path, tmp_path: Path) -> None:
    """The same files, 15 s of sound, longer than the codec's attention window, and one speech."""
    clip = sound(15)
    np.save(tmp_path / "clip.npy", clip)
    script = [HERE / "stack_facts.py", folder, tmp_path / "clip.npy", tmp_path / "facts"]
    sources = [str(Path(file).parents[1]) for file in (sheen_cli.__file__, stock.__file__)]
    subprocess.run(
        [str(OTHER), *map(str, script)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sources)},
        check=True,
    )
    theirs, ours = load_file(tmp_path / "facts"), facts(folder, clip)
    assert set(theirs) == set(ours)
    for name, tensor in ours.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=1e-4, msg=name)
        else:
            assert torch.equal(theirs[name], tensor), name
    assert len(ours["codes"]) == 188 and len(ours["said"]) > 2


def test_the_window_of_the_codecs_attention_is_not_applied(folder: Path, tmp_path: Path) -> None:
    """4.57.3 ignores it and transformers 5 would not: clips over 10 s would get other codes.
    The same weights under a narrow and a wide window must hear the same.
    """
    clip, found = sound(15), []
    for window in (4, 512):
        place = tmp_path / str(window)
        shutil.copytree(folder, place)
        path = place / "speech_tokenizer" / "config.json"
        config = json.loads(path.read_text())
        assert config["encoder_config"]["sliding_window"] == 16
        config["encoder_config"]["sliding_window"] = window
        path.write_text(json.dumps(config))
        found.append(codec.encode(codec.load(place), clip))
    assert torch.equal(*found) and len(found[0]) == 188


# As `python stack_facts.py` where some packages are not installed: no finder knows of them.
WITHOUT = """
import runpy, sys
from importlib.machinery import PathFinder

missing, sys.argv = set(sys.argv[1].split(",")), sys.argv[2:]

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        known = name.partition(".")[0] not in missing
        return PathFinder.find_spec(name, path, target) if known else None

sys.meta_path = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
runpy.run_path(sys.argv[0], run_name="__main__")
there = {name for name in sys.modules if name.partition(".")[0] in missing}
assert not any(getattr(sys.modules[name], "__file__", None) for name in there), there
"""


def test_it_hears_and_speaks_without_what_it_does_not_need(folder: Path, tmp_path: Path) -> None:
    """And the same as with all that is installed here. SoX's program is not there, either."""
    clip = sound(1)
    np.save(tmp_path / "clip.npy", clip)
    script = [HERE / "stack_facts.py", folder, tmp_path / "clip.npy", tmp_path / "facts"]
    missing = "torchaudio,sox,onnxruntime,gradio,flash_attn"
    out = subprocess.run(
        [sys.executable, "-c", WITHOUT, missing, *map(str, script)],
        env={**os.environ, "PATH": "", "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])},
        capture_output=True, text=True,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    found, ours = load_file(tmp_path / "facts"), facts(folder, clip)
    assert set(found) == set(ours) and len(ours["codes"]) == 12 and len(ours["said"]) > 2
    for name, tensor in ours.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5, msg=name)


# --- refusals -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """Has imported our plugin, which has not looked at any version yet."""
    with Warm(tmp_path_factory.mktemp("warm"), "sheen_qwen3_tts.stock") as started:
        yield started


def refused(warm: Warm, site: Path, **versions: str) -> str:
    """What loading says where these distributions are found before the installed ones."""
    for name, number in versions.items():
        info = site / f"{name}-{number}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {number}\n"
        )
    out = subprocess.run(
        [warm.python, "-c", "from sheen_qwen3_tts import stock; stock.load()"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *sys.path])},
        capture_output=True, text=True,
    )  # fmt: skip
    assert out.returncode
    return out.stderr


def test_a_pair_of_versions_that_is_not_proved_is_refused(warm: Warm, tmp_path: Path) -> None:
    """Real metadata that is in the way: another version of what is installed."""
    said = refused(warm, tmp_path, **{OURS.replace("-", "_"): "0.2.0"})
    assert "Qwen3-TTS needs qwen-tts==0.1.1 with transformers==4.57.3 or qwen-tts-hf" in said
    assert f"installed: {OURS} 0.2.0, transformers {version('transformers')}. Run" in said


def test_the_right_package_with_another_transformers_is_refused(warm: Warm, tmp_path: Path) -> None:
    assert f"{version(OURS)}, transformers 5.23.0" in refused(warm, tmp_path, transformers="5.23.0")


def test_two_packages_of_one_import_name_are_refused(warm: Warm, tmp_path: Path) -> None:
    both = sorted(["qwen-tts", "qwen-tts-hf"])
    rival = next(name for name in both if name != OURS)
    said = refused(warm, tmp_path, **{rival.replace("-", "_"): "0.1.1"})
    assert "qwen-tts and qwen-tts-hf are both installed and overwrite each other" in said
    assert "`pip uninstall qwen-tts qwen-tts-hf`" in said


def test_without_the_package_the_way_out_is_named() -> None:
    found = dict.fromkeys((*stock.SHARERS, "transformers"), None)
    assert 'installed: none. Run `pip install "sheen-tts[qwen3-tts]"`' in str(stock.unfit(found))
    old = {**found, "qwen-tts-hf": "0.1.1.post1", "transformers": "5.23.0"}
    assert '`pip install "sheen-tts[qwen3-tts-hf]"`' in str(stock.unfit(old))
    assert stock.unfit({**old, "transformers": "5.15.1"}) is None
