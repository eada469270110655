"""Qwen3-TTS training steps against the official script: CPU seconds and peak memory, same batches.

Usage: qwen3_training.py CHECKOUT [--hidden 2048] [--layers 4], CHECKOUT being a clone of
https://github.com/QwenLM/Qwen3-TTS at commit 022e286. Without one it says so and ends.

Each run is a process of its own on one thread, over 16 clips in batches of 2, 4 of them a step, in
bf16; what is loaded before the first step costs no time here, but counts in the peak. The official
script runs as it is, but for three things: sdpa in place of the flash_attention_2 that it insists
on, clips in file order, and its end before the first save. Its objective is the misaligned one;
ours is compared in float32 with one put together from the stock package's modules.
"""

import argparse
import json
import math
import random
import runpy
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import peak, spawn

CLIPS, BATCH, ACCUMULATE, GROUPS, CODES = 16, 2, 4, 16, 2048
KINDS = ("official", "full", "lora")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkout", nargs="?", type=Path)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--runs", default=",".join(KINDS), help="of official, full, lora")
    parser.add_argument("--set", action="append", default=[], help="a recipe setting for ours")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child(given, given.child[0], Path(given.child[1]))))
        return
    script = given.checkout and given.checkout / "finetuning" / "sft_12hz.py"
    if not script or not script.is_file():
        print("skipped: give the path of a clone of github.com/QwenLM/Qwen3-TTS")
        return
    with tempfile.TemporaryDirectory() as folder:
        spawn("build", folder)
        error = spawn("equal", folder)["error"]
        print(f"objective in float32 against one of the package's modules: {error:.1e} relative")
        print(f"{'run':<10}{'CPU s':>8}{'frames/CPU s':>14}{'peak GB':>9}{'speed':>8}{'memory':>8}")
        first = None
        for kind in given.runs.split(","):
            found = spawn(kind, folder)
            first = first or found
            speed, memory = first["cpu"] / found["cpu"], found["peak"] / first["peak"]
            print(
                f"{kind:<10}{found['cpu']:>8.1f}{found['frames'] / found['cpu']:>14.1f}"
                f"{found['peak'] / 1e9:>9.2f}{speed:>7.2f}x{memory:>7.2f}x",
                flush=True,
            )


def child(given: argparse.Namespace, kind: str, folder: Path) -> dict[str, Any]:
    if kind == "build":
        build(folder / "base", given.hidden, given.layers)
        build(folder / "small", 64, 2)
        return write_clips(folder)
    if kind == "equal":
        return {"error": difference(folder)}
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    cpu = official(given.checkout, folder) if kind == "official" else ours(kind, folder, given.set)
    frames = sum(len(row["audio_codes"]) for row in rows)
    return {"cpu": cpu, "peak": peak(), "frames": frames}


def build(folder: Path, hidden: int, layers: int) -> None:
    """A base in bfloat16 of the released architecture, `layers` deep, with random weights."""
    import torch
    from safetensors.torch import save_file

    from sheen_qwen3_tts import miniature, stock

    stock.load()
    from qwen_tts.core.models import Qwen3TTSConfig, Qwen3TTSForConditionalGeneration

    miniature.build(folder)
    values = json.loads((folder / "config.json").read_text())
    values["talker_config"] |= {
        "hidden_size": hidden, "text_hidden_size": hidden, "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers, "head_dim": 128, "num_attention_heads": hidden // 128 or 1,
        "num_key_value_heads": hidden // 256 or 1, "vocab_size": CODES + 1024,
        "text_vocab_size": 151_936 if hidden > 64 else 512,
        "rope_scaling": {
            "interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default",
        },
    }  # fmt: skip
    inner = min(hidden, 1024)
    values["talker_config"]["code_predictor_config"] |= {
        "hidden_size": inner, "intermediate_size": 3 * inner, "head_dim": 128,
        "num_hidden_layers": 5 if hidden > 64 else 1, "num_attention_heads": inner // 64,
        "num_key_value_heads": inner // 128 or 1, "vocab_size": CODES,
    }  # fmt: skip
    old = {name: value for name, value in values["talker_config"].items() if name[:5] == "codec"}
    for name, value in old.items():  # control ids lie behind the audio codes
        if isinstance(value, int):
            values["talker_config"][name] = value - miniature.CODES + CODES
    values["talker_config"]["codec_language_id"] = {}
    values["speaker_encoder_config"] = {"enc_dim": hidden, "sample_rate": 24_000}
    (folder / "config.json").write_text(json.dumps(values))
    torch.set_default_dtype(torch.bfloat16)
    copied = Qwen3TTSConfig(**json.loads(json.dumps(values)))
    model = Qwen3TTSForConditionalGeneration(copied)
    torch.set_default_dtype(torch.float32)
    state = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def write_clips(folder: Path) -> dict[str, Any]:
    """Rows for both: log-normal lengths around 6 s, from 2 to 20 s, random codes, one reference."""
    import numpy as np
    import soundfile
    import torch

    from sheen_qwen3_tts import checkpoint, codec

    chance = random.Random(0)
    wav = folder / "reference.wav"
    soundfile.write(wav, np.random.default_rng(0).normal(0, 0.05, 24_000 * 6), 24_000)
    lines = []
    for number in range(CLIPS):
        seconds = min(20.0, max(2.0, chance.lognormvariate(math.log(6), 0.7)))
        frames = round(12.5 * seconds)
        codes = [[chance.randrange(CODES) for _ in range(GROUPS)] for _ in range(frames)]
        text = "".join(chance.choice("bcdfghjklm") for _ in range(round(3.5 * seconds)))
        lines.append({
            "id": str(number), "text": text, "audio": str(wav), "ref_audio": str(wav),
            "audio_codes": codes, "voice": 0, "duration": frames * 0.08,
        })  # fmt: skip
    (folder / "train.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for base, artifacts in (("base", "artifacts"), ("small", "small-artifacts")):
        width = json.loads((folder / base / "config.json").read_text())["talker_config"]
        (folder / artifacts).mkdir()
        facts = {"sha256": codec.weights(folder / base)}
        (folder / artifacts / codec.FACTS).write_text(json.dumps(facts))
        checkpoint.save_voices({"speaker": torch.randn(width["hidden_size"])}, folder / artifacts)
    return {}


# --- the official script --------------------------------------------------------------------------


class Over(Exception):
    """The first epoch's steps are done."""


def official(checkout: Path, folder: Path) -> float:
    """CPU seconds of its steps."""
    import shutil

    import torch.utils.data
    from accelerate import Accelerator

    from sheen_qwen3_tts import stock

    wrapper, prepare = stock.load().Qwen3TTSModel, Accelerator.prepare
    load, loader, start = wrapper.from_pretrained, torch.utils.data.DataLoader, 0.0

    def timed(*arguments: Any) -> Any:
        nonlocal start
        result = prepare(*arguments)
        start = time.process_time()
        return result

    def over(*_: Any, **__: Any) -> None:
        raise Over

    wrapper.from_pretrained = lambda path, **keys: load(
        path, **{**keys, "attn_implementation": "sdpa"}
    )

    class InOrder(loader):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any, **keys: Any) -> None:
            super().__init__(*arguments, **{**keys, "shuffle": False})

    torch.utils.data.DataLoader = InOrder  # type: ignore[misc]
    Accelerator.prepare, shutil.copytree = timed, over  # type: ignore[assignment]
    sys.path.insert(0, str(checkout / "finetuning"))
    sys.argv = [
        "sft_12hz.py", "--init_model_path", str(folder / "base"), "--output_model_path",
        str(folder / "out"), "--train_jsonl", str(folder / "train.jsonl"), "--batch_size",
        str(BATCH), "--num_epochs", "1",
    ]  # fmt: skip
    try:
        runpy.run_path(str(checkout / "finetuning" / "sft_12hz.py"), run_name="__main__")
    except Over:
        return time.process_time() - start
    raise SystemExit("the official script ended without saving")


# --- ours -----------------------------------------------------------------------------------------


def ours(kind: str, folder: Path, settings: list[str]) -> float:
    """CPU seconds of our steps, by the backbone's own `train` and the host's own `optimize`."""
    from sheen_cli.cli import large_pages

    large_pages()
    import torch

    from sheen_cli import training
    from sheen_cli.backbones import resolve
    from sheen_cli.batching import Micro
    from sheen_cli.optimization import adamw, ordered
    from sheen_cli.rows import Rows

    recipe, backbone = resolve(
        f"qwen3tts-{kind}",
        [f"model.base={folder / 'base'}", "model.preflight=false", "model.named_language=0",
         "model.streaming=0", "model.conditioning.xvector=0", "model.conditioning.icl=0",
         "model.selftest=false", f"train.batch_size={BATCH}", f"train.accumulate={ACCUMULATE}",
         *(["model.lora.rank=16"] if kind == "lora" else []), *settings],
    )  # fmt: skip
    seconds = 0.0

    @dataclass(frozen=True)
    class Measured(training.Run):
        def fit(self, model: Any, save: Any, groups: Any = None) -> None:
            nonlocal seconds
            groups, _ = ordered(model, groups)
            model, optimizer = self.accelerator.prepare(model, adamw(groups, recipe.train))
            start = time.process_time()
            for at in range(0, CLIPS, BATCH * ACCUMULATE):
                window = []
                for first in range(at, at + BATCH * ACCUMULATE, BATCH):
                    numbers = tuple(range(first, first + BATCH))
                    batch = backbone.hook.collate(
                        recipe=recipe, rows=[self.rows[i] for i in numbers], seed=first,
                        artifacts=self.artifacts,
                    )  # fmt: skip
                    window.append(Micro(batch, False, numbers))
                training.optimize(self, model, optimizer, window, recipe.train.learning_rate)
            seconds = time.process_time() - start

    torch.set_num_threads(1)
    run = Measured(
        recipe=recipe, backbone=backbone, folder=folder, artifacts=folder / "artifacts",
        rows=Rows(folder / "train.jsonl"), validation=None,
        accelerator=training.accelerator(recipe.train),
    )  # fmt: skip
    training.seed(recipe)
    backbone.hook.train(recipe=recipe, run=run)
    return seconds


# --- the objective --------------------------------------------------------------------------------


def difference(folder: Path) -> float:
    """Our loss of a padded batch against the reference's of its rows, in float32: relative."""
    import torch

    from sheen_cli.backbones import resolve
    from sheen_qwen3_tts import batches, model, references, stock

    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()][:3]
    wrapper = stock.load().Qwen3TTSModel.from_pretrained(
        str(folder / "small"), dtype=torch.float32, attn_implementation="eager"
    )
    tables = references.load(folder / "small-artifacts")
    (vector,) = tables.voices
    recipe, backbone = resolve("qwen3tts-full", [f"model.base={folder / 'small'}"])
    speech = model.load(folder / "small", {}).eval()
    with torch.no_grad():
        forms = [batches.Form(named=False)] * len(rows)
        batch = batches.collate(speech.base, rows, forms, tables)
        terms = backbone.hook.loss(recipe=recipe, model=speech, batch=batch, trace=False).terms
        found = torch.stack([terms["talker"].sum, terms["subtalker"].sum])
        wanted = sum(reference(wrapper, row, vector) for row in rows)
    return float(((found - wanted) / wanted).abs().max())


def reference(wrapper: Any, row: dict[str, Any], vector: Any) -> Any:
    """The two sums of a row, position by position, out of the stock package's modules alone."""
    import torch
    from torch.nn.functional import cross_entropy

    whole, talker = wrapper.model.config, wrapper.model.talker
    control = whole.talker_config
    (tokens,) = wrapper._tokenize_texts([wrapper._build_assistant_text(row["text"])])

    def text(*ids: int) -> Any:
        return talker.text_projection(talker.get_text_embeddings()(torch.tensor(ids)))

    def sound(*ids: int) -> Any:
        return talker.get_input_embeddings()(torch.tensor(ids))

    role, words = tokens[0, :3].tolist(), tokens[0, 3:-5].tolist()
    pad, codes = whole.tts_pad_token_id, torch.tensor(row["audio_codes"])
    frames = sound(*codes[:, 0].tolist())
    for group, table in enumerate(talker.code_predictor.get_input_embeddings(), 1):
        frames = frames + table(codes[:, group])
    tag = (control.codec_nothink_id, control.codec_think_bos_id, control.codec_think_eos_id)
    said = text(*words, whole.tts_eos_token_id)
    inputs = torch.cat([
        text(*role), text(pad, pad, pad) + sound(*tag), text(pad) + vector,
        text(whole.tts_bos_token_id) + sound(control.codec_pad_id),
        said + sound(control.codec_pad_id), text(pad) + sound(control.codec_bos_id),
        text(pad) + frames,
    ])  # fmt: skip
    hidden = talker.model(inputs_embeds=inputs[None], use_cache=False).last_hidden_state[0]
    due = hidden[-len(codes) - 1 :]
    wanted = torch.cat([codes[:, 0], torch.tensor([control.codec_eos_token_id])])
    scores, _ = talker.forward_sub_talker_finetune(codes, due[:-1])
    return torch.stack([
        cross_entropy(talker.codec_head(due), wanted, reduction="sum"),
        cross_entropy(scores.flatten(0, 1), codes[:, 1:].flatten(), reduction="sum"),
    ])  # fmt: skip


if __name__ == "__main__":
    main()
