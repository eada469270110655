"""The contract kit: two unlike backbones pass it, and each of its rules catches its defect."""

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import sheen
from test_docs import commands, keys

from sheen_cli.backbones import HOOKS
from sheen_cli.testing import RULES

HERE = Path(__file__).parent
BANDS = HERE / "third_party" / "sheen_bands"
NAMES = [rule.name for rule in RULES]
HEAVY = ("imports",)  # these have a module of their own
# further defects of rules that have one: what breaks -> the rule that must say so
FURTHER = {
    "silent": "sound",
    "deaf_to_greedy": "seeds",
    "mute_after_load": "reload",
    "miscounted": "logits",
    "not_a_number": "nll",
    "limited": "learns",
    "first_speaker": "order",
}
RIGHT = ("codeless", "voices")  # unlike the others, but right

ALL = [*NAMES, *FURTHER, *RIGHT]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the third-party package was built and installed by pip."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--target", folder]
    subprocess.run([*pip, *options, BANDS], check=True)
    return folder


def environment(site: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{HERE}", **more}


@pytest.fixture(scope="session")
def defective(site: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which all defective backbones are installed."""
    recipes = tmp_path_factory.mktemp("recipes")
    points = []
    for name in ALL:
        (recipes / f"{name}.yaml").write_text(f"backbone: {name}\ntrain: {{epochs: 1}}\n")
        points.append(f"{name} = {'defects_heavy' if name in HEAVY else 'defects'}:{name}")
    info = site / "sheen_defects-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sheen-defects\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(["[sheen]", *points]) + "\n")
    return environment(site, DEFECTS=str(recipes))


def judge(extent: str, defective: dict[str, str], python: Path) -> dict[str, dict]:
    """What the kit says of every defective backbone; two processes share the work."""

    def run(names: list[str]) -> list[dict]:
        command = [sys.executable, HERE / "kit_worker.py", python, extent, *names]
        out = subprocess.run(command, env=defective, capture_output=True, text=True)
        assert out.returncode == 0, out.stderr[-3000:]
        return [json.loads(line) for line in out.stdout.splitlines()]

    with ThreadPoolExecutor() as pool:
        found = [each for some in pool.map(run, (ALL[::2], ALL[1::2])) for each in some]
    return {each["name"]: each for each in found}


@pytest.fixture(scope="session")
def verdicts(defective: dict[str, str], warm_kit: Path) -> dict[str, dict]:
    return judge("brief", defective, warm_kit)


@pytest.mark.parametrize("name", NAMES)
def test_each_defect_breaks_its_rule_and_no_other(verdicts: dict[str, dict], name: str) -> None:
    broken = verdicts[name]["broken"]
    assert list(broken) == [name], broken
    rule = next(rule for rule in RULES if rule.name == name)
    assert f"{name}: {rule.hook}: " in broken[name] and f"cause: {rule.cause}" in broken[name]


@pytest.mark.slow
def test_nor_any_rule_that_trains_a_model(defective: dict[str, str], warm_kit: Path) -> None:
    verdicts = judge("all", defective, warm_kit)
    found = {name: list(verdict["broken"]) for name, verdict in verdicts.items()}
    wanted = {**{name: [name] for name in NAMES}, **{name: [] for name in RIGHT}}
    assert found == wanted | {name: [rule] for name, rule in FURTHER.items()}


@pytest.mark.parametrize("name", FURTHER)
def test_further_defects_break_one_rule(verdicts: dict[str, dict], name: str) -> None:
    assert list(verdicts[name]["broken"]) == [FURTHER[name]], verdicts[name]["broken"]


def test_voices_by_name_are_right(verdicts: dict[str, dict]) -> None:
    assert verdicts["voices"] == {"name": "voices", "broken": {}, "not offered": []}


def test_a_backbone_without_codes_is_judged_by_what_it_has(verdicts: dict[str, dict]) -> None:
    assert verdicts["codeless"]["broken"] == {}
    assert set(verdicts["codeless"]["not offered"]) == {"end", "targets", "logits", "nll", "learns"}


def test_the_demo_passes_every_rule(kit: None) -> None:
    report = json.loads(sheen("plugins", "check", "demo", "--json").stdout)
    documented = keys(commands()["plugins check"])
    assert list(report) == list(documented[0])
    assert all(list(each) == list(documented[1]) for each in report["rules"])
    assert report["passed"] and [each["rule"] for each in report["rules"]] == NAMES
    assert {each["status"] for each in report["rules"]} == {"ok"}


def test_the_third_party_package_passes_its_own_test_of_the_contract(site: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs"]
    out = subprocess.run(
        [*command, "--rootdir", BANDS, BANDS], env=environment(site), capture_output=True, text=True
    )
    assert out.returncode == 0 and f"{len(NAMES)} passed" in out.stdout, out.stdout + out.stderr


def test_a_broken_rule_is_exit_code_1_and_an_unknown_backbone_2(
    site: Path, kit: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", environment(site)["PYTHONPATH"])
    few = sheen("plugins", "check", "bands", "train.max_steps=2", code=1).stdout
    assert "bands breaks learns" in few
    assert "likely cause: training optimises something else" in few
    assert "did you mean 'bands'?" in sheen("plugins", "check", "band", code=2).stderr


def test_the_tutorial_shows_the_package_as_it_is_and_every_rule() -> None:
    text = (HERE.parent / "docs" / "writing-a-backbone.md").read_text("utf-8")
    files = [path for path in BANDS.rglob("*") if path.suffix in (".py", ".toml", ".yaml")]
    sources = [path.read_text("utf-8") for path in files]
    blocks = re.findall(r"```(?:python|toml|yaml)\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 12
    for block in blocks:
        assert any(block.strip() in source for source in sources), block
    for rule in RULES:
        assert f"| `{rule.name}` | {rule.hook} | {rule.promise} | {rule.cause} |" in text


def test_every_hook_of_the_contract_is_explained() -> None:
    text = (HERE.parent / "docs" / "writing-a-backbone.md").read_text("utf-8")
    for hook in HOOKS:
        assert re.search(rf"@hookimpl\ndef {hook}\(", text), hook
