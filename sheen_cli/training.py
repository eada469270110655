"""The training loop, once for all: exact accumulation, validation, checkpoints, resume."""

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import nn
from torch.utils.data import DataLoader

from sheen_cli import checkpoints, console, mirror, samples, threads, tracking
from sheen_cli.backbones import Backbone
from sheen_cli.batching import Micro, MicroBatches, Place, Places, seed_of, validation_batches
from sheen_cli.errors import NotFinite, SheenError
from sheen_cli.files import replacing, write_text
from sheen_cli.objective import Sums, add, averages, total_loss, window_counts
from sheen_cli.optimization import (
    Group,
    Progress,
    adamw,
    default_groups,
    finished,
    learning_rate,
    ordered,
    total_steps,
)
from sheen_cli.recipe import Recipe, Train
from sheen_cli.rows import Rows
from sheen_cli.types import Batch, Loss

Save = Callable[[nn.Module, Path], None]
LOG = "metrics.jsonl"
PARAMETERS = "parameters.json"  # names, in the optimizer's order


@dataclass(frozen=True)
class Run:
    """What the host gives to a backbone's `train`: it loads or builds a model and calls `fit`."""

    recipe: Recipe[Any]
    backbone: Backbone
    folder: Path
    artifacts: Path
    rows: Rows
    validation: Rows | None
    resume: Path | None = None  # the checkpoint to load instead of the base model
    accelerator: Accelerator = field(default_factory=lambda: Accelerator(mixed_precision="no"))

    def fit(self, model: nn.Module, save: Save, groups: Sequence[Group] | None = None) -> None:
        """Train `model` by the recipe. `save(model, folder)` writes what `load` needs to give the
        same model back.
        """
        fit(self, model, save, groups if groups is not None else default_groups(model))

    def say(self, text: str) -> None:
        """A line of progress; of several processes the first one says it."""
        console.say(text)

    def warn(self, text: str) -> None:
        """Tell the user something; of several processes the first one does."""
        console.warn(text)


def seed(recipe: Recipe[Any]) -> None:
    """Before a backbone's `train`, so that what it builds is the same each time."""
    random.seed(recipe.train.seed)
    np.random.seed(recipe.train.seed)
    torch.manual_seed(recipe.train.seed)


def accelerator(train: Train) -> Accelerator:
    """The devices and the precision. Raises SheenError for what this trainer cannot do."""
    precision = "no" if train.precision == "fp32" else train.precision
    # the first process saves, tests and speaks alone, while the others wait for its next sum
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=2))
    parallel = Accelerator(mixed_precision=precision, kwargs_handlers=[patience])
    if train.precision == "fp16" and parallel.device.type == "cpu":
        raise SheenError("train.precision=fp16 needs a GPU; on a CPU use fp32 or bf16")
    if parallel.distributed_type not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        raise SheenError(f"{parallel.distributed_type} is not supported; launch plain processes")
    return parallel


def fit(run: Run, model: nn.Module, save: Save, groups: Sequence[Group]) -> None:
    train, parallel = run.recipe.train, run.accelerator
    progress = restore(run) if run.resume else Progress(ranks=parallel.num_processes)
    set_threads(run, model, progress)
    groups, names = ordered(model, groups)
    optimizer = adamw(groups, train)
    if run.resume:
        take_up(optimizer, names, run.resume / checkpoints.STATE)
    model, optimizer = parallel.prepare(model, optimizer)
    if run.resume and parallel.scaler is not None:
        scaler = torch.load(run.resume / checkpoints.STATE / "scaler.pt", weights_only=True)
        parallel.scaler.load_state_dict(scaler)
    data = micro_batches(run)
    total = total_steps(train, len(data.windows(0)))
    if finished(train, total, progress) and parallel.is_main_process:
        console.say(f"nothing to do: the run stands at step {progress.step}, at or past its end")
    started = time.monotonic() - progress.seconds
    with copied(run, progress), console.progress("training", total) as tick:
        for window in stream(data, progress, parallel):
            if finished(train, total, progress):
                break
            # a seed of its own for every step, so that a resumed run draws what this one would
            torch.manual_seed(seed_of(train.seed, progress.step, parallel.process_index))
            rate = learning_rate(train, total, progress)
            record = optimize(run, model, optimizer, window, rate)
            advance(progress, len(data.windows(progress.epoch)))
            progress.seconds = agreed(time.monotonic() - started, parallel)
            if progress.step % run.recipe.log.every == 0:
                log(run, progress, {**record, "learning_rate": rate})
            tick(progress.step, f"loss {record['loss']:.3f}")
            last = finished(train, total, progress)
            validate_and_save(run, model, optimizer, names, save, progress, last)
            if last or progress.step % train.validate_every == 0:
                samples.speak(run, parallel.unwrap_model(model), progress.step)
    parallel.wait_for_everyone()


def micro_batches(run: Run) -> MicroBatches:
    ranks = run.accelerator.num_processes
    return MicroBatches(run.backbone, run.recipe, run.rows, run.artifacts, ranks)


def copied(run: Run, progress: Progress) -> AbstractContextManager[None]:
    """While it lasts, the run is copied to W&B, where that is wanted."""
    if not (run.recipe.log.wandb and run.accelerator.is_main_process):
        return nullcontext()
    return mirror.mirrored(run.folder, run.recipe.log, progress.step)


def take_up(optimizer: torch.optim.Optimizer, names: list[list[str]], state: Path) -> None:
    """Go on with a saved optimizer. Raises SheenError where it was another model's: torch maps by
    position, checks no shape, and would write past the end.
    """
    if json.loads((state / PARAMETERS).read_text("utf-8")) != names:
        raise SheenError(
            f"{state.parent} was trained with other parameters than the backbone trains now; "
            f"start a new run"
        )
    optimizer.load_state_dict(torch.load(state / "optimizer.pt", weights_only=True))


def validate_and_save(
    run: Run,
    model: nn.Module,
    optimizer: Any,
    names: list[list[str]],
    save: Save,
    progress: Progress,
    last: bool,
) -> None:
    """What is due after this step; a better validation loss, too, is a reason to save."""
    train, parallel = run.recipe.train, run.accelerator
    due = last or progress.step % train.save_every == 0 or ended(run, progress) is not None
    if run.validation is not None and (last or progress.step % train.validate_every == 0):
        scores = validate(run, model)
        if not math.isfinite(scores["loss"]):
            raise NotFinite(
                f"the validation loss is {scores['loss']} after step {progress.step}; lower "
                f"train.learning_rate"
            )
        log(run, progress, {f"validation_{name}": value for name, value in scores.items()})
        if parallel.is_main_process:
            console.say(f"step {progress.step}: validation loss {scores['loss']:.4f}")
        if progress.best is None or scores["loss"] < progress.best:
            progress.best, progress.best_step, due = scores["loss"], progress.step, True
    if not due or not parallel.is_main_process:
        return

    def fill(folder: Path) -> None:
        save(parallel.unwrap_model(model), folder)
        if not train.save_state:
            return
        state = folder / checkpoints.STATE
        state.mkdir()
        dump(optimizer.state_dict(), state / "optimizer.pt")
        write_text(state / PARAMETERS, json.dumps(names))
        if parallel.scaler is not None:
            dump(parallel.scaler.state_dict(), state / "scaler.pt")
        write_text(state / "progress.json", json.dumps(asdict(progress)))

    # a checkpoint takes the log's lines so far for granted
    tracking.settle(run.folder / LOG)
    checkpoints.write(run.folder / f"checkpoint-{progress.step}", run.recipe, run.artifacts, fill)
    best = best_folder(run, progress)
    checkpoints.rotate(run.folder, train.keep, best, ended(run, progress))


def ended(run: Run, progress: Progress) -> int | None:
    """The epoch that this step has ended, if such checkpoints are to stay."""
    return progress.epoch if run.recipe.train.save_epochs and progress.window == 0 else None


def dump(value: Any, path: Path) -> None:
    """torch.save through a stream of ours: by itself it forgets why a write failed."""
    with replacing(path) as stream:
        torch.save(value, stream)


def optimize(
    run: Run, model: nn.Module, optimizer: Any, window: list[Micro], rate: float
) -> dict[str, float]:
    """One optimizer step over a window of micro-batches; every target of the window, on every
    rank, weighs the same.
    """
    parallel = run.accelerator
    for group in optimizer.param_groups:
        group["lr"] = group["factor"] * rate
    counted = [micro.batch for micro in window if not micro.ghost]
    counts = window_counts(counted, run.backbone.spec.terms, parallel)
    sums: Sums = {}
    model.train()
    for turn, micro in enumerate(window):
        last = turn == len(window) - 1
        with nullcontext() if last else parallel.no_sync(model):
            loss = batch_loss(run, model, micro.batch)
            # DDP averages gradients over ranks, the objective is a sum over them
            objective = total_loss(loss, counts) * (0.0 if micro.ghost else parallel.num_processes)
            parallel.backward(objective)
        add(sums, loss, 0 if micro.ghost else 1)
    record = averages(sums, counts, parallel)
    limit = run.recipe.train.clip_norm
    norm = float(parallel.clip_grad_norm_(model.parameters(), math.inf if limit is None else limit))
    # with fp16 a step may overflow: its scaler leaves it out and goes on with a smaller scale
    if not math.isfinite(record["loss"]) or (not math.isfinite(norm) and parallel.scaler is None):
        names = ", ".join(run.rows[i]["id"] for micro in window for i in micro.rows[:4])
        raise NotFinite(
            f"the loss is {record['loss']} and its gradient's norm {norm} in a batch with the rows "
            f"{names} ...; lower train.learning_rate"
        )
    optimizer.step()
    optimizer.zero_grad()
    return {**record, "gradient_norm": norm} if math.isfinite(norm) else record


@torch.no_grad()
def validate(run: Run, model: nn.Module) -> dict[str, float]:
    """The loss over all validation rows by the same hook, every target weighing the same; on all
    ranks together.
    """
    assert run.validation is not None
    parallel, rows = run.accelerator, run.validation
    batches = validation_batches(rows, run.recipe.train.batch_size)
    mine = batches[parallel.process_index :: parallel.num_processes]
    counted: list[Batch] = []
    sums: Sums = {}
    model.eval()
    # a rank without rows counts nothing, but must know the names of what is summed
    for numbers in mine or batches[:1]:
        batch = run.backbone.hook.collate(
            recipe=run.recipe,
            rows=[rows[i] for i in numbers],
            seed=None,
            artifacts=run.artifacts,
        )
        add(sums, batch_loss(run, parallel.unwrap_model(model), batch), 1 if mine else 0)
        counted += [batch] * bool(mine)
    counts = window_counts(counted, run.backbone.spec.terms, parallel)
    return averages(sums, counts, parallel)


def batch_loss(run: Run, model: nn.Module, batch: Batch) -> Loss:
    """The backbone's loss of a batch, moved to the model's device, in the recipe's precision."""
    device = run.accelerator.device
    inputs = {name: tensor.to(device) for name, tensor in batch.inputs.items()}
    with run.accelerator.autocast():
        loss: Loss = run.backbone.hook.loss(
            recipe=run.recipe, model=model, batch=Batch(inputs, batch.counts), trace=False
        )
    return loss


def stream(data: MicroBatches, progress: Progress, parallel: Accelerator) -> Iterator[list[Micro]]:
    """This rank's micro-batches from the saved position on, a window at a time."""
    train = data.recipe.train
    places = Places(
        data, progress.epoch, progress.window, parallel.process_index, parallel.num_processes
    )
    loader = iter(DataLoader(data, batch_size=None, sampler=places, num_workers=train.workers))
    while True:
        yield [good(micro) for micro in islice(loader, train.accumulate)]


def good(micro: Micro | SheenError) -> Micro:
    """Raise here what a reading process met; its own traceback would bury the message."""
    if isinstance(micro, SheenError):
        raise micro
    return micro


def advance(progress: Progress, windows: int) -> None:
    progress.step += 1
    progress.window += 1
    if progress.window == windows:
        progress.epoch, progress.window = progress.epoch + 1, 0


def restore(run: Run) -> Progress:
    """The progress saved in the checkpoint; later lines of the log are taken back."""
    assert run.resume is not None
    state = json.loads((run.resume / checkpoints.STATE / "progress.json").read_text("utf-8"))
    progress = Progress(**state)
    ranks = run.accelerator.num_processes
    if progress.ranks != ranks:
        raise SheenError(
            f"{run.resume} was written by {progress.ranks} processes, this is {ranks}: rows would "
            f"repeat or be left out; resume with {progress.ranks}"
        )
    best = best_folder(run, progress)
    if best is not None and (problem := checkpoints.check(best)):
        console.warn(f"{best}, the best so far, is lost: {problem}")
        best = progress.best = progress.best_step = None
    if run.accelerator.is_main_process:
        tracking.take_back(run.folder / LOG, progress.step)
        checkpoints.rewind(run.folder, run.resume, best)
        checkpoints.rotate(run.folder, run.recipe.train.keep, best, ended(run, progress))
    return progress


def best_folder(run: Run, progress: Progress) -> Path | None:
    return None if progress.best_step is None else run.folder / f"checkpoint-{progress.best_step}"


def log(run: Run, progress: Progress, record: dict[str, float]) -> None:
    if run.accelerator.is_main_process:
        line = {"step": progress.step, "epoch": progress.epoch, **record}
        tracking.append(run.folder / LOG, {**line, "seconds": round(progress.seconds, 2)})


def agreed(seconds: float, parallel: Accelerator) -> float:
    """The slowest rank's clock, so that all ranks stop at the same step."""
    if parallel.num_processes == 1:
        return seconds
    clock = torch.tensor([seconds], device=parallel.device)
    return float(parallel.gather(clock).max())


def set_threads(run: Run, model: nn.Module, progress: Progress) -> None:
    """Use the CPU threads that the recipe asks for, those that there are where it does not say; a
    resumed run keeps its own, for equal sums.
    """
    wanted, parallel = run.recipe.train.threads, run.accelerator
    if parallel.device.type != "cpu":
        return
    if wanted is None:
        wanted = progress.threads or torch.get_num_threads()
    if wanted == "auto":
        data = micro_batches(run)
        batch = good(data[Place(0, 0, parallel.process_index)]).batch
        counts = {name: float(count) for name, count in batch.counts.items()}

        def probe() -> None:
            torch.autograd.backward(total_loss(batch_loss(run, model, batch), counts))

        share = max(1, threads.cores() // parallel.num_processes)  # ranks must not probe at once
        wanted = progress.threads or (
            threads.fastest(probe) if parallel.num_processes == 1 else share
        )
        model.zero_grad()
        if parallel.is_main_process:
            console.say(f"training on {wanted} CPU thread{'s'[: wanted > 1]}")
    torch.set_num_threads(wanted)
    progress.threads = wanted
