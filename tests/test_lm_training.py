"""Codec language models in training: the loss where it counts, batches, what learns, what is saved;
on tiny models of two architectures.
"""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn.functional import cross_entropy

from sheen_cli import Row, SheenError
from sheen_lm import adapters, batches, layout, loss, model, references, trained, vocabulary
from sheen_lm.batches import collate, lay, prompt_of, prompts
from sheen_lm.convention import Convention
from sheen_lm.layout import IGNORE, Ids, Prompt, resolve
from sheen_lm.model import CodesLM
from sheen_lm.packing import PADDING
from sheen_lm.references import Heard

CONVENTION = Convention.model_validate({
    "specials": {"speech_start": "<audio_start>", "speech_end": "<audio_end>"},
    "codes": {"token": "<c{codebook}_{code}>", "stride": 8, "sizes": (8,) * 3,
              "layers": (1, 2, 2), "frame": (0, 1, 2)},
    "sequence": "{text}{speech_start}{codes}{speech_end}",
    "rows": 300,  # one more than the tokens: tables may have rows without a token
})  # fmt: skip
KINDS = ("qwen3", "llama", "llama untied")


def tokenizer() -> Any:
    """Of a text model: each byte a token, and an end of text."""
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: at for at, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", pad_token="<pad>")


def tiny(kind: str) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    config = {
        "vocab_size": 258, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "tie_word_embeddings": "untied" not in kind, "bos_token_id": None, "eos_token_id": 256,
        "initializer_range": 0.3,
    }  # fmt: skip
    torch.manual_seed(0)
    if kind == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**config))
    return LlamaForCausalLM(LlamaConfig(**config))


@pytest.fixture(scope="module", params=KINDS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text model's folder, as it is downloaded."""
    folder: Path = tmp_path_factory.mktemp("base")
    tiny(request.param).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def opened(base: Path, **keys: Any) -> CodesLM:
    lm, words = model.load(base, **keys)
    added = vocabulary.extend(words, CONVENTION)
    vocabulary.resize(lm, words, CONVENTION, added)
    return CodesLM(lm, resolve(CONVENTION, words))


def new_rows(ids: Ids) -> range:
    return range(258, 300)


def row(number: int, frames: int, text: str = "hello", speaker: str | None = None) -> Row:
    codes = np.random.default_rng(number).integers(0, 8, (frames, 3))
    return {"id": str(number), "text": text, "speaker": speaker, "audio_codes": codes.tolist()}


ROWS = [row(1, 5), row(2, 9, "a longer text"), row(3, 2, "x"), row(4, 7)]


def batch_of(ids: Ids, rows: list[Row], **keys: Any) -> dict[str, Tensor]:
    keys = {"longest": 100, **keys}
    return collate(ids, rows, [prompt_of(row) for row in rows], **keys).inputs


def plain(lm: Any, tokens: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropies as everyone computes them, from all logits."""
    logits = lm(input_ids=tokens).logits
    asked = targets != IGNORE
    return cross_entropy(logits[asked].float(), targets[asked], reduction="none")


def gradients(part: torch.nn.Module) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in part.named_parameters() if p.grad is not None}
    part.zero_grad()
    return found


def close(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == wanted.keys() and found
    for name, value in wanted.items():
        error = (found[name] - value).norm() / value.norm()
        assert error < tolerance, f"{name}: {error}"


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a tiny batch is many pieces, the last of them not full."""
    monkeypatch.setattr(loss, "TARGETS", 10)
    monkeypatch.setattr(loss, "CACHED", 49)


# --- the loss -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_pieces")
def test_the_loss_and_its_gradient_are_those_of_all_logits(base: Path) -> None:
    ours = opened(base)
    reference = copy.deepcopy(ours.lm)
    batch = batch_of(ours.ids, ROWS)
    scored = ours(**batch)
    (scored.total / 7).backward()
    wanted = plain(reference, **batch)
    (wanted.sum() / 7).backward()
    torch.testing.assert_close(scored.each, wanted.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(scored.total, wanted.sum(), rtol=1e-6, atol=0)
    close(gradients(ours.lm), gradients(reference), 1e-5)
    with torch.no_grad():
        torch.testing.assert_close(ours(**batch).total, scored.total, rtol=1e-6, atol=0)


def test_a_trace_shows_the_logits_behind_the_loss(base: Path) -> None:
    ours = opened(base)
    batch = batch_of(ours.ids, ROWS)
    traced, scored = ours(**batch, trace=True), ours(**batch)
    assert scored.logits is None and traced.logits is not None
    logits = ours.lm(input_ids=batch["tokens"]).logits[batch["targets"] != IGNORE]
    torch.testing.assert_close(traced.logits, logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(traced.total, scored.total)
    traced.total.backward()
    found = gradients(ours.lm)
    scored.total.backward()
    close(gradients(ours.lm), found, 1e-5)


@pytest.mark.usefixtures("small_pieces")
def test_under_autocast_the_loss_is_as_near_to_the_truth_as_plain_ones(base: Path) -> None:
    ours = opened(base)
    reference, truth = copy.deepcopy(ours.lm), copy.deepcopy(ours.lm).double()
    batch = batch_of(ours.ids, ROWS)
    plain(truth, **batch).sum().backward()
    right = gradients(truth)
    with torch.autocast("cpu", torch.bfloat16):
        scored, others = ours(**batch), plain(reference, **batch)
    scored.total.backward()
    others.sum().backward()
    torch.testing.assert_close(scored.total, others.sum(), rtol=5e-3, atol=0)
    mine, stock = gradients(ours.lm), gradients(reference)
    for name, value in right.items():
        error = (mine[name] - value).norm()
        assert error < 1.5 * (stock[name] - value).norm(), name


@pytest.mark.usefixtures("small_pieces")
def test_a_softmax_over_the_audio_rows_alone(base: Path) -> None:
    ours = opened(base)
    choices = np.append(ours.ids.codes.reshape(-1), ours.ids.stop)
    narrow = CodesLM(ours.lm, ours.ids, choices)
    batch = batch_of(ours.ids, ROWS)
    scored = narrow(**batch)
    scored.total.backward()
    found, asked = gradients(ours.lm), batch["targets"] != IGNORE
    some = torch.from_numpy(np.sort(choices))
    logits = ours.lm(input_ids=batch["tokens"]).logits[asked][:, some]
    places = torch.searchsorted(some, batch["targets"][asked])
    wanted = cross_entropy(logits, places, reduction="none")
    wanted.sum().backward()
    torch.testing.assert_close(scored.each, wanted.detach(), rtol=1e-6, atol=1e-6)
    close(found, gradients(ours.lm), 1e-5)
    assert narrow(**batch, trace=True).logits.shape == logits.shape
    with pytest.raises(ValueError, match="token 7 is a target, but none of the 25 choices"):
        narrow(batch["tokens"], torch.where(asked, 7, IGNORE))
    written = CONVENTION.model_copy(update={"loss": "marker"})
    with pytest.raises(SheenError, match=r"model.audio_only: this convention's loss counts more"):
        CodesLM(ours.lm, replace(ours.ids, convention=written), choices)


def test_models_that_do_more_to_their_logits_are_refused(tmp_path: Path) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=258, hidden_size=32, intermediate_size=32, num_hidden_layers=1, head_dim=8,
        num_attention_heads=2, num_key_value_heads=1, final_logit_softcapping=0.5,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(SheenError, match="Gemma2ForCausalLM does more to its logits"):
        model.load(tmp_path)


# --- batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_rows_cost_the_same_alone_padded_and_packed(base: Path, attention: str) -> None:
    ours = opened(base, attention=attention)
    assert ours.attention == attention and model.packable(ours.lm)
    alone = [ours(**batch_of(ours.ids, [each])) for each in ROWS]
    sum(each.total for each in alone).backward()
    wanted, costs = gradients(ours.lm), torch.cat([each.each for each in alone])
    padded = ours(**batch_of(ours.ids, ROWS))
    padded.total.backward()
    torch.testing.assert_close(padded.each, costs, rtol=1e-5, atol=1e-5)
    close(gradients(ours.lm), wanted, 1e-5)
    batch = batch_of(ours.ids, ROWS, window=60)
    assert batch["tokens"].shape[0] == 2 and int(batch["segments"].max()) > 1
    packed = ours(**batch)
    packed.total.backward()
    torch.testing.assert_close(packed.each.sort().values, costs.sort().values, rtol=1e-5, atol=1e-5)
    close(gradients(ours.lm), wanted, 1e-5)
    mixed = ours(batch["tokens"], batch["targets"])
    assert not torch.allclose(mixed.total, packed.total, rtol=1e-3)


def test_a_model_with_convolutions_cannot_be_packed(tmp_path: Path) -> None:
    from transformers import Lfm2Config, Lfm2ForCausalLM

    config = Lfm2Config(
        vocab_size=258, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, full_attn_idxs=[1],
    )  # fmt: skip
    Lfm2ForCausalLM(config).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    ours = opened(tmp_path)
    costs = [ours(**batch_of(ours.ids, [each])).total for each in ROWS]
    padded = ours(**batch_of(ours.ids, ROWS)).total
    torch.testing.assert_close(padded, torch.stack(costs).sum(), rtol=1e-5, atol=0)
    with pytest.raises(SheenError, match=r"model.pack: Lfm2ForCausalLM .* set model.pack=false"):
        ours(**batch_of(ours.ids, ROWS, window=60))


def test_windows_behind_each_other_have_the_same_states(base: Path) -> None:
    ours = opened(base).eval()
    batch = batch_of(ours.ids, ROWS, window=60)
    held = batch["segments"] != PADDING
    found = ours.flat(batch["tokens"], batch["segments"])
    wanted = ours.states(batch["tokens"], batch["segments"])
    torch.testing.assert_close(found[held], wanted[held], rtol=1e-4, atol=1e-4)
    assert not bool(found[~held].any())


def test_positions_start_again_with_each_segment() -> None:
    segments = torch.tensor([[1, 1, 1, 2, 2, 0], [1, 2, 3, 3, 3, 3]])
    assert model.positions_of(segments).tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 0, 1, 2, 3]]
    assert model.numbered(segments).tolist() == [[1, 1, 1, 2, 2, 0], [4, 5, 6, 6, 6, 6]]


def test_gradients_add_up_over_a_window_and_through_checkpoints(base: Path) -> None:
    ours = opened(base)
    ours(**batch_of(ours.ids, ROWS)).total.backward()
    wanted = gradients(ours.lm)
    for some in (ROWS[:1], ROWS[1:]):
        ours(**batch_of(ours.ids, some)).total.backward()
    close(gradients(ours.lm), wanted, 1e-5)
    model.checkpoint(ours)
    ours.train()
    ours(**batch_of(ours.ids, ROWS)).total.backward()
    close(gradients(ours.lm), wanted, 1e-5)


def test_padding_is_no_target_and_the_end_always_is(base: Path) -> None:
    ids = opened(base).ids
    batch = collate(ids, ROWS, [prompt_of(row) for row in ROWS], 100)
    tokens, targets = batch.inputs["tokens"], batch.inputs["targets"]
    assert batch.counts == {"tokens": sum(3 * len(row["audio_codes"]) + 1 for row in ROWS)}
    for number, row in enumerate(ROWS):
        counted = targets[number][targets[number] != IGNORE]
        flat = [int(ids.codes[i, c]) for frame in row["audio_codes"] for i, c in enumerate(frame)]
        assert counted.tolist() == [*flat, ids.stop]
        said = tokens[number][: (targets[number] != IGNORE).nonzero().max() + 1].tolist()
        assert said[-len(flat) :] == flat
        assert set(tokens[number, len(said) :].tolist()) <= {ids.pad}
    assert ids.pad != ids.stop


def test_rows_that_are_too_long(base: Path) -> None:
    ids, long = opened(base).ids, row(9, 20)
    with pytest.raises(SheenError, match=r"row 9: 66 tokens, more than model.longest=30"):
        lay(ids, long, prompt_of(long), 30)
    cut, everything = lay(ids, long, prompt_of(long), 30, "trim"), batches.whole(
        ids, long, prompt_of(long)
    )  # fmt: skip
    assert len(cut.tokens) == 6 + 8 * 3  # five letters, the marker, and whole frames
    assert cut.tokens.tolist() == everything.tokens[:30].tolist()
    assert cut.targets.tolist() == everything.targets[:30].tolist()
    assert ids.stop not in cut.targets and ids.stop in everything.targets
    with pytest.raises(SheenError, match=r"row 9: .* its prompt leaves no room"):
        lay(ids, long, prompt_of(long), 8, "trim")


def test_what_a_row_lacks_is_said_with_its_name(base: Path) -> None:
    ids = opened(base).ids
    with pytest.raises(SheenError, match="row 5: the row's text is empty"):
        batch_of(ids, [row(1, 2), row(5, 2, " ")])
    with pytest.raises(SheenError, match=r"row 6: audio codes: codebook 0 .* holds 99 in frame 0"):
        batch_of(ids, [{**row(6, 2), "audio_codes": [[99, 0, 0]]}])


def test_a_share_of_rows_goes_on_from_another_recording_of_the_speaker(base: Path) -> None:
    ids = opened(base).ids
    rows = [row(number, 3, speaker=("Anna", "Bo")[number % 2]) for number in range(200)]
    heard = [Heard(str(n), "so", np.array(rows[n]["audio_codes"])) for n in range(8)]
    pool = {"Anna": heard[::2], "Bo": heard[1::2]}
    found = prompts(rows, pool, 0.5, 7, lambda row, prompt: True)
    paired = [(row, prompt) for row, prompt in zip(rows, found, strict=True) if prompt.reference]
    assert 70 < len(paired) < 130
    for each, prompt in paired:
        assert prompt.reference is not None
        (name,) = [h.name for h in pool[each["speaker"]] if h.codes is prompt.reference[1]]
        assert name != each["id"]
    assert repr(found) == repr(prompts(rows, pool, 0.5, 7, lambda row, prompt: True))
    assert repr(found) != repr(prompts(rows, pool, 0.5, 8, lambda row, prompt: True))
    for share, seed, fits in ((0.5, None, True), (0.0, 7, True), (1.0, 7, False)):
        plain = prompts(rows, pool, share, seed, lambda row, prompt, fits=fits: fits)
        assert not any(prompt.reference for prompt in plain)
    each, prompt = paired[0]
    laid = batches.whole(ids, each, prompt)
    alone = batches.whole(ids, each, prompt_of(each))
    asked, own = laid.targets != IGNORE, alone.targets != IGNORE
    assert laid.targets[asked].tolist() == alone.targets[own].tolist()
    heard_text, codes = prompt.reference
    spoken = layout.head(Prompt(each["text"], reference=(heard_text, codes)), ids)
    assert laid.tokens[: len(spoken)].tolist() == spoken.tolist()  # as `synth --ref --icl` asks


def test_references_are_kept_by_chance_and_found_again(tmp_path: Path) -> None:
    assert references.load(tmp_path / "none") == {}
    pool: references.Pool = {}
    most = references.MOST
    for number in range(6 * most):
        heard = Heard(str(number), "text", np.full((2, 3), number))
        references.offer(pool, ("Anna", None, "Bo")[number % 3], heard)
    references.save(pool, tmp_path)
    found = references.load(tmp_path)
    # who has no name could be anybody
    assert {speaker: len(mine) for speaker, mine in found.items()} == {"Anna": most, "Bo": most}
    assert repr([(h.name, h.text, h.codes.tolist()) for h in found["Anna"]]) == repr(
        [(h.name, h.text, h.codes.tolist()) for h in pool["Anna"]]
    )
    assert all(int(heard.name) % 3 == 0 for heard in found["Anna"])
    assert [heard.name for heard in found["Bo"]] != [str(2 + 3 * n) for n in range(most)]


# --- what learns ----------------------------------------------------------------------------------


def stepped(ours: CodesLM, precision: bool = False) -> set[str]:
    """Names of the tensors that two steps change."""
    before = {name: value.clone() for name, value in ours.lm.state_dict().items()}
    groups = adapters.groups(ours)
    chosen = [id(p) for group in groups for p in group.parameters]
    assert len(chosen) == len(set(chosen))
    assert set(chosen) == {id(p) for p in ours.parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([p for group in groups for p in group.parameters], lr=1e-2)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision):
            ours(**batch_of(ours.ids, ROWS)).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {n for n, value in ours.lm.state_dict().items() if not torch.equal(value, before[n])}


def test_training_changes_what_is_named_and_nothing_else(base: Path) -> None:
    everything = opened(base)
    assert stepped(everything) == set(everything.lm.state_dict())
    frozen = opened(base)
    trained.freeze(frozen.lm, ["model.layers.*", "*norm*"])
    tables = {"model.embed_tokens.weight", "lm_head.weight"}
    assert stepped(frozen) == tables
    with pytest.raises(SheenError, match=r"model.freeze: no parameter of the model is named 'z\*'"):
        trained.freeze(frozen.lm, ["z*"])


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("pattern", [adapters.QUERY_VALUE, "linear"])
def test_adapters_train_themselves_and_new_rows(base: Path, pattern: str, half: bool) -> None:
    ours = opened(base, dtype=torch.bfloat16 if half else torch.float32)
    chosen = adapters.linear(ours.lm) if pattern == "linear" else pattern
    names = adapters.attach(ours, 4, 8.0, 0.0, chosen, new_rows(ours.ids))
    layers = 2 * (7 if pattern == "linear" else 2)
    assert len(names) == 2 * layers + (1 if ours.tied else 2)
    trained = {name: p.dtype for name, p in ours.lm.named_parameters() if p.requires_grad}
    assert set(trained) == set(names) and set(trained.values()) == {torch.float32}
    rest = {p.dtype for p in ours.lm.parameters() if not p.requires_grad}
    assert rest == {torch.bfloat16 if half else torch.float32}
    changed = stepped(ours, precision=half)
    assert {name for name in changed if "lm_head.token_adapter" not in name or not ours.tied} == {
        *names
    }


@pytest.mark.usefixtures("small_pieces")
def test_own_rows_are_those_that_peft_would_train(base: Path) -> None:
    """PEFT's forward pass, through tables put together anew, gives the same logits and gradients
    as ours, in tied tables too; there one tensor serves both ends.
    """
    ours = opened(base)
    scattered = [3, 4, *new_rows(ours.ids)]  # spare rows of a base may lie anywhere
    names = adapters.attach(ours, 4, 8.0, 0.0, adapters.QUERY_VALUE, scattered)
    assert len([name for name in names if "delta" in name]) == (1 if ours.tied else 2)
    stir(ours)
    batch = batch_of(ours.ids, ROWS)
    scored = ours(**batch)
    scored.total.backward()
    found = gradients(ours.lm)
    wanted = plain(ours.lm, **batch)
    wanted.sum().backward()
    torch.testing.assert_close(scored.each, wanted.detach(), rtol=1e-5, atol=1e-5)
    close(found, gradients(ours.lm), 1e-5)
    assert not any(module.weight.grad is not None for module in ours.lm.modules()
                   if isinstance(module, torch.nn.Embedding))  # fmt: skip


def stir(ours: CodesLM) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in ours.lm.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_an_adapter_needs_something_to_adapt(base: Path) -> None:
    with pytest.raises(SheenError, match=r"model.lora: no linear module .* 'w_q'"):
        adapters.attach(opened(base), 4, 8.0, 0.0, "w_q", ())


# --- files ----------------------------------------------------------------------------------------


def logits(lm: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = lm.eval()(input_ids=torch.arange(40, 299)[None]).logits
    return found


def test_a_whole_model_is_one_of_plain_transformers(base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ours = opened(base)
    stir(ours)
    model.save_whole(ours, tmp_path)
    lm, words = (
        AutoModelForCausalLM.from_pretrained(tmp_path),
        AutoTokenizer.from_pretrained(tmp_path),
    )
    torch.testing.assert_close(logits(lm), logits(ours.lm), rtol=0, atol=0)
    assert resolve(CONVENTION, words).codes.tolist() == ours.ids.codes.tolist()
    assert lm.generation_config.eos_token_id == ours.ids.stop
    again, _ = model.load(tmp_path)
    torch.testing.assert_close(logits(again), logits(ours.lm), rtol=0, atol=0)
    assert again.config.tie_word_embeddings == ours.tied


@pytest.mark.parametrize("what", ["missing", "unexpected"])
def test_a_folder_must_hold_the_model_and_nothing_else(
    base: Path, tmp_path: Path, what: str
) -> None:
    model.save_whole(opened(base), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    if what == "missing":
        del state["model.layers.1.mlp.up_proj.weight"]
    else:
        state["model.layers.9.mlp.up_proj.weight"] = torch.zeros(2, 2)
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(SheenError, match=rf"{what} model.layers.\d.mlp.up_proj.weight"):
        model.load(tmp_path)


def test_a_base_that_is_none(base: Path, tmp_path: Path) -> None:
    with pytest.raises(SheenError, match="nowhere: neither a folder nor a Hub id"):
        model.load(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mimi"}))
    with pytest.raises(SheenError, match="no language model that transformers knows"):
        model.load(tmp_path)
    model.save_whole(opened(base), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 100}))
    with pytest.raises(SheenError, match="cannot be loaded"):
        model.load(tmp_path)
    with pytest.raises(SheenError, match="there is no GPU; take auto or sdpa"):
        model.load(base, attention="flash_attention_2", dtype=torch.bfloat16)


@pytest.mark.parametrize("half", [False, True])
def test_an_adapter_is_one_of_plain_peft(base: Path, tmp_path: Path, half: bool) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    kind = torch.bfloat16 if half else torch.float32
    ours = opened(base, dtype=kind)
    pattern, rows = adapters.linear(ours.lm), new_rows(ours.ids)
    adapters.attach(ours, 4, 8.0, 0.1, pattern, rows)
    stir(ours)
    adapters.save_adapter(ours, tmp_path)
    lm = AutoModelForCausalLM.from_pretrained(base, dtype=kind)
    lm.resize_token_embeddings(len(ours.input_table))
    plain = PeftModel.from_pretrained(lm, tmp_path)
    again = opened(base, dtype=kind)
    adapters.attach(again, 4, 8.0, 0.1, pattern, rows)
    adapters.load_adapter(again, tmp_path)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):  # as in training
        torch.testing.assert_close(logits(plain), logits(ours.lm), rtol=0, atol=0)
        torch.testing.assert_close(logits(again.lm), logits(ours.lm), rtol=0, atol=0)
        batch = batch_of(ours.ids, ROWS)
        assert again(**batch).total == ours.eval()(**batch).total


def test_an_adapter_that_does_not_fit(base: Path, tmp_path: Path) -> None:
    ours = opened(base)
    adapters.attach(ours, 4, 8.0, 0.0, adapters.QUERY_VALUE, new_rows(ours.ids))
    with pytest.raises(SheenError, match="no adapter"):
        adapters.load_adapter(ours, tmp_path)
    adapters.save_adapter(ours, tmp_path)
    other = opened(base)
    adapters.attach(other, 4, 16.0, 0.0, adapters.QUERY_VALUE, new_rows(ours.ids))
    with pytest.raises(SheenError, match="does not fit the recipe: it has another lora_alpha"):
        adapters.load_adapter(other, tmp_path)
    path = tmp_path / adapters.WEIGHTS
    state = load_file(path)
    name = min(state)
    save_file({n: value for n, value in state.items() if n != name}, path)
    with pytest.raises(SheenError, match=f"it lacks {name}"):
        adapters.load_adapter(ours, tmp_path)
    save_file({**state, name: torch.zeros(3, 3)}, path)
    with pytest.raises(SheenError, match=r"is \(3, 3\), not"):
        adapters.load_adapter(ours, tmp_path)
