"""Tokenizers extended and tables resized: ids, rows and values, on two tiny architectures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_bases import llama, llama_model, qwen, qwen_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from sheen_cli import SheenError
from sheen_lm.convention import Convention
from sheen_lm.families import books, family
from sheen_lm.layout import Prompt, head, resolve
from sheen_lm.vocabulary import Report, describe, extend, resize, tokens

SMALL = books(2, 16)  # 2 specials and 32 codes
BASE, SPARE = 282, 10  # tokens of a small Qwen, and rows that its table has beyond them
MODELS = [(qwen_model, True), (qwen_model, False), (llama_model, True), (llama_model, False)]
Built = tuple[Any, Any, Report]


def adapted(
    build: Callable[..., Any], tied: bool, convention: Convention = SMALL, init: str = "mean"
) -> tuple[Any, torch.Tensor, torch.Tensor, Any, Report]:
    """A tiny model adapted, and copies of its two tables as they were."""
    torch.manual_seed(0)
    model, base = build(BASE + SPARE, tied), qwen(256)
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        table.weight.detach()[BASE:] = 50  # values that must count for nothing
    before = [
        table.weight.detach().clone()
        for table in (model.get_input_embeddings(), model.get_output_embeddings())
    ]
    report = resize(model, base, convention, extend(base, convention), init)
    return model, before[0], before[1], base, report


def test_tokens_are_listed_as_their_families_add_them() -> None:
    sheen = tokens(family("sheen"))
    assert sheen[:3] == ["<audio_start>", "<audio_end>", "<snac_l1_0>"]
    assert (len(sheen), sheen[2 + 4096], sheen[-1]) == (12_290, "<snac_l2_0>", "<snac_l3_4095>")
    orpheus = tokens(family("orpheus"))
    others = [token for token in orpheus if not token.startswith("<custom_token_")]
    assert others == orpheus[:2] == ["<|begin_of_text|>", "<|eot_id|>"]
    assert orpheus[2:] == [f"<custom_token_{number}>" for number in range(28_682)]
    llasa = tokens(family("llasa"))
    assert llasa[4] == "<|SPEECH_GENERATION_START|>" and llasa[8] == "<|s_0|>"
    assert tokens(family("inworld")) == sorted(tokens(family("inworld")))
    assert tokens(family("maya1")) == ["<|begin_of_text|>", "<|eot_id|>"]  # the rest are ids alone


def test_extending_adds_what_is_missing_and_counts_the_rest() -> None:
    base = llama(256)
    added = extend(base, family("orpheus"))
    assert (added.ids, added.reused) == (tuple(range(512, 512 + 28_682)), 2)
    assert base.convert_tokens_to_ids("<custom_token_9>") == 521
    again = extend(base, family("orpheus"))
    assert (again.tokens, again.reused) == ((), 28_684)
    assert base.tokenize("a<custom_token_12>b") == ["a", "<custom_token_12>", "b"]


def test_the_order_decides_on_the_ids() -> None:
    listed, ordered = qwen(256), qwen(256)
    extend(listed, SMALL)
    extend(ordered, SMALL.model_copy(update={"order": "sorted"}))
    ids = [base.convert_tokens_to_ids(["<c0_0>", "<c0_10>", "<c0_2>", "<speech_end>"])
           for base in (listed, ordered)]  # fmt: skip
    assert [[one - BASE for one in each] for each in ids] == [[2, 12, 4, 1], [0, 1, 8, 32]]


@pytest.mark.parametrize(("build", "tied"), MODELS)
def test_old_rows_stay_and_tied_tables_stay_tied(build: Callable[..., Any], tied: bool) -> None:
    model, inputs, outputs, base, report = adapted(build, tied)
    assert report == Report(
        before=292,
        rows=316,
        init="mean",
        fresh=tuple(range(282, 316)),
        spare=10,
        unused=0,
        tied=tied,
    )
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (table is head) == tied and model.config.tie_word_embeddings == tied
    assert model.config.vocab_size == len(table) == len(head) == len(base) == 316
    assert table[:BASE].equal(inputs[:BASE]) and head[:BASE].equal(outputs[:BASE])
    assert not table[BASE : BASE + SPARE].eq(inputs[BASE:]).all(1).any()  # spare rows are new too
    tokens = torch.arange(316)[None]
    assert model(tokens).logits.shape == (1, 316, 316)


@pytest.mark.parametrize(("build", "tied"), MODELS)
def test_new_rows_lie_around_the_old_ones(build: Callable[..., Any], tied: bool) -> None:
    model, inputs, outputs, _, _ = adapted(build, tied)
    for table, old in ((model.get_input_embeddings(), inputs),
                       (model.get_output_embeddings(), outputs)):  # fmt: skip
        mean, new = old[:BASE].mean(0), table.weight[BASE:].detach()
        apart = (new - mean).norm(dim=1)
        assert apart.min() > 0 and apart.max() < 0.02 * old[:BASE].norm(dim=1).mean()
        assert len(new.unique(dim=0)) == len(new)


def wide(init: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The old rows, whose columns depend on each other, and 8192 new ones."""
    torch.manual_seed(0)
    model, base, convention = qwen_model(BASE), qwen(256), books(2, 4096)
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        table[:, 0] += 1
        table[:, 1] = 3 * table[:, 0] + 0.01 * table[:, 1]
    old = table.detach().clone()
    resize(model, base, convention, extend(base, convention), init)
    return old, model.get_input_embeddings().weight[BASE:].detach()


def test_each_method_gives_the_values_that_it_says() -> None:
    old, spread = wide("spread")
    torch.testing.assert_close(spread.mean(0), old.mean(0), atol=3e-3, rtol=0)
    torch.testing.assert_close(spread.T.cov(), old.T.cov(), atol=3e-4, rtol=0)
    assert spread.T.corrcoef()[0, 1] > 0.99
    _, mean = wide("mean")
    torch.testing.assert_close(mean.T.cov() * 1e5, old.T.cov(), atol=3e-4, rtol=0.1)
    _, normal = wide("normal")
    assert abs(normal.std().item() - 0.02) < 1e-3 and abs(normal.mean().item()) < 1e-3
    assert not wide("zero")[1].any()


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(SheenError, match="init: magic is none of mean, spread, normal, zero"):
        adapted(qwen_model, True, init="magic")


def test_the_same_seed_gives_the_same_rows() -> None:
    first, second = (adapted(qwen_model, True)[0].get_input_embeddings().weight for _ in range(2))
    assert first.equal(second)


@pytest.mark.parametrize(
    ("changes", "rows", "unused"),
    [
        ({"multiple": 64}, 320, 4),
        ({"rows": 400}, 400, 84),
        ({"rows": 400, "multiple": 128}, 512, 196),
        ({"rows": 100}, 316, 0),
    ],
)
def test_tables_are_filled_up(changes: dict[str, int], rows: int, unused: int) -> None:
    model, *_, report = adapted(qwen_model, True, SMALL.model_copy(update=changes))
    assert (report.rows, report.unused) == (rows, unused)
    assert len(model.get_input_embeddings().weight) == rows
    assert model.get_input_embeddings().weight.isfinite().all()


def test_a_table_with_rows_enough_does_not_grow() -> None:
    torch.manual_seed(0)
    model, base = qwen_model(400), qwen(256)
    before = model.get_input_embeddings().weight.detach().clone()
    report = resize(model, base, SMALL.model_copy(update={"multiple": 256}), extend(base, SMALL))
    assert (report.before, report.rows, report.spare, report.unused) == (400, 400, 34, 0)
    after = model.get_input_embeddings().weight
    assert after[316:].equal(before[316:])  # rows of nobody


def test_a_base_that_speaks_already_is_left_alone() -> None:
    model, _, _, base, _ = adapted(llama_model, False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    added = extend(base, SMALL)
    report = resize(model, base, SMALL, added)
    assert (added.tokens, report.fresh, report.rows) == ((), (), 316)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert describe(added, report) == (
        "vocabulary: 0 tokens added, 34 reused; tables of 316 rows; 0 new by 'mean', 0 of them"
        " spare rows of the base, 0 without a token"
    )


def test_one_line_says_what_was_done() -> None:
    torch.manual_seed(0)
    model, base = qwen_model(BASE + SPARE), qwen(256)
    added = extend(base, SMALL)
    assert describe(added, resize(model, base, SMALL, added)) == (
        "vocabulary: 34 tokens added, 0 reused; tied table of 292 rows -> 316; 34 new by 'mean',"
        " 10 of them spare rows of the base, 0 without a token"
    )


def test_codes_without_tokens_get_rows_where_the_base_has_none() -> None:
    values = {
        "specials": {"speech_start": 282, "speech_end": 283},
        "codes": {"first": 290, "stride": 16, "sizes": (16,), "layers": (1,), "frame": (0,)},
        "sequence": "{text}{speech_start}{codes}{speech_end}",
    }
    convention = Convention.model_validate(values)
    model, old, _, base, report = adapted(qwen_model, True, convention)
    assert (len(base), report.rows, len(report.fresh), report.spare) == (282, 306, 18, 4)
    table = model.get_input_embeddings().weight
    assert table[:282].equal(old[:282]) and table[284:290].equal(old[284:290])
    again = resize(model, base, convention, extend(base, convention))
    assert again.fresh == ()


def test_half_precision_tables_keep_their_type() -> None:
    torch.manual_seed(0)
    model, base = qwen_model(BASE).bfloat16(), qwen(256)
    resize(model, base, SMALL, extend(base, SMALL), "spread")
    table = model.get_input_embeddings().weight
    assert table.dtype == torch.bfloat16 and table.isfinite().all()


@pytest.mark.parametrize(("build", "tied"), MODELS[1:3])
def test_plain_transformers_reads_what_was_saved(
    build: Callable[..., Any], tied: bool, tmp_path: Path
) -> None:
    model, _, _, base, _ = adapted(build, tied)
    model.save_pretrained(tmp_path)
    base.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    before, after = resolve(SMALL, base), resolve(SMALL, tokenizer)
    assert (before.codes == after.codes).all() and before.roles == after.roles
    prompt = head(Prompt("Hi"), after)
    assert prompt.tolist() == head(Prompt("Hi"), before).tolist()
    ids = torch.from_numpy(prompt)[None]
    assert again(ids).logits.equal(model.eval()(ids).logits)
    assert again.get_output_embeddings().weight.equal(model.get_output_embeddings().weight)


def test_the_sizes_of_known_checkpoints() -> None:
    """Rows and spare rows as on the real bases, with tables four wide."""
    model, base = qwen_model(151_936, width=8), qwen()
    sheen = family("sheen")
    report = resize(model, base, sheen, extend(base, sheen))
    assert (report.before, report.rows, report.spare) == (151_936, 163_959, 267)
    model, base = llama_model(128_256, width=8), llama()
    inworld = family("inworld")
    report = resize(model, base, inworld, extend(base, inworld))
    assert (report.rows, report.spare, report.unused) == (193_856, 0, 56)
