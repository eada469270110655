"""A codec language model's training step against a plain transformers Trainer: tokens per CPU
second and peak memory, same model, same rows.

Usage: lm_training.py [--layers 4] [--batch 4] [--runs trainer,full,full-kept,lora]

Widths and vocabulary are those of Qwen3-0.6B with 12,290 tokens more, its 28 layers are fewer. One
optimizer step over 16 rows of up to 1,024 tokens, targets on codes and the end alone, bf16, each
run in a process of its own on one thread; what is loaded before costs no time here, but counts in
the peak. The Trainer has the settings that are usual for such models: random batches, padding to
the longest, gradient checkpointing, its own loss from all logits. `full` is ours with gradient
checkpointing as well, rows of like length together and the trained weights in two halves
(train.weights=bf16); `full-kept` is that without checkpointing; `lora` trains adapters and the rows
of new tokens. The Trainer's memory grows with --batch, 4 here and 8 in those settings, about 2 GB
for each row.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from processes import peak, spawn

TEXT, NEW, ROWS, LONGEST, IGNORE = 151_936, 12_290, 16, 1024, -100
START, END, CODES = TEXT, TEXT + 1, TEXT + 2
RUNS = ("trainer", "full", "full-kept", "lora")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--runs", default=",".join(RUNS), help=f"of {', '.join(RUNS)}")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child(given, given.child[0], Path(given.child[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        spawn("build", folder)
        error = spawn("equal", folder)["error"]
        print(f"loss in float32 against the model's own: {error:.1e} relative")
        print(f"{'run':<10}{'CPU s':>8}{'tokens/CPU s':>14}{'peak GB':>9}{'loss':>9}"
              f"{'speed':>8}{'memory':>8}")  # fmt: skip
        first = None
        for kind in given.runs.split(","):
            found = spawn(kind, folder)
            first = first or found
            print(
                f"{kind:<10}{found['cpu']:>8.1f}{found['tokens'] / found['cpu']:>14.1f}"
                f"{found['peak'] / 1e9:>9.2f}{found['loss']:>9.4f}"
                f"{first['cpu'] / found['cpu']:>7.2f}x{found['peak'] / first['peak']:>7.2f}x",
                flush=True,
            )


def child(given: argparse.Namespace, kind: str, folder: Path) -> dict[str, Any]:
    if kind not in ("build", "equal", "trainer"):
        from sheen_cli.cli import large_pages

        large_pages()
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    if kind == "build":
        return build(folder, given.layers)
    if kind == "equal":
        return {"error": difference(folder)}
    run = trainer if kind == "trainer" else ours
    cpu, loss = run(kind, folder, given.batch)
    tokens = sum(len(tokens) for tokens, _ in rows())
    return {"cpu": cpu, "loss": loss, "peak": peak(), "tokens": tokens}


def build(folder: Path, layers: int) -> dict[str, Any]:
    """Random weights in bfloat16, as the released ones are stored."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=TEXT + NEW, hidden_size=1024, intermediate_size=3072, num_hidden_layers=layers,
        num_attention_heads=16, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
        rope_theta=1e6, max_position_embeddings=40_960,
    )  # fmt: skip
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "base")
    return {}


def rows() -> list[tuple[np.ndarray, np.ndarray]]:
    """Tokens and targets of clips: log-normal lengths around 6 s, from 2 s to what 1,024 tokens
    hold; 4 tokens of text and 11.7 frames of 7 codes a second.
    """
    chance = np.random.default_rng(0)
    found = []
    while len(found) < ROWS:
        seconds = max(2.0, float(chance.lognormal(math.log(6), 0.7)))
        text = chance.integers(0, TEXT - 400, round(4 * seconds))
        layer = np.tile([0, 1, 1, 2, 2, 2, 2], round(24_000 / 2048 * seconds))
        codes = CODES + 4096 * layer + chance.integers(0, 4096, len(layer))
        tokens = np.concatenate([text, [START], codes, [END]])
        if len(tokens) <= LONGEST:
            targets = np.append(tokens[1:], IGNORE)
            targets[: len(text)] = IGNORE
            found.append((tokens, targets))
    return found


def difference(folder: Path) -> float:
    """Our loss of three padded rows against the model's own from shifted labels: relative."""
    import torch
    from transformers import AutoModelForCausalLM

    from sheen_lm.batches import Laid, padded
    from sheen_lm.model import CodesLM

    some = sorted(rows(), key=lambda row: len(row[0]))[:3]
    lm = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    batch = padded([Laid(*row) for row in some], 0)
    with torch.no_grad():
        total = float(CodesLM(lm)(**batch).total)
        inputs = labelled([{"tokens": tokens} for tokens, _ in some])
        mean = float(lm(**inputs).loss)
    count = int((batch["targets"] != IGNORE).sum())
    return abs(total / count - mean) / mean


def labelled(items: list[dict[str, Any]]) -> dict[str, Any]:
    """As people collate: everything up to the start of audio, and padding, is masked."""
    import torch

    width = max(len(item["tokens"]) for item in items)
    ids = torch.zeros(len(items), width, dtype=torch.long)
    labels, mask = torch.full_like(ids, IGNORE), torch.zeros_like(ids)
    for row, item in enumerate(items):
        tokens = torch.as_tensor(item["tokens"])
        start = int((tokens == START).nonzero()) + 1
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        labels[row, start : len(tokens)] = tokens[start:]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def trainer(kind: str, folder: Path, batch: int) -> tuple[float, float]:
    """CPU seconds of its step, and the loss."""
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):
        start = end = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            Clock.start = time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            Clock.end = time.process_time()

    settings = TrainingArguments(
        output_dir=str(folder / "out"), per_device_train_batch_size=batch,
        gradient_accumulation_steps=ROWS // batch, num_train_epochs=1, learning_rate=2e-5,
        bf16=True, gradient_checkpointing=True, use_cpu=True, save_strategy="no", logging_steps=1,
        report_to=[], remove_unused_columns=False, seed=0, dataloader_pin_memory=False,
    )  # fmt: skip
    run = Trainer(
        AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32), settings,
        data_collator=labelled, train_dataset=[{"tokens": tokens} for tokens, _ in rows()],
        callbacks=[Clock()],
    )  # fmt: skip
    loss = float(run.train().training_loss)
    return Clock.end - Clock.start, loss


def ours(kind: str, folder: Path, batch: int) -> tuple[float, float]:
    """CPU seconds of our step, and the loss."""
    import torch
    from transformers import AutoModelForCausalLM

    from sheen_cli.batching import cut, windows
    from sheen_cli.optimization import adamw
    from sheen_cli.recipe import Train
    from sheen_lm import adapters
    from sheen_lm.batches import Laid, padded
    from sheen_lm.model import CodesLM, checkpoint

    lora = kind == "lora"
    dtype = torch.bfloat16 if lora else torch.float32
    model = CodesLM(AutoModelForCausalLM.from_pretrained(folder / "base", dtype=dtype))
    if lora:
        new = range(TEXT, TEXT + NEW)
        adapters.attach(model, 16, 32.0, 0.0, adapters.QUERY_VALUE, new)
    if kind != "full-kept":
        checkpoint(model)
    train = Train(epochs=1, precision="bf16", weights="fp32" if lora else "bf16")
    optimizer = adamw(adapters.groups(model), train)
    laid = [Laid(*row) for row in rows()]
    lengths = np.array([len(one.tokens) for one in laid], np.float32)
    (window,) = windows(lengths, ROWS, train.bucket, 0, 0)
    count = sum(int((one.targets != IGNORE).sum()) for one in laid)
    model.train()
    start, loss = time.process_time(), 0.0
    for numbers in cut(window, batch):
        inputs = padded([laid[number] for number in numbers], 0)
        with torch.autocast("cpu", torch.bfloat16):
            total = model(**inputs).total / count
        total.backward()
        loss += float(total)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    return time.process_time() - start, loss


if __name__ == "__main__":
    main()
