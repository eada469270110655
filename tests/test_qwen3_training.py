"""How Qwen3-TTS is trained: what, in which precision, on which frames, at which rate; and what is
refused before the first step.
"""

import csv
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from accelerate.state import AcceleratorState
from conftest import sheen
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from sheen_cli import Request, SheenError, training
from sheen_cli.babble import speech
from sheen_cli.backbones import resolve
from sheen_cli.batching import Micro
from sheen_cli.optimization import adamw
from sheen_cli.rows import Rows
from sheen_lm import attention
from sheen_qwen3_tts import (
    adapted,
    adapters,
    base,
    batches,
    checkpoint,
    inner,
    lighter,
    miniature,
    model,
    preflight,
    references,
    stock,
)
from sheen_qwen3_tts.layout import IGNORE, NONE

TEXTS = ("one two", "three four five", "six", "seven eight", "nine ten one", "two three")
KINDS = {
    "full": ["model.lora=null"],
    "frozen": ["model.lora=null", "model.freeze=[model.text_embedding.*, code_predictor.*]"],
    "lora": ["model.lora.rank=4"],
    "lora, mlp": ["model.lora.rank=4", "model.lora.mlp=true"],
    "lora, sub-talker": ["model.lora.rank=4", "model.lora.subtalker=true"],
    "lora, all": ["model.lora.rank=4", "model.lora.mlp=true", "model.lora.subtalker=true"],
    "lora alone": ["model.lora.rank=4", "model.lora.projection=false"],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base, stored in bfloat16 as the released ones are, and rows of two voices."""
    home = tmp_path_factory.mktemp("training")
    miniature.build(home / "base")
    state = load_file(home / "base" / "model.safetensors")
    half = {name: value.to(torch.bfloat16) for name, value in state.items()}
    save_file(half, home / "base" / "model.safetensors", {"format": "pt"})
    (home / "set").mkdir()
    with (home / "set" / "metadata.csv").open("w", newline="") as stream:
        table = csv.writer(stream, delimiter="|")
        table.writerow(["file_name", "text", "speaker", "language"])
        for number, text in enumerate(TEXTS):
            soundfile.write(home / "set" / f"{number}.wav", speech(text, 24_000), 24_000)
            table.writerow([f"{number}.wav", text, ("Anna", "Bo")[number % 2], "en"])
    sheen("prepare", "--recipe", "qwen3tts-lora", "--dataset", home / "set", "--out", home / "data",
          f"model.base={home / 'base'}", "data.validation=0")  # fmt: skip
    return home


@dataclass(frozen=True)
class Caught(training.Run):
    """A run whose `fit` keeps what it is given, so that single steps can be looked at."""

    given: dict[str, Any] = field(default_factory=dict)

    def fit(self, model: Any, save: Any, groups: Any = None) -> None:
        self.given.update(model=model, groups=groups)


def caught(home: Path, *settings: str, precision: str = "fp32") -> Caught:
    AcceleratorState._reset_state(reset_partial_state=True)
    recipe, backbone = resolve(
        "qwen3tts-lora",
        [f"model.base={home / 'base'}", f"train.precision={precision}", "train.batch_size=3",
         "model.lora.dropout=0", *settings],
    )  # fmt: skip
    run = Caught(
        recipe=recipe, backbone=backbone, folder=home, artifacts=home / "data" / "artifacts",
        rows=Rows(home / "data" / "train.jsonl"), validation=None,
        accelerator=training.accelerator(recipe.train),
    )  # fmt: skip
    training.seed(recipe)
    backbone.hook.train(recipe=recipe, run=run)
    return run


def window(run: Caught, seed: int | None = 0) -> list[Micro]:
    rows = [run.rows[i] for i in range(3)]
    batch = run.backbone.hook.collate(
        recipe=run.recipe, rows=rows, seed=seed, artifacts=run.artifacts
    )
    return [Micro(batch, False, (0, 1, 2))]


def gradients(run: Caught) -> dict[str, Tensor]:
    """Of everything that is trained, after one backward pass over three rows."""
    speech_model = run.given["model"].train()
    (micro,) = window(run)
    torch.manual_seed(0)
    with run.accelerator.autocast():
        loss = run.backbone.hook.loss(
            recipe=run.recipe, model=speech_model, batch=micro.batch, trace=False
        )
        sum(term.scale * term.sum for term in loss.terms.values()).backward()
    return {
        name: p.grad for name, p in speech_model.talker.named_parameters() if p.grad is not None
    }


# --- what is trained ------------------------------------------------------------------------------


def named(kind: str, name: str) -> bool:
    """Whether the recipe of a kind says that a parameter of the talker is trained."""
    if not kind.startswith("lora"):
        left_out = ("model.text_embedding.", *(["code_predictor."] if kind == "frozen" else []))
        return not name.startswith(left_out)
    if name.startswith("text_projection."):
        return kind != "lora alone"
    if ".lora_" not in name:
        return False
    inside = name.startswith("code_predictor.")
    return not inside or kind in ("lora, sub-talker", "lora, all")


@pytest.mark.parametrize("kind", KINDS)
def test_just_what_the_recipe_names_is_reached_by_gradient_and_changes(
    home: Path, kind: str
) -> None:
    run = caught(home, *KINDS[kind])
    speech_model, groups = run.given["model"], run.given["groups"]
    names = {id(p): name for name, p in speech_model.named_parameters()}
    before = {name: p.detach().clone() for name, p in speech_model.named_parameters()}
    optimizer = adamw(groups, run.recipe.train)
    for step in range(3):  # adapters' first halves learn from the second step on
        training.optimize(run, speech_model, optimizer, window(run, step), 1e-3)
    reached = {
        names[id(p)] for p, state in optimizer.state.items() if bool(state["exp_avg_sq"].any())
    }
    changed = {
        name for name, p in speech_model.named_parameters() if not torch.equal(p, before[name])
    }
    wanted = {
        f"talker.{name}" for name, _ in speech_model.talker.named_parameters() if named(kind, name)
    }
    assert reached == changed == wanted
    modules = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in wanted if ".lora_" in name}
    attention, mlp = {f"{x}_proj" for x in "qkvo"}, {f"{x}_proj" for x in ("gate", "up", "down")}
    if kind.startswith("lora"):
        assert modules == (attention | mlp if kind in ("lora, mlp", "lora, all") else attention)
    if kind == "full":
        heads = {name for name in reached if name.startswith("talker.code_predictor.lm_head.")}
        assert len(heads) == 15


def test_each_part_has_its_own_rate_and_vectors_and_tables_do_not_decay(home: Path) -> None:
    rates = ["model.projection_learning_rate=5e-5", "model.subtalker_learning_rate=2e-6"]
    run = caught(home, *KINDS["full"], *rates, "train.learning_rate=1e-5")
    names = {id(p): name for name, p in run.given["model"].talker.named_parameters()}
    for group in adamw(run.given["groups"], run.recipe.train).param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            part = name.partition(".")[0]
            factor = {"text_projection": 5.0, "code_predictor": 0.2}.get(part, 1.0)
            assert group["factor"] == pytest.approx(factor), name
            plain = parameter.ndim < 2 or "embedding" in name
            assert group["weight_decay"] == (0 if plain else run.recipe.train.weight_decay), name


# --- precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full", "frozen", "lora, all"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_what_is_trained_is_float32_and_what_is_frozen_bfloat16_under_bf16(
    home: Path, kind: str, precision: str
) -> None:
    run = caught(home, *KINDS[kind], precision=precision)
    for name, p in run.given["model"].talker.named_parameters():
        half = precision == "bf16" and not named(kind, name)
        assert p.dtype == (torch.bfloat16 if half else torch.float32), name
        assert p.requires_grad == named(kind, name), name
    before = {n: p.detach().clone() for n, p in run.given["model"].talker.named_parameters()}
    optimizer = adamw(run.given["groups"], run.recipe.train)
    for step in range(3):
        training.optimize(run, run.given["model"], optimizer, window(run, step), 1e-5)
    for name, p in run.given["model"].talker.named_parameters():
        if named(kind, name) and p.ndim > 1 and "embedding" not in name:
            moved = float((p != before[name]).float().mean())
            assert moved > 0.9, name  # on bfloat16 weights such steps round to nothing


def test_bf16_gradients_are_those_of_float32_but_for_rounding(home: Path) -> None:
    exact, rounded = (
        gradients(caught(home, *KINDS["full"], precision=each)) for each in ("fp32", "bf16")
    )
    assert set(exact) == set(rounded)
    for name, grad in exact.items():
        likeness = torch.cosine_similarity(grad.flatten(), rounded[name].flatten(), dim=0)
        assert likeness > 0.98, name


@pytest.mark.parametrize("kind", ["full", "full in fp32", "lora"])
def test_a_bf16_run_that_is_resumed_equals_one_that_was_not(
    home: Path, tmp_path: Path, kind: str
) -> None:
    recipe, _, wide = kind.partition(" in ")
    train = ["train", "--recipe", f"qwen3tts-{recipe}", "--data", home / "data",
             f"model.base={home / 'base'}", "train.precision=bf16", "train.batch_size=2",
             *([f"train.weights={wide}"] if wide else []),
             "train.schedule=constant", "train.accumulate=2", "model.gradient_checkpointing=true",
             "model.subtalker_frames=0.5", "model.preflight=false",
             "model.selftest=false"]  # fmt: skip
    sheen(*train, "--out", tmp_path / "once", "--max-steps", "4")
    sheen(*train, "--out", tmp_path / "twice", "--max-steps", "2")
    sheen(*train, "--out", tmp_path / "twice", "--max-steps", "4", "--resume")
    file = checkpoint.ADAPTER if kind == "lora" else "model.safetensors"
    once, twice = (load_file(tmp_path / run / "last" / file) for run in ("once", "twice"))
    assert set(once) == set(twice)
    for name, value in once.items():
        assert torch.equal(value, twice[name]), name
        halved = kind == "full" and value.ndim >= 2
        stays = "speaker_encoder." in name or "text_embedding" in name
        assert value.dtype == (torch.bfloat16 if stays or halved else torch.float32), name


# --- memory and speed -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full", "lora, all"])
def test_gradient_checkpointing_computes_layers_twice_and_the_gradients_are_equal(
    home: Path, kind: str
) -> None:
    plain = gradients(caught(home, *KINDS[kind]))
    run = caught(home, *KINDS[kind], "model.gradient_checkpointing=true")
    calls: list[str] = []
    talker = run.given["model"].talker
    for stack in ("model", "code_predictor.model"):
        layer = talker.get_submodule(f"{stack}.layers.0.mlp")
        layer.register_forward_pre_hook(lambda *_, stack=stack: calls.append(stack))
    found = gradients(run)
    assert sorted(calls) == ["code_predictor.model"] + ["model"] * 2  # the former in pieces
    assert set(found) == set(plain)
    for name, grad in plain.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["full", "lora, all"])
def test_pieces_of_frames_give_the_gradients_of_all_at_once(
    home: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against autograd over the logits of the whole batch, which `trace` asks for."""
    run = caught(home, *KINDS[kind])
    speech_model, (first, *_) = run.given["model"], window(run)
    monkeypatch.setattr(inner, "PIECE", 3)
    for trace in (False, True):
        talker, found = speech_model(**first.batch.inputs, trace=trace)
        assert found.each.shape[0] > 2 * 3 and (found.logits is not None) == trace
        speech_model.zero_grad()
        (talker.float().logsumexp(-1).sum() + 0.3 * found.total).backward()
        grads = {n: p.grad.clone() for n, p in speech_model.named_parameters() if p.requires_grad}
        if not trace:
            pieces, each = grads, found.each
    torch.testing.assert_close(each, found.each)
    assert set(pieces) == set(grads)
    for name, grad in grads.items():
        torch.testing.assert_close(pieces[name], grad, rtol=1e-4, atol=1e-6)


def test_a_batch_in_one_sequence_is_the_padded_batch(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = caught(home, *KINDS["full"])
    inputs, speech_model = window(run)[0].batch.inputs, run.given["model"]
    assert bool((inputs["text"] == NONE).any())
    whole = torch.ones_like(inputs["text"], dtype=torch.bool)
    mostly_padding = whole.clone()
    mostly_padding[1:, 1:] = False
    assert speech_model.packs(mostly_padding) and not speech_model.packs(whole)
    found = []
    for packs in (True, False):
        monkeypatch.setattr(model.Speech, "packs", lambda *_, packs=packs: packs)
        talker, rest = speech_model(**inputs, trace=True)
        found.append((talker, rest.logits))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["full", "lora, all"])
def test_the_lighter_modules_leave_every_gradient_as_it_is(home: Path, kind: str) -> None:
    run = caught(home, *KINDS[kind])
    found = gradients(run)
    recipe, voices = run.recipe, checkpoint.load_voices(run.artifacts)
    plain = model.load(home / "base", voices)
    if recipe.model.lora:
        adapted(plain, recipe)
        plain.talker.load_state_dict(run.given["model"].talker.state_dict())
    else:
        adapters.freeze(plain, recipe.model.freeze)
    run.given["model"] = plain
    wanted = gradients(run)
    assert set(found) == set(wanted)
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-6)


def test_our_norm_is_the_stock_norm_and_so_is_its_gradient() -> None:
    stock.load()
    from qwen_tts.core.models.modeling_qwen3_tts import Qwen3TTSRMSNorm

    torch.manual_seed(0)
    theirs = Qwen3TTSRMSNorm(8)
    theirs.weight.data.normal_()
    ours = lighter.Norm(theirs.weight, theirs.variance_epsilon)
    for kind, limit in ((torch.float32, 1e-6), (torch.bfloat16, 2e-2)):
        x = torch.randn(3, 5, 8, dtype=kind, requires_grad=True)
        weight = theirs.weight.to(kind)
        theirs.weight.data, ours.weight.data = weight, weight
        assert torch.equal(ours(x), theirs(x))
        push = torch.randn(3, 5, 8, dtype=kind)
        wanted = torch.autograd.grad((theirs(x) * push).sum(), [x, theirs.weight])
        found = torch.autograd.grad((ours(x) * push).sum(), [x, ours.weight])
        torch.testing.assert_close(found, wanted, rtol=limit, atol=limit)


def test_trained_checkpoints_have_the_stock_names_whatever_the_norms(home: Path) -> None:
    names = set(model.load(home / "base", {}).talker.state_dict())
    lightened = model.load(home / "base", {}).talker
    lighter.lighten(lightened)
    assert set(lightened.state_dict()) == names
    kinds = {type(module).__name__ for module in lightened.modules()}
    assert "Norm" in kinds and "Qwen3TTSRMSNorm" not in kinds


def test_the_benchmark_skips_with_a_notice_without_the_official_scripts() -> None:
    script = Path(__file__).parent.parent / "benchmarks" / "qwen3_training.py"
    out = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert out.returncode == 0 and out.stdout.startswith("skipped: give the path of a clone")


# --- a share of the frames ------------------------------------------------------------------------


def test_a_share_of_the_frames_is_the_sub_talkers(home: Path) -> None:
    whole, some = (caught(home, f"model.subtalker_frames={share}") for share in (1, 0.25))
    (full,), (part,) = window(whole, 7), window(some, 7)
    for name in ("text", "codec", "vectors"):
        assert torch.equal(full.batch.inputs[name], part.batch.inputs[name])
    frames = full.batch.counts["subtalker"] // 15
    assert part.batch.counts == {
        "talker": full.batch.counts["talker"],
        "subtalker": 15 * round(frames * 0.25),
    }
    (again,), (other,) = window(some, 7), window(some, 8)
    assert torch.equal(part.batch.inputs["targets"], again.batch.inputs["targets"])
    assert not torch.equal(part.batch.inputs["targets"], other.batch.inputs["targets"])
    (unseeded,) = window(some, None)  # validation: all of them
    assert unseeded.batch.counts["subtalker"] == full.batch.counts["subtalker"]
    speech_model = whole.given["model"].eval()
    with torch.no_grad():
        _, every = speech_model(**full.batch.inputs)
        _, chosen = speech_model(**part.batch.inputs)
    targets, left = full.batch.inputs["targets"], part.batch.inputs["targets"]
    kept = left[targets[..., 1] != IGNORE][:, 1] != IGNORE
    torch.testing.assert_close(every.each[kept], chosen.each)
    scored = some.backbone.hook.loss(
        recipe=some.recipe, model=speech_model, batch=part.batch, trace=False
    )
    assert scored.parts["end_probability"][1] == 3  # ends of the rows, not frames left out
    assert scored.parts["head_15"][1] == round(frames * 0.25)


def test_the_smallest_share_is_one_frame() -> None:
    targets = torch.zeros(2, 5, 16, dtype=torch.long)
    assert int((batches.sampled(targets, 1e-9, 0)[..., 15] != IGNORE).sum()) == 1
    assert torch.equal(batches.sampled(targets, 1.0, 0), targets)


# --- attention ------------------------------------------------------------------------------------


def test_auto_says_which_attention_it_took_and_flash_attention_is_not_replaced_silently(
    home: Path, tmp_path: Path
) -> None:
    train = ["train", "--recipe", "qwen3tts-lora", "--data", home / "data", "--max-steps", "1",
             f"model.base={home / 'base'}", "train.precision=fp32",
             "model.selftest=false"]  # fmt: skip
    said = sheen(*train, "--out", tmp_path / "a").output
    assert said.count("attention: sdpa (no GPU)\n") == 1
    said = sheen(
        *train, "--out", tmp_path / "b", "model.attention=flash_attention_2", code=2
    ).output
    assert "error: model.attention=flash_attention_2: there is no GPU; take auto or sdpa" in said
    assert caught(home, "model.attention=eager").given["model"].attention == "eager"


def test_only_a_missing_flash_attention_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.syspath_prepend(tmp_path)
    assert model.attention_of("auto", torch.bfloat16) == "sdpa"
    told = attention.taken("sdpa", torch.bfloat16)
    assert told == "sdpa (flash_attn is not installed)"
    assert "has no float32)" in attention.taken("sdpa", torch.float32)
    with pytest.raises(SheenError, match=r"flash_attn cannot be imported \(No module"):
        model.attention_of("flash_attention_2", torch.bfloat16)
    with pytest.raises(SheenError, match="does not compute in float32"):
        model.attention_of("flash_attention_2", torch.float32)
    (tmp_path / "flash_attn.py").write_text("raise OSError('a damaged library')")
    with pytest.raises(OSError, match="a damaged library"):
        model.attention_of("auto", torch.bfloat16)
    (tmp_path / "flash_attn.py").write_text("")
    assert model.attention_of("auto", torch.bfloat16) == "flash_attention_2"
    assert attention.taken("flash_attention_2", torch.bfloat16) == "flash_attention_2"
    del sys.modules["flash_attn"]  # monkeypatch would put it back at the end


def test_a_missing_hidden_state_is_an_error(home: Path) -> None:
    """The best effort of others, to go on without, trained the sub-talker on nothing."""
    speech_model = model.load(home / "base", {})
    for stack in (speech_model.talker.model, speech_model.talker.code_predictor.model):
        hook = stack.register_forward_hook(lambda _module, _inputs, output: type(output)())
        width = stack.layers[0].input_layernorm.weight.numel()
        with pytest.raises(RuntimeError, match="returned no last hidden state"):
            model.states(stack, torch.zeros(1, 3, width))
        hook.remove()
        assert model.states(stack, torch.zeros(1, 3, width)).shape == (1, 3, width)


# --- the preflight --------------------------------------------------------------------------------


def taught(home: Path, objective: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> Any:
    """The tiny base after a while of an objective of (code 0's scores, its targets, the heads'
    scores, their codes).
    """
    voices = checkpoint.load_voices(home / "data" / "artifacts")
    speech_model = model.load(home / "base", voices)
    rows = Rows(home / "data" / "train.jsonl")[:2]
    tables = references.load(home / "data" / "artifacts")
    inputs = batches.collate(speech_model.base, rows, [batches.SPOKEN] * 2, tables).inputs
    targets = inputs["targets"]
    due, codes = targets[..., 0][targets[..., 0] != IGNORE], targets[targets[..., 1] != IGNORE]
    optimizer = torch.optim.Adam(speech_model.talker.parameters(), 1e-2)
    for _ in range(60):
        first, inner = speech_model(**inputs, trace=True)
        optimizer.zero_grad()
        objective(first, due, inner.logits.transpose(1, 2), codes).backward()
        optimizer.step()
    return speech_model


def test_the_preflight_looks_at_every_head_of_the_sub_talker(home: Path) -> None:
    rows, artifacts = Rows(home / "data" / "train.jsonl")[:2], home / "data" / "artifacts"
    good = taught(home, lambda first, due, inner, codes: (
        cross_entropy(first, due) + cross_entropy(inner, codes[:, 1:])
    ))  # fmt: skip
    assert preflight.check(good, rows, artifacts, "good") is None
    losses = preflight.losses(good, rows, artifacts)
    assert len(losses.heads) == 14
    assert all(own < next_ for own, next_ in zip(losses.heads, losses.heads_ahead, strict=True))
    ahead = taught(home, lambda first, due, inner, codes: (  # as the stock class's own loss has it
        cross_entropy(first, due) + cross_entropy(inner[..., :-1], codes[:, 2:])
    ))  # fmt: skip
    with pytest.raises(SheenError, match=r"head 1 of its sub-talker predicts codebook 2 .* 14 hea"):
        preflight.check(ahead, rows, artifacts, "bad")


# --- the released widths --------------------------------------------------------------------------

# width of the talker, of its MLPs, and millions of parameters
WIDTHS = {"0.6B": (1024, 3072, 914.6), "1.7B": (2048, 6144, 1928.7)}


def released(size: str, layers: int = 28, inner_layers: int = 5, texts: int = 151_936) -> Any:
    """The config values of a released Base, or of one with fewer layers and words."""
    hidden, intermediate, _ = WIDTHS[size]
    stack = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
    inner = {"vocab_size": 2048, "hidden_size": 1024, "intermediate_size": 3072,
             "num_hidden_layers": inner_layers, "num_code_groups": 16, **stack}  # fmt: skip
    talker = {
        "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "text_hidden_size": 2048, "text_vocab_size": texts, "vocab_size": 3072,
        "num_code_groups": 16, "spk_id": {}, "spk_is_dialect": {}, "codec_language_id": {},
        "rope_scaling": {"interleaved": True, "mrope_section": [24, 20, 20],
                         "rope_type": "default"},
        "code_predictor_config": inner, **stack,
    }  # fmt: skip
    return {
        "talker_config": talker, "speaker_encoder_config": {"enc_dim": hidden},
        "tokenizer_type": "qwen3_tts_tokenizer_12hz", "tts_model_size": "1b7",
        "tts_model_type": "base",
    }  # fmt: skip


def stock_model(values: Any, device: str) -> Any:
    stock.load()
    from qwen_tts.core.models import Qwen3TTSConfig, Qwen3TTSForConditionalGeneration

    with torch.device(device):
        return Qwen3TTSForConditionalGeneration(Qwen3TTSConfig(**values))


@pytest.mark.parametrize("size", WIDTHS)
def test_the_released_sizes_have_the_parameters_that_they_should(size: str) -> None:
    parameters = sum(p.numel() for p in stock_model(released(size), "meta").parameters())
    assert round(parameters / 1e6, 1) == WIDTHS[size][2]


@pytest.mark.parametrize("size", WIDTHS)
def test_a_step_at_the_released_widths(home: Path, size: str) -> None:
    """One layer of each stack: text 2048 wide into 1024 or 2048, with a projection to the
    sub-talker or without one.
    """
    values, opened = released(size, 1, 1, 2_000), base.read(home / "base")
    opened = replace(opened, config={**opened.config, **values})
    voices = {"x": torch.zeros(WIDTHS[size][0])}
    speech_model = model.Speech(opened, stock_model(values, "cpu"), voices)
    projection = speech_model.talker.code_predictor.small_to_mtp_projection
    assert isinstance(projection, torch.nn.Identity if size == "0.6B" else torch.nn.Linear)
    rows = [{"text": text, "audio_codes": [[9 * n] * 16 for n in range(3)], "voice": 0}
            for text in ("One.", "One, two.")]  # fmt: skip
    tables = references.Tables(("x",), voices["x"][None], ())
    inputs = batches.collate(opened, rows, [batches.Form(named=False)] * 2, tables).inputs
    first, inner = speech_model(**inputs)
    assert first.shape == (8, 3072) and inner.each.shape == (6, 15)
    (first.square().mean() + inner.total).backward()
    for name, p in speech_model.talker.named_parameters():
        assert p.grad is not None and bool(p.grad.isfinite().all()), name


# --- two processes --------------------------------------------------------------------------------


def ranks(python: Path, *arguments: object) -> None:
    """Two processes that know of each other, as torchrun starts them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}  # fmt: skip
    started = [
        subprocess.Popen(
            [str(each) for each in (python, *arguments)],
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in "01"
    ]  # fmt: skip
    said = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)[-3000:]


def test_two_processes_learn_what_one_does(home: Path, warm: Path, tmp_path: Path) -> None:
    """One forward of one module, which DDP wraps: the same losses and weights under gloo."""
    train = ["-m", "sheen_cli", "train", "--recipe", "qwen3tts-lora", "--data", home / "data",
             "--max-steps", "3", f"model.base={home / 'base'}", "train.precision=fp32",
             "train.accumulate=1", "log.every=1", "model.named_language=1", "model.streaming=0",
             "model.conditioning.xvector=0", "model.conditioning.icl=0", "model.lora.dropout=0",
             "model.preflight=false", "model.selftest=false", "train.schedule=constant",
             "train.learning_rate=1e-3", "model.projection_learning_rate=1e-3"]  # fmt: skip
    sheen(*train[2:], "--out", tmp_path / "one", "train.batch_size=4")
    ranks(warm, *train, "--out", tmp_path / "two", "train.batch_size=2")
    one, two = (
        [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("one", "two")
    )
    assert len(two) == 3
    for line, expected in zip(two, one, strict=True):
        for key in set(expected) - {"seconds"}:
            assert line[key] == pytest.approx(expected[key], rel=1e-4), key
    weights = load_file(tmp_path / "one" / "last" / checkpoint.ADAPTER)
    for name, tensor in load_file(tmp_path / "two" / "last" / checkpoint.ADAPTER).items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-3, atol=2e-4)


SHARED_OUT = """
import sys
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

home, tests = map(Path, sys.argv[1:])
sys.path.insert(0, str(tests))
from test_qwen3_training import caught, objective

distributed.init_process_group("gloo")
rank = distributed.get_rank()
whole, parts = (caught(home, "model.lora=null").given["model"] for _ in range(2))
mesh = init_device_mesh("cpu", (2,))
for layer in parts.talker.model.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(parts, mesh=mesh)
held = sum(p.to_local().numel() for p in parts.parameters())
assert 0.4 < held / sum(p.numel() for p in whole.parameters()) < 0.6
expected, found = objective(home, whole, 0, 4), objective(home, parts, 2 * rank, 2 * rank + 2)
for loss in (expected, found):
    loss.backward()
total = found.detach().clone()
distributed.all_reduce(total)
torch.testing.assert_close(total, expected.detach(), rtol=1e-5, atol=0)
trained = 0
for (name, one), (_, other) in zip(whole.named_parameters(), parts.named_parameters(), strict=True):
    assert (one.grad is None) == (other.grad is None), name
    if one.grad is not None:
        trained += 1  # gradients are averaged over the ranks
        torch.testing.assert_close(other.grad.full_tensor() * 2, one.grad, rtol=1e-4, atol=1e-4)
assert trained > 40
distributed.destroy_process_group()
"""


def objective(home: Path, speech_model: Any, start: int, end: int) -> Tensor:
    """The loss of some rows, summed over their targets."""
    recipe, backbone = resolve("qwen3tts-lora", [f"model.base={home / 'base'}"])
    rows, artifacts = Rows(home / "data" / "train.jsonl"), home / "data" / "artifacts"
    some = [rows[i] for i in range(start, end)]
    batch = backbone.hook.collate(recipe=recipe, rows=some, seed=None, artifacts=artifacts)
    loss = backbone.hook.loss(recipe=recipe, model=speech_model, batch=batch, trace=False)
    return sum((term.sum * term.scale for term in loss.terms.values()), torch.zeros(()))


def test_two_processes_share_one_model_out(home: Path, warm: Path) -> None:
    """FSDP wraps the module and the talker's layers: the losses and gradients of the whole one."""
    ranks(warm, "-c", SHARED_OUT, home, Path(__file__).parent)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_model_that_is_being_trained_in_bf16_speaks(
    home: Path, forked: None, tmp_path: Path, kind: str
) -> None:
    """With weights of two dtypes and our modules in it, as the samples of a validation do."""
    said = sheen(
        "train", "--recipe", f"qwen3tts-{kind}", "--data", home / "data", "--out", tmp_path / "run",
        "--max-steps", "1", f"model.base={home / 'base'}", "train.precision=bf16",
        "model.preflight=false", "model.selftest=true", "log.samples=0",
        "log.sentences=[one two]", "synth.max_seconds=0.5", "train.validate_every=1",
    ).output  # fmt: skip
    assert "step 1: samples in" in said and "no samples of step" not in said
    run = caught(home, *KINDS["full" if kind == "full" else "lora, all"], precision="bf16")
    with torch.no_grad(), run.accelerator.autocast():
        request = Request("one two", greedy=True, max_seconds=0.5, speaker="anna")
        (spoken,) = run.backbone.hook.synth(
            recipe=run.recipe, model=run.given["model"], requests=[request], trace=False
        )
    assert spoken.codes is not None and len(spoken.codes) > 0
