"""The demo backbone against its contract: what is trained is what is generated."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY, sheen, write_folder

from sheen_cli import Batch, Recipe, Request, SheenError
from sheen_cli.backbones import Backbone, resolve
from sheen_cli.rows import Rows
from sheen_demo import build
from sheen_demo.generate import generate
from sheen_demo.layout import CODES, END, IGNORE
from sheen_demo.voice import DemoModel


@pytest.fixture
def backbone() -> Backbone:
    return resolve("demo", [])[1]


@pytest.fixture
def recipe() -> Recipe:
    return resolve("demo", TINY)[0]


@pytest.fixture
def model(recipe: Recipe, data: Path) -> DemoModel:
    torch.manual_seed(0)
    return build(recipe, data / "artifacts").eval()


def losses(backbone: Backbone, recipe: Recipe, model: DemoModel, batch: Batch) -> dict[str, float]:
    loss = backbone.hook.loss(recipe=recipe, model=model, batch=batch, trace=False)
    return {name: float(term.sum.detach()) for name, term in loss.terms.items()}


def collate(backbone: Backbone, recipe: Recipe, rows: list[dict], seed: int | None = None) -> Batch:
    return backbone.hook.collate(recipe=recipe, rows=rows, seed=seed, artifacts=Path())


def spoken_row(model: DemoModel, text: str, codes: torch.Tensor) -> dict:
    prompt = model.prompt(Request(text))
    return {"audio_codes": codes.tolist(), "words": prompt.words, "positions": prompt.positions}


TEXTS = ["one two", "four", "three one two"]


def test_teacher_forced_logits_equal_those_of_the_function_that_synth_calls(
    backbone: Backbone, recipe: Recipe, model: DemoModel
) -> None:
    for text, speech in zip(
        TEXTS, generate(model.acoustic, list(map(model.prompt, map(Request, TEXTS)))), strict=True
    ):
        batch = collate(backbone, recipe, [spoken_row(model, text, speech.codes)])
        wanted = batch.inputs.pop("targets")
        logits = model(**batch.inputs)[0]
        due = (wanted[0] != IGNORE) & (wanted[0] != END)
        assert due.sum() == 4 * len(speech.codes) > 0
        torch.testing.assert_close(logits[due], speech.logits[: len(due)][due], rtol=0, atol=1e-5)


def test_the_loss_of_synths_codes_is_the_nll_that_synth_reported(
    backbone: Backbone, recipe: Recipe, model: DemoModel
) -> None:
    with torch.no_grad():  # make END likely, so that sentences end by themselves
        model.acoustic.heads.weight[END] = model.acoustic.heads.weight[:CODES].mean(0) * 8
    requests = [Request(text) for text in TEXTS]
    for request, audio in zip(
        requests,
        backbone.hook.synth(recipe=recipe, model=model, requests=requests, trace=False),
        strict=True,
    ):
        row = spoken_row(model, request.text, torch.from_numpy(audio.codes))
        batch = collate(backbone, recipe, [row])
        assert losses(backbone, recipe, model, batch) == pytest.approx(audio.nll, abs=1e-3)


def test_one_by_one_and_together_sound_the_same(
    backbone: Backbone, recipe: Recipe, model: DemoModel
) -> None:
    requests = [Request(text) for text in TEXTS]
    together = list(backbone.hook.synth(recipe=recipe, model=model, requests=requests, trace=False))
    for request, expected in zip(requests, together, strict=True):
        (alone,) = backbone.hook.synth(recipe=recipe, model=model, requests=[request], trace=False)
        assert (alone.codes == expected.codes).all()
        assert alone.samples.tolist() == pytest.approx(expected.samples.tolist(), abs=1e-5)


def test_the_prompt_of_synth_is_the_prompt_of_training(
    model: DemoModel, rows: Rows
) -> None:  # S1-5
    for row in rows:
        prompt = model.prompt(Request(row["text"]))
        assert prompt.words == row["words"]
        assert prompt.positions == pytest.approx(row["positions"], abs=1e-3)


def test_s0_1_loss_is_on_audio_only_and_keeps_the_end(
    backbone: Backbone, recipe: Recipe, rows: Rows
) -> None:  # and S1-8
    batch = collate(backbone, recipe, [rows[0]])
    frames, words = len(rows[0]["audio_codes"]), len(rows[0]["words"])
    wanted = batch.inputs["targets"][0]
    assert wanted.shape == (frames + 3, 4)  # steps alone: no position of the text is asked for
    assert batch.inputs["mask"].shape[1] == words + frames + 3
    assert wanted[:frames, 0].tolist() == [codes[0] for codes in rows[0]["audio_codes"]]
    assert wanted[frames].tolist()[0] == END
    assert batch.counts == {"coarse": frames + 1, "fine": 3 * frames}
    for book in range(1, 4):
        assert wanted[book : book + frames, book].tolist() == [
            codes[book] for codes in rows[0]["audio_codes"]
        ]


def test_s0_2_padding_changes_no_loss(
    backbone: Backbone, recipe: Recipe, model: DemoModel, rows: Rows
) -> None:
    chosen = sorted(rows, key=lambda row: row["duration"])
    chosen = [chosen[0], chosen[-1], chosen[len(chosen) // 2]]
    assert len({len(row["audio_codes"]) for row in chosen}) == 3
    assert len({len(row["words"]) for row in chosen}) > 1
    together = collate(backbone, recipe, chosen)
    alone = [collate(backbone, recipe, [row]) for row in chosen]
    for name in ("coarse", "fine"):
        expected = sum(losses(backbone, recipe, model, batch)[name] for batch in alone)
        assert losses(backbone, recipe, model, together)[name] == pytest.approx(expected, rel=1e-5)
        assert together.counts[name] == sum(batch.counts[name] for batch in alone)


def test_collate_is_pure_and_picklable(backbone: Backbone, recipe: Recipe, rows: Rows) -> None:
    chosen = [rows[0], rows[1]]
    before = json.dumps(chosen)
    first, second = (collate(backbone, recipe, chosen, seed=5) for _ in range(2))
    assert json.dumps(chosen) == before
    again = pickle.loads(pickle.dumps(first))
    for name, tensor in first.inputs.items():
        assert torch.equal(tensor, second.inputs[name]) and torch.equal(tensor, again.inputs[name])
    other = collate(backbone, recipe, chosen, seed=6)
    assert not torch.equal(other.inputs["steps"], first.inputs["steps"])
    assert torch.equal(
        other.inputs["targets"], first.inputs["targets"]
    )  # faults are in the history


def test_validation_sees_no_faults(backbone: Backbone, recipe: Recipe, rows: Rows) -> None:
    clean = collate(backbone, recipe, [rows[0]]).inputs["steps"][0]
    frames = len(rows[0]["audio_codes"])
    assert clean[:frames, 0].tolist() == [codes[0] for codes in rows[0]["audio_codes"]]


def test_every_parameter_gets_a_gradient(
    backbone: Backbone, recipe: Recipe, model: DemoModel, rows: Rows
) -> None:
    loss = backbone.hook.loss(
        recipe=recipe,
        model=model.train(),
        batch=collate(backbone, recipe, list(rows)),
        trace=False,
    )
    torch.stack([term.sum for term in loss.terms.values()]).sum().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_a_limit_of_length_is_kept_and_reported(
    backbone: Backbone, recipe: Recipe, model: DemoModel
) -> None:  # S0-15
    requests = [Request("one two three four", max_seconds=0.5), Request("one", max_seconds=0.25)]
    long, short = backbone.hook.synth(recipe=recipe, model=model, requests=requests, trace=False)
    assert len(long.codes) <= 10 and len(short.codes) <= 5
    assert {long.stop, short.stop} == {"length"}


def test_words_are_found_in_any_spelling_and_unknown_ones_are_named(model: DemoModel) -> None:
    assert model.prompt(Request("One, TWO!")).words == model.prompt(Request("one two")).words
    with pytest.raises(SheenError, match=r"'five'.*closed vocabulary.*four one three two"):
        model.prompt(Request("one five"))
    with pytest.raises(SheenError, match="no word"):
        model.prompt(Request(" ... "))


def test_there_is_no_base_model(backbone: Backbone, recipe: Recipe) -> None:
    with pytest.raises(SheenError, match="no pretrained model"):
        backbone.hook.load(recipe=recipe, checkpoint=None)


def test_two_clips_are_learnt_by_heart_and_said_again_in_a_fresh_process(tmp_path: Path) -> None:
    """The loop closed: data, training, checkpoint, another process, the same codes; nothing else
    left to read.
    """
    folder = write_folder(tmp_path / "set", ["three one", "four"])
    data, run = tmp_path / "data", tmp_path / "run"
    settings = [
        "model.hidden=64", "model.layers=2", "model.heads=2", "model.random_codes=0",
        "model.blank_frames=0", "train.max_minutes=null", "train.epochs=150",
        "train.threads=null", "train.batch_size=2", "train.warmup_steps=5",
        "train.learning_rate=4e-3",
    ]  # fmt: skip
    sheen("prepare", "--recipe", "demo", "--dataset", folder, "--out", data, "data.validation=0")
    wanted = {row["text"]: row["audio_codes"] for row in Rows(data / "train.jsonl")}
    sheen("train", "--recipe", "demo", "--data", data, "--out", run, "--max-steps", 150, *settings)
    shutil.rmtree(data)
    shutil.rmtree(folder)
    script = (
        "import json, sys; from pathlib import Path\n"
        "from sheen_cli.synthesis import Voice; from sheen_cli import Request\n"
        "texts = ['three one', 'four']\n"
        "audio = list(Voice(Path(sys.argv[1])).speak([Request(text) for text in texts]))\n"
        "print(json.dumps([[text, a.codes.tolist(), a.stop] for text, a in zip(texts, audio)]))"
    )
    out = subprocess.run(
        [sys.executable, "-c", script, run],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    for text, codes, stop in json.loads(out.stdout):
        assert codes == wanted[text]
        assert stop == "end"
