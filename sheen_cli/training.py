"""The training loop, once for all: exact accumulation, validation, checkpoints, resume."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sheen_cli import checkpoints, console
from sheen_cli.backbones import Backbone
from sheen_cli.batching import Micro, MicroBatches, Places, seed_of, validation_batches
from sheen_cli.errors import SheenError
from sheen_cli.files import write_text
from sheen_cli.recipe import Recipe, Train
from sheen_cli.rows import Rows
from sheen_cli.types import Batch, Loss

Save = Callable[[nn.Module, Path], None]


@dataclass(frozen=True)
class Group:
    """Parameters with a learning rate and weight decay of their own; None means the recipe's."""

    parameters: Sequence[nn.Parameter]
    learning_rate: float | None = None
    weight_decay: float | None = None


@dataclass
class Progress:
    """Where a training stands; saved with every checkpoint."""

    step: int = 0  # optimizer steps done
    epoch: int = 0
    window: int = 0  # of the epoch, the next to be done
    seconds: float = 0.0  # of training, over all resumes
    threads: int = 0
    best: float | None = None
    best_step: int | None = None


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


def accelerator(train: Train) -> Accelerator:
    return Accelerator(mixed_precision="no" if train.precision == "fp32" else train.precision)


def default_groups(model: nn.Module) -> list[Group]:
    """All trainable parameters; weight decay for matrices alone, not for norms, biases and
    embeddings.
    """
    tables = {
        id(p)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for p in module.parameters()
    }
    trainable = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trainable if p.ndim >= 2 and id(p) not in tables]
    chosen = {id(p) for p in decayed}
    return [Group(decayed), Group([p for p in trainable if id(p) not in chosen], weight_decay=0.0)]


def fit(run: Run, model: nn.Module, save: Save, groups: Sequence[Group]) -> None:
    train, parallel = run.recipe.train, run.accelerator
    progress = restore(run) if run.resume else Progress()
    choose_threads(run, model, progress)
    optimizer = adamw(groups, train)
    if run.resume:
        optimizer.load_state_dict(
            torch.load(run.resume / checkpoints.STATE / "optimizer.pt", weights_only=True)
        )
    model, optimizer = parallel.prepare(model, optimizer)
    data = MicroBatches(run.backbone, run.recipe, run.rows, parallel.num_processes)
    total = total_steps(train, data)
    started = time.monotonic() - progress.seconds
    with console.progress("training", total) as tick:
        for window in stream(data, progress, parallel):
            if finished(train, total, progress):
                break
            seed_torch(seed_of(train.seed, progress.step, parallel.process_index))
            rate = learning_rate(train, total, progress)
            record = optimize(run, model, optimizer, window, rate)
            advance(progress, len(data.windows(progress.epoch)))
            progress.seconds = agreed(time.monotonic() - started, parallel)
            if progress.step % run.recipe.log.every == 0:
                log(run, progress, {**record, "learning_rate": rate})
            tick(progress.step, f"loss {record['loss']:.3f}")
            validate_and_save(
                run, model, optimizer, save, progress, last=finished(train, total, progress)
            )
    parallel.wait_for_everyone()


def validate_and_save(
    run: Run, model: nn.Module, optimizer: Any, save: Save, progress: Progress, last: bool
) -> None:
    """What is due after this step; a better validation loss, too, is a reason to save."""
    train = run.recipe.train
    due = last or progress.step % train.save_every == 0
    if run.validation is not None and (last or progress.step % train.validate_every == 0):
        scores = validate(run, model)
        log(run, progress, {f"validation_{name}": value for name, value in scores.items()})
        if run.accelerator.is_main_process:
            console.say(f"step {progress.step}: validation loss {scores['loss']:.4f}")
        if progress.best is None or scores["loss"] < progress.best:
            progress.best, progress.best_step, due = scores["loss"], progress.step, True
    if not due or not run.accelerator.is_main_process:
        return

    def fill(folder: Path) -> None:
        save(run.accelerator.unwrap_model(model), folder)
        state = folder / checkpoints.STATE
        state.mkdir()
        torch.save(optimizer.state_dict(), state / "optimizer.pt")
        write_text(state / "progress.json", json.dumps(asdict(progress)))

    checkpoints.write(run.folder / f"checkpoint-{progress.step}", run.recipe, run.artifacts, fill)
    best = None if progress.best_step is None else run.folder / f"checkpoint-{progress.best_step}"
    checkpoints.rotate(run.folder, train.keep, best)


def optimize(
    run: Run, model: nn.Module, optimizer: Any, window: list[Micro], rate: float
) -> dict[str, float]:
    """One optimizer step over a window of micro-batches; every target of the window, on every
    rank, weighs the same.
    """
    parallel = run.accelerator
    for group in optimizer.param_groups:
        group["lr"] = group["factor"] * rate
    counts = window_counts([micro.batch for micro in window if not micro.ghost], run)
    sums: dict[str, tuple[float, float]] = {}
    model.train()
    for turn, micro in enumerate(window):
        last = turn == len(window) - 1
        with parallel.no_sync(model) if not last else parallel.autocast():
            with parallel.autocast():
                loss = run.backbone.hook.loss(
                    recipe=run.recipe, model=model, batch=on(micro.batch, parallel.device)
                )
            # DDP averages gradients over ranks, the objective is a sum over them
            objective = total_loss(loss, counts) * (0.0 if micro.ghost else parallel.num_processes)
            parallel.backward(objective)
        add(sums, loss, 0 if micro.ghost else 1)
    record = averages(sums, counts, run)
    if not math.isfinite(record["loss"]):
        names = ", ".join(run.rows[i]["id"] for micro in window for i in micro.rows[:4])
        raise SheenError(
            f"the loss is {record['loss']} in a batch with the rows {names} ...; lower "
            f"train.learning_rate"
        )
    if run.recipe.train.clip_norm is not None:
        norm = parallel.clip_grad_norm_(model.parameters(), run.recipe.train.clip_norm)
        record["gradient_norm"] = float(norm)
    optimizer.step()
    optimizer.zero_grad()
    return record


@torch.no_grad()
def validate(run: Run, model: nn.Module) -> dict[str, float]:
    """The loss over all validation rows by the same hook, every target weighing the same; on all
    ranks together.
    """
    assert run.validation is not None
    parallel, rows = run.accelerator, run.validation
    batches = validation_batches(rows, run.recipe.train.batch_size)
    sums: dict[str, tuple[float, float]] = {}
    own = []
    mine = batches[parallel.process_index :: parallel.num_processes]
    model.eval()
    for numbers in (
        mine or batches[:1]
    ):  # a rank without rows counts nothing, but must know the names
        batch = run.backbone.hook.collate(
            recipe=run.recipe, rows=[rows[i] for i in numbers], seed=None
        )
        with parallel.autocast():
            loss = run.backbone.hook.loss(
                recipe=run.recipe,
                model=parallel.unwrap_model(model),
                batch=on(batch, parallel.device),
            )
        add(sums, loss, 1 if mine else 0)
        own += [batch] * bool(mine)
    return averages(sums, window_counts(own, run), run)


def total_loss(loss: Loss, counts: dict[str, float]) -> Tensor:
    """The micro-batch's share of the window's objective: scale * sum / count, over the terms."""
    terms = [term.scale * term.sum / max(counts[name], 1.0) for name, term in loss.terms.items()]
    return torch.stack(terms).sum()


def window_counts(batches: list[Batch], run: Run) -> dict[str, float]:
    """Targets of each term over the batches and all ranks."""
    names = run.backbone.spec.terms
    own = torch.tensor(
        [sum(batch.counts[name] for batch in batches) for name in names], dtype=torch.float64
    )
    return dict(zip(names, reduced(own, run), strict=True))


def add(sums: dict[str, tuple[float, float]], loss: Loss, weight: int) -> None:
    """Collect a batch's sums for the log: each term's with its scale, each part's with its
    count.
    """
    for name, term in loss.terms.items():
        total, _ = sums.get(name, (0.0, 0.0))
        sums[name] = (total + weight * float(term.sum.detach()), term.scale)
    for name, (value, count) in loss.parts.items():
        total, seen = sums.get(f"part {name}", (0.0, 0.0))
        sums[f"part {name}"] = (total + weight * float(value), seen + weight * count)


def averages(
    sums: dict[str, tuple[float, float]], counts: dict[str, float], run: Run
) -> dict[str, float]:
    """loss, loss_TERM and the parts, averaged over all ranks."""
    names = list(sums)
    own = torch.tensor(
        [[sums[name][0] for name in names], [sums[name][1] for name in names]], dtype=torch.float64
    )
    values = torch.tensor(reduced(own, run), dtype=torch.float64).view(2, -1)
    record = {"loss": 0.0}
    for name, value, weight in zip(names, values[0].tolist(), values[1].tolist(), strict=True):
        if name.startswith("part "):
            record[name.removeprefix("part ")] = value / max(weight, 1.0)
        else:
            record[f"loss_{name}"] = value / max(counts[name], 1.0)
            record["loss"] += sums[name][1] * record[f"loss_{name}"]
    return record


def reduced(own: Tensor, run: Run) -> list[float]:
    """Element-wise sum over the ranks, flattened."""
    parallel = run.accelerator
    if parallel.num_processes > 1:
        own = parallel.reduce(own.to(parallel.device), "sum")
    return [float(value) for value in own.flatten().tolist()]


def on(batch: Batch, device: torch.device) -> Batch:
    return Batch({name: tensor.to(device) for name, tensor in batch.inputs.items()}, batch.counts)


def stream(data: MicroBatches, progress: Progress, parallel: Accelerator) -> Iterator[list[Micro]]:
    """This rank's micro-batches from the saved position on, a window at a time."""
    train = data.recipe.train
    places = Places(
        data, progress.epoch, progress.window, parallel.process_index, parallel.num_processes
    )
    loader = iter(DataLoader(data, batch_size=None, sampler=places, num_workers=train.workers))
    while True:
        yield list(islice(loader, train.accumulate))


def advance(progress: Progress, windows: int) -> None:
    progress.step += 1
    progress.window += 1
    if progress.window == windows:
        progress.epoch, progress.window = progress.epoch + 1, 0


def total_steps(train: Train, data: MicroBatches) -> int | None:
    """Optimizer steps to be done, None where only the clock decides."""
    by_epochs = None if train.epochs is None else train.epochs * len(data.windows(0))
    known = [steps for steps in (train.max_steps, by_epochs) if steps is not None]
    return min(known) if known else None


def finished(train: Train, total: int | None, progress: Progress) -> bool:
    late = train.max_minutes is not None and progress.seconds >= train.max_minutes * 60
    return late or (total is not None and progress.step >= total)


def learning_rate(train: Train, total: int | None, progress: Progress) -> float:
    """Linear warm-up, then the schedule over the share of steps or of time that is used up,
    whichever is larger.
    """
    warmup = train.warmup_steps if total is None else min(train.warmup_steps, total // 10)
    if progress.step < warmup:
        return train.learning_rate * (progress.step + 1) / warmup
    used = 0.0 if total is None else progress.step / total
    if train.max_minutes is not None:
        used = max(used, progress.seconds / (train.max_minutes * 60))
    used = min(used, 1.0)
    shape = {"constant": 1.0, "linear": 1 - used, "cosine": (1 + math.cos(math.pi * used)) / 2}[
        train.schedule
    ]
    return train.learning_rate * (train.floor + (1 - train.floor) * shape)


def adamw(groups: Sequence[Group], train: Train) -> torch.optim.AdamW:
    """AdamW over the groups; each keeps its learning rate as a factor of the recipe's, which the
    schedule moves.
    """
    settings = [
        {
            "params": list(group.parameters),
            "factor": (group.learning_rate or train.learning_rate) / train.learning_rate,
            "weight_decay": train.weight_decay
            if group.weight_decay is None
            else group.weight_decay,
        }
        for group in groups
        if len(group.parameters)
    ]
    if not settings:
        raise SheenError("the model has no trainable parameter; nothing would be learnt")
    return torch.optim.AdamW(
        settings, lr=train.learning_rate, betas=(train.beta1, train.beta2), fused=True
    )


def seed_torch(seed: int) -> None:
    """Every step seeds from its number, so that a resumed run draws what an uninterrupted one
    draws.
    """
    torch.manual_seed(seed)


def restore(run: Run) -> Progress:
    """The progress saved in the checkpoint; later lines of the log are taken back."""
    assert run.resume is not None
    state = json.loads((run.resume / checkpoints.STATE / "progress.json").read_text("utf-8"))
    progress = Progress(**state)
    path = run.folder / "metrics.jsonl"
    if run.accelerator.is_main_process and path.is_file():
        kept = [
            line for line in path.read_text("utf-8").splitlines() if step_of(line) <= progress.step
        ]
        write_text(path, "".join(f"{line}\n" for line in kept))
    return progress


def step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return math.inf  # a line that a crash cut off


def log(run: Run, progress: Progress, record: dict[str, float]) -> None:
    """One line of metrics.jsonl."""
    if run.accelerator.is_main_process:
        line = {
            "step": progress.step,
            "epoch": progress.epoch,
            **record,
            "seconds": round(progress.seconds, 2),
        }
        with (run.folder / "metrics.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


def agreed(seconds: float, parallel: Accelerator) -> float:
    """The slowest rank's clock, so that all ranks stop at the same step."""
    if parallel.num_processes == 1:
        return seconds
    clock = torch.tensor([seconds], device=parallel.device)
    return float(parallel.gather(clock).max())


def choose_threads(run: Run, model: nn.Module, progress: Progress) -> None:
    """Set the CPU threads: the recipe's number, the resumed run's, or the fastest of a few tried
    on a real batch.
    """
    wanted = run.recipe.train.threads
    if run.accelerator.device.type != "cpu" or wanted is None:
        return
    if wanted == "auto":
        wanted = progress.threads or fastest_threads(run, model)
        if run.accelerator.is_main_process:
            console.say(f"training on {wanted} CPU thread{'s'[: wanted > 1]}")
    torch.set_num_threads(wanted)
    progress.threads = wanted


def fastest_threads(run: Run, model: nn.Module) -> int:
    """Of 1, 2, 4 ... CPU threads, the number with the shortest forward and backward pass on the
    first batches.
    """
    data = MicroBatches(run.backbone, run.recipe, run.rows, run.accelerator.num_processes)
    places = islice(
        Places(data, 0, 0, run.accelerator.process_index, run.accelerator.num_processes), 3
    )
    batches = [data[place].batch for place in places]
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    tried: dict[int, float] = {}
    for threads in sorted({cores, *(2**n for n in range(8) if 2**n < cores)}):
        torch.set_num_threads(threads)
        times = []
        for batch in batches:
            start = time.perf_counter()
            loss = run.backbone.hook.loss(recipe=run.recipe, model=model, batch=batch)
            torch.autograd.backward(
                total_loss(loss, {name: float(count) for name, count in batch.counts.items()})
            )
            times.append(time.perf_counter() - start)
        tried[threads] = min(times[1:] or times)  # the first one warms up
    model.zero_grad()
    return min(tried, key=lambda threads: tried[threads])
