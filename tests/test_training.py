"""The loop: order, exact accumulation, validation, checkpoints, resume."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import TINY, sheen
from safetensors.torch import load_file

from sheen_cli import Batch, Recipe, Run, SheenError, checkpoints, jobs, threads
from sheen_cli.backbones import HOOKS, Backbone, resolve
from sheen_cli.batching import MicroBatches, Place, cut, windows
from sheen_cli.errors import NotFinite
from sheen_cli.files import digests
from sheen_cli.objective import total_loss, window_counts
from sheen_cli.optimization import (
    Group,
    Progress,
    adamw,
    default_groups,
    learning_rate,
    ordered,
)
from sheen_cli.recipe import Train
from sheen_cli.rows import Rows
from sheen_cli.training import optimize, validate
from sheen_demo import build
from sheen_demo.voice import DemoModel


def setup(data: Path, folder: Path, *settings: str) -> tuple[Run, DemoModel]:
    recipe, backbone = resolve("demo", [*TINY, *settings])
    torch.manual_seed(1)
    model = build(recipe, data / "artifacts")
    rows, validation = Rows(data / "train.jsonl"), Rows(data / "validation.jsonl")
    accelerator = Accelerator(cpu=True)
    run = Run(recipe, backbone, folder, data / "artifacts", rows, validation, None, accelerator)
    return run, model


def counts(batches: list[Batch], run: Run) -> dict[str, float]:
    return window_counts(batches, run.backbone.spec.terms, run.accelerator)


# --- order ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count, size, bucket", [(1, 4, 3), (7, 4, 1), (103, 8, 5), (64, 8, 50)])
def test_an_epoch_has_every_row_once(count: int, size: int, bucket: int) -> None:
    seconds = np.random.default_rng(0).uniform(1, 9, count).astype(np.float32)
    for epoch in range(3):
        found = windows(seconds, size, bucket, seed=1, epoch=epoch)
        assert sorted(row for window in found for row in window) == list(range(count))
        assert sum(len(window) < size for window in found) <= 1


def test_s0_25_order_is_a_function_of_seed_and_epoch() -> None:
    seconds = np.arange(50, dtype=np.float32)
    first = windows(seconds, 4, 3, seed=1, epoch=0)
    assert windows(seconds.copy(), 4, 3, seed=1, epoch=0) == first
    assert windows(seconds, 4, 3, seed=1, epoch=1) != first
    assert windows(seconds, 4, 3, seed=2, epoch=0) != first


def test_buckets_save_padding() -> None:
    seconds = np.random.default_rng(0).lognormal(1, 0.6, 2000).astype(np.float32)

    def padding(bucket: int) -> float:
        found = windows(seconds, 16, bucket, seed=1, epoch=0)
        padded = sum(len(window) * max(seconds[window]) for window in found)
        return float(1 - seconds.sum() / padded)

    assert padding(1) > 0.4
    assert padding(50) < 0.1


def test_windows_do_not_depend_on_how_they_are_cut(data: Path, tmp_path: Path) -> None:
    """2 x 4, one batch of 8 and two ranks of 4 take the same rows in a step."""
    taken = []
    for size, accumulate, ranks in ((2, 4, 1), (8, 1, 1), (4, 1, 2)):
        run, _ = setup(data, tmp_path, f"train.batch_size={size}", f"train.accumulate={accumulate}")
        micro = MicroBatches(run.backbone, run.recipe, run.rows, run.artifacts, ranks)
        parts = [micro[Place(1, 0, part)].rows for part in range(8 // size)]
        taken.append([row for part in parts for row in part])
    assert taken[0] == taken[1] == taken[2]


# --- exact accumulation --------------------------------------------------------------------------


def gradients(data: Path, tmp_path: Path, size: int, accumulate: int) -> dict[str, torch.Tensor]:
    """The gradient of one step over the same 8 rows of very different lengths."""
    run, model = setup(
        data, tmp_path, f"train.batch_size={size}", f"train.accumulate={accumulate}",
        "model.random_codes=0", "model.blank_frames=0", "train.bucket=1", "model.fine_weight=0.3",
        "train.clip_norm=null",
    )  # fmt: skip
    micro = MicroBatches(run.backbone, run.recipe, run.rows, run.artifacts, 1)
    batches = [micro[Place(0, 0, part)] for part in range(accumulate)]
    lengths = [len(run.rows[row]["audio_codes"]) for batch in batches for row in batch.rows]
    assert max(lengths) > 1.5 * min(lengths)
    captured: dict[str, torch.Tensor] = {}
    optimizer = adamw([Group(list(model.parameters()))], run.recipe.train)
    # the gradients as they are when the optimizer is about to use them
    optimizer.register_step_pre_hook(
        lambda *_: captured.update(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        )
    )
    captured["loss"] = torch.tensor(optimize(run, model, optimizer, batches, 0.1)["loss"])
    return captured


def test_accumulation_equals_one_batch_with_two_terms_and_unequal_lengths(
    data: Path, tmp_path: Path
) -> None:
    whole = gradients(data, tmp_path, 8, 1)
    assert len(whole) > 10
    for size, accumulate in ((4, 2), (2, 4), (1, 8)):
        parts = gradients(data, tmp_path, size, accumulate)
        for name, expected in whole.items():
            torch.testing.assert_close(parts[name], expected, rtol=1e-4, atol=1e-6)


def test_mean_of_batch_means_would_have_been_wrong(data: Path, tmp_path: Path) -> None:
    """The test above can fail: the usual way, the mean of the micro-batches' means, gives another
    gradient.
    """
    run, model = setup(data, tmp_path, "train.batch_size=1", "train.accumulate=8", "train.bucket=1")
    micro = MicroBatches(run.backbone, run.recipe, run.rows, run.artifacts, 1)
    batches = [micro[Place(0, 0, part)].batch for part in range(8)]
    losses = [
        run.backbone.hook.loss(recipe=run.recipe, model=model, batch=b, trace=False)
        for b in batches
    ]
    own = [total_loss(loss, counts([b], run)) for loss, b in zip(losses, batches, strict=True)]
    exact = sum(float(total_loss(loss, counts(batches, run)).detach()) for loss in losses)
    assert abs(float(torch.stack(own).mean().detach()) - exact) > 1e-3


SCRIPT = """
import json, sys
from pathlib import Path
import torch
from sheen_cli import jobs
from sheen_cli.backbones import resolve
recipe, backbone = resolve("demo", sys.argv[3:])
jobs.train(recipe, backbone, Path(sys.argv[1]), Path(sys.argv[2]), resume=False)
"""


def test_two_ranks_equal_one(data: Path, warm: Path, tmp_path: Path) -> None:
    """Two real processes under gloo: the same losses, validation and weights as one process with
    the batch of both.
    """
    script = tmp_path / "rank.py"
    script.write_text(SCRIPT)
    common = [
        *TINY,
        "train.accumulate=2",
        "model.random_codes=0",
        "model.blank_frames=0",
    ]
    one, two = tmp_path / "one", tmp_path / "two"
    recipe, backbone = resolve("demo", [*common, "train.batch_size=6"])
    jobs.train(recipe, backbone, data, one, resume=False)
    launcher = [
        warm,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--master-port=0",
    ]
    launcher += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    out = subprocess.run(
        [*launcher, script, data, two, *common, "train.batch_size=3"],
        capture_output=True,
        text=True,
        env={**os.environ, "ACCELERATE_USE_CPU": "true"},
    )
    assert out.returncode == 0, out.stderr[-3000:]
    alone, both = metrics(one), metrics(two)
    assert [line["step"] for line in both] == [line["step"] for line in alone]
    for line, expected in zip(both, alone, strict=True):
        for key in set(expected) - {"seconds"}:
            assert line[key] == pytest.approx(expected[key], rel=2e-4), key
    weights = load_file(one / "last" / "model.safetensors")
    for name, tensor in load_file(two / "last" / "model.safetensors").items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-3, atol=2e-4)


# --- validation, checkpoints, log ----------------------------------------------------------------


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def timeless(lines: list[dict]) -> list[dict]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def train(data: Path, out: Path, *settings: str, resume: bool = False) -> None:
    recipe, backbone = resolve("demo", [*TINY, "train.batch_size=4", *settings])
    jobs.train(recipe, backbone, data, out, resume)


def test_validation_weighs_every_target_the_same(data: Path, tmp_path: Path) -> None:
    run, model = setup(data, tmp_path, "train.batch_size=2")
    scores = validate(run, model)
    batch = run.backbone.hook.collate(
        recipe=run.recipe, rows=list(run.validation), seed=None, artifacts=run.artifacts
    )
    whole = run.backbone.hook.loss(recipe=run.recipe, model=model.eval(), batch=batch, trace=False)
    expected = float(total_loss(whole, counts([batch], run)).detach())
    assert scores["loss"] == pytest.approx(expected, rel=1e-5)
    assert scores["book_0"] == pytest.approx(scores["loss_coarse"], rel=1e-6)


def test_a_run_leaves_best_last_and_a_log(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(
        data,
        out,
        "train.max_steps=7",
        "train.validate_every=2",
        "train.save_every=3",
        "train.keep=1",
    )
    lines = metrics(out)
    losses = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    assert set(losses) == {2, 4, 6, 7}
    best = min(losses, key=lambda step: losses[step])
    assert (out / "best").readlink() == Path(f"checkpoint-{best}")
    assert (out / "last").readlink() == Path("checkpoint-7")
    assert [line["step"] for line in lines if "learning_rate" in line] == [1, 2, 3, 4, 5, 6, 7]
    kept = {path.name for path in out.glob("checkpoint-*")}
    assert kept == {f"checkpoint-{best}", "checkpoint-7"}
    names = {path.name for path in (out / "last").iterdir()}
    assert names == {"model.safetensors", "recipe.yaml", "artifacts", "training", "manifest.json"}
    assert not list(out.glob(".*"))  # no temporary files, no lock


def test_s4_29_the_end_of_each_epoch_stays(data: Path, tmp_path: Path) -> None:
    """Also where a run is stopped in between, and where a later one is lost with its checkpoint."""
    out = tmp_path / "run"
    wanted = ["train.save_epochs=true", "train.keep=1", "train.validate_every=1000"]
    train(data, out, "train.epochs=2", "train.max_steps=null", *wanted)
    steps = metrics(out)[-1]["step"]
    each = steps // 2
    links = {path.name: path.readlink().name for path in checkpoints.epochs(out)}
    assert links == {"epoch-1": f"checkpoint-{each}", "epoch-2": f"checkpoint-{steps}"}
    assert {path.name for path in out.glob("checkpoint-*")} >= set(links.values())
    sheen(
        "synth", out / "epoch-1", "--text", "one", "-o", tmp_path / "x.wav", "--max-seconds", "0.2"
    )

    (out / f"checkpoint-{steps}" / "manifest.json").unlink()  # damaged: passed over
    (out / "epoch-1").unlink()  # a crash before it was made
    train(data, out, "train.epochs=null", f"train.max_steps={each + 1}", *wanted, resume=True)
    links = {path.name: path.readlink().name for path in checkpoints.epochs(out)}
    assert links == {"epoch-1": f"checkpoint-{each}"}


def test_without_state_a_checkpoint_speaks_and_is_not_gone_on_from(
    data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train(data, out, "train.save_state=false")
    names = {path.name for path in (out / "last").iterdir()}
    assert names == {"model.safetensors", "recipe.yaml", "artifacts", "manifest.json"}
    assert checkpoints.check(out / "last") is None
    sheen("synth", out, "--text", "one", "-o", tmp_path / "x.wav", "--max-seconds", "0.2")
    with pytest.raises(SheenError, match=r"checkpoint-3 holds the model alone .* nothing to"):
        train(data, out, "train.max_steps=4", resume=True)


def test_without_validation_best_is_last(folder: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    settings = ["data.validation=0", f"data.dataset={folder}"]
    sheen("prepare", "--recipe", "demo", "--out", data, *settings)
    assert not (data / "validation.jsonl").exists()
    recipe, backbone = resolve("demo", [*TINY, *settings])
    jobs.train(recipe, backbone, data, out, resume=False)
    assert (out / "best").readlink() == (out / "last").readlink() == Path("checkpoint-3")


def test_s0_12_a_resumed_run_keeps_its_threads(data: Path, tmp_path: Path) -> None:
    """Stop points, workers and repeated resumes are the figure `exact` of tests/reliability.py."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    torch.set_num_threads(1)
    train(data, whole, "train.max_steps=4", "train.schedule=constant")
    train(data, parts, "train.max_steps=2", "train.schedule=constant")
    torch.set_num_threads(2)  # as on a machine with more cores
    train(data, parts, "train.max_steps=4", "train.schedule=constant", resume=True)
    assert torch.get_num_threads() == 1
    weights = [run / "last" / "model.safetensors" for run in (whole, parts)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    progress = json.loads((parts / "last" / "training" / "progress.json").read_text())
    assert progress["threads"] == 1


def test_resume_takes_back_what_the_log_is_ahead(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(data, out, "train.max_steps=3")
    with (out / "metrics.jsonl").open("a") as stream:
        stream.write(
            '{"step": 9, "loss": 1}\n{"step": 4, "lo'
        )  # steps that no checkpoint has, and a cut line
    train(data, out, "train.max_steps=4", resume=True)
    assert [line["step"] for line in metrics(out) if "learning_rate" in line] == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["model.safetensors", "recipe.yaml", "manifest.json"])
def test_a_named_checkpoint_in_which_one_bit_flipped_is_an_error(
    data: Path, tmp_path: Path, name: str
) -> None:
    """Resuming from the newest is the figure `damaged` of tests/reliability.py."""
    train(data, tmp_path / "run")
    path = tmp_path / "run" / "checkpoint-3" / name
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    for named in (path.parent, tmp_path / "run"):
        with pytest.raises(
            SheenError, match=rf"not a usable checkpoint: {name} (has other|is dam)"
        ):
            checkpoints.resolve(named)


def test_files_that_people_leave_in_a_checkpoint_are_let_be(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "run")
    (tmp_path / "run" / "checkpoint-3" / "notes.txt").write_text("the good one")
    assert checkpoints.check(tmp_path / "run" / "checkpoint-3") is None


def test_a_best_checkpoint_that_is_damaged_is_given_up_aloud(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    train(data, out, "train.validate_every=1", "train.max_steps=2", "train.learning_rate=1e-30")
    train(data, out, "train.max_steps=3", "train.learning_rate=1e-30", resume=True)
    best = (out / "best").resolve()
    assert best.name != "checkpoint-3"  # at such a rate the first is as good as any
    (best / "model.safetensors").write_bytes(b"")
    train(data, out, "train.max_steps=4", "train.learning_rate=1e-30", resume=True)
    assert f"{out / best.name}, the best so far, is lost" in capsys.readouterr().err
    assert checkpoints.resolve(out).name in ("checkpoint-3", "checkpoint-4")


def test_best_and_last_survive_a_damaged_newest_checkpoint(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(data, out, "train.max_steps=4", "train.save_every=2", "train.validate_every=2")
    (out / "checkpoint-4" / "manifest.json").unlink()
    (out / ".checkpoint-9.part").mkdir()  # as a crash would leave it
    settings = ["train.max_steps=3", "train.save_every=2", "train.validate_every=2", "train.keep=1"]
    train(data, out, *settings, resume=True)
    assert (out / "last").readlink() == Path("checkpoint-3")
    assert (out / "best" / "manifest.json").is_file()
    assert not (out / "checkpoint-4").exists() and not list(out.glob(".*"))


def test_a_run_that_ended_before_its_links_were_made_gets_them(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(data, out)
    (out / "best").unlink()
    (out / "last").unlink()
    train(data, out, resume=True)
    assert (out / "best").is_dir() and (out / "last").is_dir()


def reseal(folder: Path) -> None:
    """Let a changed checkpoint look as if it had been written so."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {k: v for k, v in digests(folder).items() if k != "manifest.json"}
    manifest["seal"] = checkpoints.seal({k: v for k, v in manifest.items() if k != "seal"})
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_another_number_of_processes_does_not_resume(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(data, out)
    folder = (out / "last").resolve()
    progress = json.loads((folder / "training" / "progress.json").read_text())
    (folder / "training" / "progress.json").write_text(json.dumps({**progress, "ranks": 2}))
    reseal(folder)
    with pytest.raises(SheenError, match="written by 2 processes, this is 1"):
        train(data, out, "train.max_steps=5", resume=True)


def test_the_record_names_the_data_that_was_trained_on(
    data: Path, folder: Path, tmp_path: Path
) -> None:
    train(data, tmp_path / "run")
    for path in (tmp_path / "run", tmp_path / "run" / "best"):
        assert yaml.safe_load((path / "recipe.yaml").read_text())["data"]["dataset"] == str(folder)


def test_s0_22_bf16_trains_in_bf16_and_fp16_needs_a_gpu(data: Path, tmp_path: Path) -> None:
    said = {}
    for precision, code in {"fp32": 0, "bf16": 0, "fp16": 2}.items():
        AcceleratorState._reset_state(reset_partial_state=True)  # as in a process of its own
        out = ["--out", tmp_path / precision, *TINY, f"train.precision={precision}"]
        said[precision] = sheen("train", "--recipe", "demo", "--data", data, *out, code=code).stderr
    full, half = (metrics(tmp_path / name)[0]["loss"] for name in ("fp32", "bf16"))
    assert half != full and half == pytest.approx(full, rel=0.02)
    weights = load_file(tmp_path / "bf16" / "last" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}  # masters stay whole
    assert "needs a GPU" in said["fp16"]


def test_processes_do_not_share_a_file_position_with_their_parent(data: Path) -> None:
    script = (
        "import multiprocessing, sys; from pathlib import Path; from sheen_cli.rows import Rows\n"
        "rows = Rows(Path(sys.argv[1])); ids = [row['id'] for row in rows]\n"
        "def read(i): return rows[i]['id']\n"
        "with multiprocessing.get_context('fork').Pool(4) as pool:\n"
        "    assert pool.map(read, list(range(len(rows))) * 400, chunksize=1) == ids * 400\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", script, data / "train.jsonl"]
    subprocess.run(command, check=True)


def test_runs_do_not_mix(data: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(data, out)
    with pytest.raises(SheenError, match="already holds a run; add --resume"):
        train(data, out)
    with pytest.raises(
        SheenError, match=r"begun with other settings \(train.learning_rate: 0.002 -> 0.001\)"
    ):
        train(data, out, "train.learning_rate=0.001", resume=True)
    other = tmp_path / "other"
    sheen(
        "prepare",
        "--recipe",
        "demo",
        "--dataset",
        folder,
        "--out",
        other,
        "data.seed=7",
        "data.validation=0.3",
    )
    with pytest.raises(SheenError, match="trained on other data"):
        train(other, out, resume=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(SheenError, match="not empty and holds no run"):
        train(data, tmp_path / "full")


def test_resume_with_nothing_to_resume_starts_afresh(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(data, tmp_path / "new", resume=True)
    assert "nothing to resume" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_and_names_rows(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(NotFinite, match=r"norm nan in a batch with the rows 0\d\d-"):
        train(data, out, "train.learning_rate=1e30", "train.clip_norm=null", "train.max_steps=20")
    assert not list(out.glob("checkpoint-*"))


def test_an_epoch_count_ends_the_run(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(data, out, "train.max_steps=null", "train.epochs=2", "train.batch_size=5")
    rows = len(Rows(data / "train.jsonl"))
    assert metrics(out)[-1]["step"] == 2 * -(-rows // 5)


def test_a_clock_ends_the_run(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(data, out, "train.max_steps=null", "train.max_minutes=0.02", "train.threads=auto")
    last = metrics(out)[-1]
    assert last["seconds"] >= 1.2
    assert [line["learning_rate"] for line in metrics(out) if "learning_rate" in line][-1] < 0.002


def test_s0_24_schedules() -> None:
    def rates(**settings: object) -> list[float]:
        recipe = Train(max_steps=100, learning_rate=1.0, **settings)
        return [learning_rate(recipe, 100, Progress(step=step)) for step in range(100)]

    cosine = rates(schedule="cosine", warmup_steps=10, floor=0.1)
    assert cosine[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert cosine[50] == pytest.approx(0.55)
    assert cosine[99] == pytest.approx(0.1, abs=1e-3)
    assert rates(schedule="linear", warmup_steps=0)[25] == pytest.approx(0.75)
    assert set(rates(schedule="constant", warmup_steps=0)) == {1.0}
    assert rates(schedule="constant", warmup_steps=5000)[10] == 1.0  # at most a tenth of the steps


def test_threads_stay_within_what_the_environment_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert threads.cores() == 1
    for value in ("", "0", "many", "1000"):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert threads.cores() == len(os.sched_getaffinity(0))


def test_weight_decay_is_for_matrices_alone() -> None:
    model = torch.nn.ModuleDict(
        {
            "table": torch.nn.Embedding(3, 2),
            "dense": torch.nn.Linear(2, 2),
            "norm": torch.nn.LayerNorm(2),
        }
    )
    decayed, spared = default_groups(model)
    assert [parameter is model["dense"].weight for parameter in decayed.parameters] == [True]
    assert len(spared.parameters) == 4 and spared.weight_decay == 0.0


def test_groups_keep_their_own_rates() -> None:
    slow, fast = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = adamw([Group([slow], 1e-5), Group([fast])], Train(max_steps=1, learning_rate=1e-3))
    assert [group["factor"] for group in optimizer.param_groups] == pytest.approx([0.01, 1.0])


def test_the_optimizer_knows_parameters_by_name(data: Path, tmp_path: Path) -> None:
    """A plugin may collect them in a set, whose order differs from one process to the next."""
    model = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2) for name in "abc"})
    groups = [Group(list(model.parameters())[::-1])]
    (group,), names = ordered(model, groups)
    assert names == [[name for name, _ in model.named_parameters()]]
    assert [id(p) for p in group.parameters] == [id(p) for p in model.parameters()]
    out = tmp_path / "run"
    train(data, out)
    path = (out / "last" / "training" / "parameters.json").resolve()
    saved = json.loads(path.read_text())
    path.write_text(json.dumps([saved[0][::-1], *saved[1:]]))
    reseal(path.parent.parent)
    with pytest.raises(SheenError, match="trained with other parameters"):
        train(data, out, "train.max_steps=5", resume=True)


def test_a_run_keeps_the_artifacts_that_it_began_with(data: Path, tmp_path: Path) -> None:
    copy, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(data, copy)
    recipe, backbone = resolve("demo", [*TINY, "train.save_every=1"])
    real = backbone.hook.train

    def train_while_it_vanishes(recipe: Recipe, run: Run) -> None:
        (copy / "artifacts" / "pace.json").write_text("{}")
        real(recipe=recipe, run=run)

    hooks = SimpleNamespace(**{name: getattr(backbone.hook, name) for name in HOOKS})
    hooks.train = train_while_it_vanishes
    jobs.train(recipe, replace(backbone, hook=hooks), copy, out, resume=False)
    for folder in out.glob("checkpoint-*"):
        assert digests(folder / "artifacts") == digests(data / "artifacts")
    with pytest.raises(SheenError, match=r"artifacts/pace.json was changed since it was prepared"):
        train(copy, tmp_path / "other")


def test_nothing_trainable_is_an_error() -> None:
    with pytest.raises(SheenError, match="no trainable parameter"):
        adamw([Group([])], Train(max_steps=1))


def test_cut_keeps_every_row() -> None:
    assert cut([3, 1, 2], 2) == [(3, 1), (2,)]


def test_backbone_goes_to_worker_processes_by_name(data: Path) -> None:
    import pickle

    backbone: Backbone = resolve("demo", [])[1]
    assert pickle.loads(pickle.dumps(backbone)).name == "demo"
    recipe: Recipe = resolve("demo", TINY)[0]
    rows = pickle.loads(pickle.dumps(Rows(data / "train.jsonl")))
    data = MicroBatches(backbone, recipe, rows, Path("artifacts"), 1)
    assert pickle.loads(pickle.dumps(data))[Place(0, 0, 0)].rows
