"""Recipes: every shipped one is right, every mistake is said at once, every key is read."""

import ast
from pathlib import Path

import pytest
import yaml
from conftest import sheen

import sheen_cli
from sheen_cli import SheenError
from sheen_cli.backbones import resolve
from sheen_cli.recipe import Data, Log, Recipe, Synth, Train, dump, override, shipped

ROOT = Path(__file__).parent.parent


def test_every_recipe_file_is_shipped_and_valid() -> None:
    files = sorted(path.stem for path in (ROOT / "recipes").rglob("*.yaml"))
    assert files and [recipe.name for recipe in shipped()] == files
    for recipe in shipped():
        resolved, backbone = resolve(recipe.name, [])
        assert resolved.backbone == backbone.name
        header = recipe.path.read_text("utf-8").splitlines()
        assert recipe.about and "Hardware:" in header[1] and "easured" in header[1]


def test_a_dumped_recipe_reads_back_the_same(tmp_path: Path) -> None:
    recipe, _ = resolve("demo", ["train.max_steps=7", "data.columns={text: Satz}"])
    (tmp_path / "mine.yaml").write_text(dump(recipe), "utf-8")
    assert resolve(str(tmp_path / "mine.yaml"), [])[0] == recipe


def test_command_line_beats_file_beats_default() -> None:
    recipe, _ = resolve("demo", [])
    assert recipe.train.batch_size == 16 and Train(max_steps=1).batch_size == 4
    recipe, _ = resolve(
        "demo", ["train.batch_size=3", "train.batch_size=5", "train.learning_rate=1e-4"]
    )
    assert recipe.train.batch_size == 5 and recipe.train.learning_rate == 1e-4


def test_all_errors_at_once_with_path_reason_and_value() -> None:
    mistakes = ["train.max_stepz=3", "train.floor=7", "model.hiden=3", "trian.seed=1"]
    mistakes += ["train.schedule=step", "data.max_seconds=soon"]
    result = sheen("recipes", "show", "demo", *mistakes, code=2)
    text = result.output
    assert "has 6 errors" in text
    assert "train.max_stepz: unknown key; did you mean 'max_steps'?" in text
    assert "model.hiden: unknown key; did you mean 'hidden'?" in text
    assert "trian: unknown key; did you mean 'train'?" in text
    assert "train.floor: Input should be less than or equal to 1 (given: 7)" in text
    assert (
        "train.schedule: Input should be 'cosine', 'linear' or 'constant' (given: 'step')" in text
    )
    assert "data.max_seconds" in text and "(given: 'soon')" in text


@pytest.mark.parametrize("setting", ["train.max_steps", "=3", "train..seed=1", ".seed=1"])
def test_a_setting_of_another_form_is_refused(setting: str) -> None:
    with pytest.raises(SheenError, match=r"is not section\.key=value"):
        override({}, [setting])


@pytest.mark.parametrize("value", ["-1", "0", ".inf", ".nan", "many"])
def test_a_number_out_of_range_is_refused(value: str) -> None:
    with pytest.raises(SheenError, match=r"train\.learning_rate"):
        resolve("demo", [f"train.learning_rate={value}"])


def test_a_training_without_an_end_is_refused() -> None:
    with pytest.raises(
        SheenError, match="nothing ends the training: set max_steps, epochs or max_minutes"
    ):
        resolve("demo", ["train.max_minutes=null"])


def test_weights_in_two_halves_compute_in_bf16() -> None:
    with pytest.raises(SheenError, match="set precision=bf16, or weights=fp32"):
        resolve("demo", ["train.weights=bf16"])
    resolve("demo", ["train.weights=bf16", "train.precision=bf16"])


def test_unknown_recipes_and_files() -> None:
    assert (
        "no recipe named 'dmo'; did you mean 'demo'?"
        in sheen("recipes", "show", "dmo", code=2).output
    )
    assert (
        "no recipe file nowhere/x.yaml" in sheen("recipes", "show", "nowhere/x.yaml", code=2).output
    )


@pytest.mark.parametrize("text", ["a: [", "- 1", "train: {}", "backbone: 3"])
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(SheenError, match=r"x\.yaml"):
        resolve(str(tmp_path / "x.yaml"), [])


def test_unknown_backbone_lists_the_installed_ones(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("backbone: demoo\n")
    with pytest.raises(SheenError, match="no backbone named 'demoo'; did you mean 'demo'"):
        resolve(str(tmp_path / "x.yaml"), [])


def test_every_key_is_read_by_something() -> None:
    """An attribute `.section.key` or `.key` of each name occurs in the code outside recipe.py."""
    places = [*Path(sheen_cli.__file__).parent.rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]
    read = {
        node.attr
        for path in places
        if path.name != "recipe.py"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute)
    }
    options = resolve("demo", [])[1].spec.options
    for section in (Recipe, Data, Train, Synth, Log, options):
        assert set(section.model_fields) <= read, set(section.model_fields) - read


def test_recipes_from_the_command_line() -> None:
    assert yaml.safe_load(sheen("recipes", "show", "demo").stdout)["backbone"] == "demo"
    shown = yaml.safe_load(sheen("recipes", "show", "demo", "train.seed=9", "--json").stdout)
    assert shown["train"]["seed"] == 9
    assert "demo" in sheen("recipes", "list").stdout
    assert yaml.safe_load(sheen("recipes", "list", "--json").stdout)[0]["name"] == "demo"
