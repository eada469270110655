"""`qwen-snac` and `llama-codes` from the shell, on real recordings and tiny bases of the real
classes: the contract, from data to speech, pretraining then fine-tuning, what is refused.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tiny_codecs
import torch
from conftest import sheen, write_folder
from safetensors.torch import load_file

from sheen_cli import SheenError
from sheen_cli.babble import speech
from sheen_cli.backbones import resolve
from sheen_cli.rows import Rows
from sheen_cli.synthesis import recipe_of
from sheen_cli.testing import contract
from sheen_lm import miniature

SPEECH = Path(__file__).with_name("data") / "speech"
MIMI = ("model.codebooks=4", "model.codebook_size=64")
SMALL = (
    "model.convention={codes: {stride: 256, sizes: [256, 256, 256, 256, 256, 256, 256]}}",
)  # fmt: skip
RUN = (
    "--max-steps",
    "4",
    "train.accumulate=1",
    "train.threads=1",
    "train.workers=0",
    "log.every=1",
)

test_contract_of_qwen_snac = pytest.mark.usefixtures("kit")(contract("qwen-snac"))
test_contract_of_llama_codes = pytest.mark.usefixtures("kit")(contract("llama-codes"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("lm")
    miniature.base(home / "qwen", "qwen3")
    miniature.base(home / "llama", "llama")
    miniature.snac(home / "snac", codebook_size=256)
    miniature.mimi(home / "mimi")
    return home


def qwen(home: Path) -> tuple[str, ...]:
    return (f"model.base={home / 'qwen'}", f"model.codec={home / 'snac'}", *SMALL)


def llama(home: Path) -> tuple[str, ...]:
    return (f"model.base={home / 'llama'}", f"model.codec={home / 'mimi'}", *MIMI)


@pytest.fixture(scope="module")
def voice(home: Path) -> Path:
    """A run of `qwen-snac-lora`, as anybody types it, with a third of its rows as continuations."""
    recipe = ("--recipe", "qwen-snac-lora")
    sheen("prepare", *recipe, "--dataset", SPEECH, "--out", home / "data", *qwen(home))
    said = sheen("train", *recipe, "--data", home / "data", "--out", home / "run", *RUN,
                 *qwen(home), "model.clone=0.3").output  # fmt: skip
    assert "770 tokens added, 0 reused; tied table of 300 rows -> 1028" in said
    return home / "run"


def test_real_recordings_from_preparation_to_speech(home: Path, voice: Path) -> None:
    sound = home / "said.wav"
    said = sheen("synth", voice, "--text", "Good morning.", "--speaker", "allison_en", "-o", sound,
                 "--max-seconds", 1, "--retries", 0).output  # fmt: skip
    assert "frames" in said and "RMS" in said
    samples, rate = soundfile.read(sound)
    assert rate == 24_000 and len(samples) % 2048 == 0 and np.abs(samples).max() > 0.01

    ref = SPEECH / "allison_en-conf-muted.flac"
    cloned = home / "cloned.wav"
    sheen("synth", voice, "--ref", ref, "--icl", "--ref-text", "You are muted.", "--text", "One.",
          "-o", cloned, "--max-seconds", 1, "--retries", 0)  # fmt: skip
    assert np.abs(soundfile.read(cloned)[0]).max() > 0.01
    alone = sheen("synth", voice, "--ref", ref, "--text", "One.", "-o", cloned, code=2).output
    assert "takes no voice from a recording alone" in alone and "--icl" in alone


def test_s1_1_info_tells_how_long_the_rows_are(home: Path, voice: Path) -> None:
    """Percentiles of whole sequences: text, seven tokens a frame, the two around them."""
    path = home / "data" / "train.jsonl"
    facts = json.loads(sheen("info", path, "--json").output)
    counted = [len(row["text"].encode()) + 7 * len(row["audio_codes"]) + 2 for row in Rows(path)]
    spoken = [f"{row['speaker']}: ".encode() for row in Rows(path)]
    longest = max(count + len(name) for count, name in zip(counted, spoken, strict=True))
    assert facts["tokens"]["p100"] == longest and facts["tokens"]["p0"] > 20


def test_an_adapter_is_small_and_its_merge_says_the_same(home: Path, voice: Path) -> None:
    """In plain transformers, and in PEFT on the base with as many rows."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    sheen("export", voice, "--as", "merged", "-o", home / "merged")
    said = sheen("export", voice, "--as", "adapter", "-o", home / "adapter").output
    assert "base.resize_token_embeddings(1028)" in said
    base = AutoModelForCausalLM.from_pretrained(home / "qwen")
    base.resize_token_embeddings(1028, mean_resizing=False)
    peft = PeftModel.from_pretrained(base, home / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(home / "merged")
    tokens = torch.tensor([[1, 2, 3, 300, 400, 1027]])
    with torch.no_grad():
        assert torch.allclose(peft(tokens).logits, merged(tokens).logits, atol=1e-4)
    wrong = sheen("export", voice, "--as", "base", "-o", home / "no", code=2).output
    assert "it has merged, adapter" in wrong


def test_going_on_from_an_adapter_takes_its_merge(home: Path, voice: Path) -> None:
    train = ("train", "--recipe", "qwen-snac-lora", "--data", home / "data", *RUN, *qwen(home))
    said = sheen(*train, "--out", home / "no", f"model.base={voice / 'best'}", code=2).output
    assert "is an adapter" in said and "--as merged" in said
    sheen("export", voice, "--as", "merged", "-o", home / "first")
    said = sheen(*train, "--out", home / "second", f"model.base={home / 'first'}").output
    assert "0 tokens added, 770 reused" in said


def test_cloning_is_learnt_from_named_speakers_alone(home: Path, tmp_path: Path) -> None:
    unnamed = tmp_path / "unnamed"
    unnamed.mkdir()
    for number in range(3):
        soundfile.write(unnamed / f"{number}.wav", speech(f"word {number}", 24_000), 24_000)
        (unnamed / f"{number}.txt").write_text(f"word {number}")
    lines = ["file_name|text", *(f"{number}.wav|word {number}" for number in range(3))]
    (unnamed / "metadata.csv").write_text("\n".join(lines))
    recipe = ("--recipe", "qwen-snac-lora", *qwen(home))
    sheen("prepare", *recipe, "--dataset", unnamed, "--out", tmp_path / "data", "data.validation=0")
    said = sheen("train", *recipe, "--data", tmp_path / "data", "--out", tmp_path / "run", *RUN,
                 "model.clone=0.5", code=2).output  # fmt: skip
    assert "model.clone=0.5: no speaker of" in said and "name the speakers" in said


def test_a_stopped_run_goes_on(home: Path, voice: Path) -> None:
    said = sheen("train", "--out", voice, "--resume", "--max-steps", "6").output
    assert "tokens added" not in said  # the checkpoint's, not new ones
    steps = [json.loads(line) for line in (voice / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in steps) == 6


def test_whole_checkpoints_are_whole(home: Path, voice: Path) -> None:
    out = home / "whole"
    sheen("train", "--recipe", "qwen-snac", "--data", home / "data", "--out", out, *RUN,
          *qwen(home), "model.pack=true", "model.audio_only=true", "log.samples=0")  # fmt: skip
    said = sheen("export", out, "--as", "adapter", "-o", home / "none", code=2).output
    assert "is a whole model, without an adapter; take --as merged" in said
    sheen("export", out, "--as", "merged", "-o", home / "copy")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plain = AutoModelForCausalLM.from_pretrained(home / "copy")
    assert len(AutoTokenizer.from_pretrained(home / "copy")) == len(plain.lm_head.weight) == 1028
    written = load_file(out / "best" / "model.safetensors")
    for name, value in load_file(home / "copy" / "model.safetensors").items():
        assert torch.equal(value, written[name]), name


@pytest.mark.parametrize("kind", ["dac", "encodec"])
def test_other_codecs_from_preparation_to_speech(kind: str, home: Path, tmp_path: Path) -> None:
    codec = tiny_codecs.write(kind, tmp_path / kind)
    settings = (*llama(home), f"model.codec={codec}", "train.precision=fp32", "train.weights=fp32")
    recipe = ("--recipe", "llama-codes-sft", *settings)
    sound = write_folder(tmp_path / "set", ["one", "two"])
    data = ("--dataset", sound, "--out", tmp_path / "data", "data.validation=0")
    sheen("prepare", *data, *recipe)
    sheen("train", "--data", tmp_path / "data", "--out", tmp_path / "run", *recipe, *RUN,
          "log.samples=0")  # fmt: skip
    said = sheen("synth", tmp_path / "run", "--text", "two", "-o", tmp_path / "x.wav",
                 "--max-seconds", 0.3, "--retries", 0).output  # fmt: skip
    samples, rate = soundfile.read(tmp_path / "x.wav")
    assert "frames" in said and rate == 24_000 and np.abs(samples).max() > 0


# --- pretraining, then fine-tuning ----------------------------------------------------------------


def test_pretraining_then_fine_tuning(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    sft, pt = ("--recipe", "llama-codes-sft"), ("--recipe", "llama-codes-pt")
    sheen("prepare", *sft, "--dataset", SPEECH, "--out", "data/speech", *llama(home))
    Path("data/text").mkdir()
    text = "\n\n".join(f"Paragraph {number} says little." for number in range(200))
    Path("data/text/a.txt").write_text(text, "utf-8")
    settings = (*llama(home), "model.pretraining.window=128")
    said = sheen("prepare", *pt, "--out", "data/pt", *settings).output
    assert "speech: 14 documents" in said and "text (no language): 20." in said
    assert "nothing to do" in sheen("prepare", *pt, "--out", "data/pt", *settings).output
    sheen("train", *pt, "--data", "data/pt", "--out", "pt", *RUN, *settings)

    fewer = ("prepare", *pt, "--out", "no", *settings, "model.codebooks=2")
    said = sheen(*fewer, code=2).output
    assert "holds codes of 4 codebooks" in said and "not of 2 codebooks" in said
    mixed = sheen("train", *sft, "--data", "data/pt", "--out", "no", *llama(home), code=2).output
    assert "model.stage: pt -> sft" in mixed
    tuned = (*llama(home), "model.base=pt/best", *RUN)
    said = sheen("train", *sft, "--data", "data/speech", "--out", "sft", *tuned).output
    assert "0 tokens added, 258 reused" in said
    assert "s.wav: " in sheen("synth", "sft", "--text", "Hello.", "-o", "s.wav",
                              "--max-seconds", 1, "--retries", 0).output  # fmt: skip


def test_a_corpus_that_is_not_there_or_not_asked_for(home: Path, tmp_path: Path) -> None:
    prepare = ("prepare", "--recipe", "llama-codes-pt", "--out", tmp_path / "pt", *llama(home))
    source = "model.pretraining.sources=[{name: a, kind: %s, path: %s}]"
    said = sheen(*prepare, source % ("text", tmp_path / "no"), code=2).output
    assert "source a: nothing at" in said
    (tmp_path / "a.txt").write_text("Words.")
    said = sheen(*prepare, "--dataset", SPEECH, source % ("text", tmp_path), code=2).output
    assert "leave the data set out" in said
    said = sheen("prepare", "--recipe", "llama-codes-sft", "--dataset", SPEECH, *llama(home),
                 source % ("text", tmp_path), code=2).output  # fmt: skip
    assert "source a is text, which `stage: sft` does not learn from" in said
    said = sheen(*prepare, "model.pack=true", code=2).output
    assert "pack has no meaning in `stage: pt`" in said


# --- rows that bring their codes ------------------------------------------------------------------


def test_rows_may_bring_their_codes_and_then_no_codec_is_needed(home: Path, tmp_path: Path) -> None:
    lines = [
        {"id": f"{number}", "text": "one", "audio_codes": [[number, 2, 3, 4], [5, 6, 7, 8]] * 3}
        for number in range(4)
    ]
    given = tmp_path / "given.jsonl"
    given.write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
    broken = tmp_path / "mimi"  # its shape is known, but there are no weights
    broken.mkdir()
    (broken / "config.json").write_text((home / "mimi" / "config.json").read_text())
    settings = (*llama(home), f"model.codec={broken}")
    recipe = ("--recipe", "llama-codes-sft")
    sheen("prepare", *recipe, "--dataset", given, "--out", tmp_path / "data", *settings)
    said = sheen("train", *recipe, "--data", tmp_path / "data", "--out", tmp_path / "run", *RUN,
                 *settings, "data.validation=0.05", code=2).output  # fmt: skip
    assert "`sheen prepare` settles the data" in said
    said = sheen("train", *recipe, "--data", tmp_path / "data", "--out", tmp_path / "run", *RUN,
                 *settings).output  # fmt: skip
    assert "no samples of step 4" in said and "model.safetensors is missing" in said
    said = sheen("synth", tmp_path / "run", "--text", "one", code=2).output
    assert "model.safetensors is missing" in said
    source = f"model.pretraining.sources=[{{name: a, kind: speech, path: {tmp_path / 'data'}}}]"
    said = sheen("prepare", "--recipe", "llama-codes-pt", "--out", tmp_path / "pt", *settings,
                 source, "model.pretraining.window=64").output  # fmt: skip
    assert "a: 4 documents" in said

    lines[2]["audio_codes"][1][2] = 64
    lines[3]["text"] = "one <speech_start> two"
    given.write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
    sheen("prepare", *recipe, "--dataset", given, "--out", tmp_path / "bad", *settings)
    first, second = (tmp_path / "bad" / "rejected.jsonl").read_text("utf-8").splitlines()
    assert "64" in first and "bad-text" in second and "<speech_start>" in second


def test_a_checkpoint_hears_at_the_rate_of_its_own_codec(home: Path, tmp_path: Path) -> None:
    dac = tiny_codecs.write("dac", tmp_path / "dac", sampling_rate=16_000)
    settings = (*llama(home), f"model.codec={dac}")
    recipe = ("--recipe", "llama-codes-sft", *settings)
    sheen("prepare", *recipe, "--dataset", SPEECH, "--out", tmp_path / "data")
    sheen("train", *recipe, "--data", tmp_path / "data", "--out", tmp_path / "run", *RUN,
          "train.max_steps=1", "log.samples=0")  # fmt: skip
    _, backbone = recipe_of((tmp_path / "run" / "best").resolve(), [])
    assert backbone.spec.sample_rate == 16_000 and backbone.spec.frame_rate == 50
    sheen("synth", tmp_path / "run", "--ref", SPEECH / "allison_en-conf-muted.flac", "--icl",
          "--ref-text", "You are muted.", "--text", "One.", "-o", tmp_path / "x.wav",
          "--max-seconds", 0.2, "--retries", 0)  # fmt: skip
    assert soundfile.info(tmp_path / "x.wav").samplerate == 16_000


def test_an_export_speaks_by_its_backbones_recipe(home: Path, voice: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    sheen("export", voice, "--as", "merged", "-o", out)
    said = sheen("synth", out, "--text", "One.", "-o", tmp_path / "x.wav", *qwen(home)[1:],
                 "--max-seconds", 0.2, "--retries", 0).output  # fmt: skip
    assert "by 'qwen-snac-lora'" in said and "x.wav: " in said


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("model.family=opheus", "family: opheus is unknown; known are sheen, orpheus"),
        ("model.convention={codes: {frame: [0]}}", "frame must name each of the 7 codebooks once"),
        ("model.convention={sequence: '{text}{codes}'}", "sequence: {speech_end} must be in it"),
        ("model.convention={nothing: 1}", "model.convention.nothing: unknown key"),
        ("model.convention={codes: {tokem: a}}", "model.convention.codes.tokem: unknown key\n"),
        ("model.lora={rang: 4}", "model.lora.rang: unknown key; did you mean 'rank'?"),
        ("model.convention={codes: 5}", "convention: codes is a mapping, not 5"),
        ("model.stage=pt", "`stage: pt` needs sources"),
        ("model.freeze=[lm_head*]", "freeze has no effect with lora"),
        ("model.pretraining.window=9", "pretraining is for `stage: pt`"),
        ("model.base=/no/where", "model.base=/no/where: neither a folder nor a Hub id"),
    ],
)
def test_a_wrong_setting_is_one_line(setting: str, said: str) -> None:
    output = sheen(
        "prepare", "--recipe", "qwen-snac-lora", "--dataset", SPEECH, setting, code=2
    ).output
    assert said in output and "Traceback" not in output


def test_data_of_other_settings_name_the_key_as_it_is_set(home: Path, voice: Path) -> None:
    again = ("prepare", "--recipe", "qwen-snac-lora", "--dataset", SPEECH, "--out", home / "data")
    said = sheen(*again, *qwen(home), "model.longest=99", code=2).output
    assert "data made otherwise (model.longest: 2048 -> 99)" in " ".join(said.split())


def test_names_that_the_model_never_learnt_are_said(voice: Path, tmp_path: Path) -> None:
    synth = ("synth", voice, "--text", "One.", "-o", tmp_path / "x.wav", "--max-seconds", "0.3",
             "--retries", 0)  # fmt: skip
    known = "allison_en, carlo_it"
    said = " ".join(sheen(*synth).output.split())
    assert f"all rows that the model learnt from name their speaker: ask for one of {known}" in said
    said = " ".join(sheen(*synth, "--speaker", "Anna").output.split())
    assert f"no row that the model learnt from names Anna; it knows {known}" in said
    assert "learnt from" not in sheen(*synth, "--speaker", "carlo_it").output


def test_a_model_speaks_with_the_codec_of_its_data_alone(
    home: Path, voice: Path, tmp_path: Path
) -> None:
    other = miniature.snac(tmp_path / "other", seed=1, codebook_size=256)
    said = sheen("synth", voice, "--text", "One.", "-o", tmp_path / "x.wav",
                 f"model.codec={other}", code=2).output  # fmt: skip
    assert "the model's data was made by another codec" in " ".join(said.split())


def test_a_base_of_fewer_positions_than_a_row_is_refused(home: Path, tmp_path: Path) -> None:
    prepare = ("prepare", "--recipe", "qwen-snac-lora", "--dataset", SPEECH, "--out", tmp_path)
    said = sheen(*prepare, *qwen(home), "model.longest=5000", code=2).output
    assert "model.longest=5000 tokens are more than the 4096 positions of model.base=" in said


def test_rows_that_another_family_makes_too_long_stop_before_the_first_step(
    home: Path, voice: Path, tmp_path: Path
) -> None:
    sequence = "a" * 2000 + "{text}{speech_start}{codes}{speech_end}"
    more = json.dumps({"sequence": sequence, "codes": {"stride": 256, "sizes": [256] * 7}})
    train = ("train", "--recipe", "qwen-snac-lora", "--data", home / "data", *RUN, *qwen(home),
             f"model.convention={more}")  # fmt: skip
    said = " ".join(sheen(*train, "--out", tmp_path / "a", code=2).output.split())
    assert "rows, allison_" in said or "rows, carlo_" in said
    assert "more than model.longest=2048 tokens as this recipe writes them" in said


def test_a_long_row_is_counted_with_all_of_its_prompt(home: Path, tmp_path: Path) -> None:
    codes = [[number, 2, 3, 4] for number in range(8)]
    line = {"id": "a", "text": "one", "audio_codes": codes}
    given = tmp_path / "given.jsonl"
    others = [line, {**line, "id": "b", "text": "two", "instruct": "slowly, and with a low voice"}]
    given.write_text("".join(f"{json.dumps(each)}\n" for each in others), "utf-8")
    prepare = ("prepare", "--recipe", "llama-codes-sft", "--dataset", given, "--out",
               tmp_path / "data", *llama(home), "model.convention.instruct='({instruct}) '",
               "data.validation=0")  # fmt: skip
    sheen(*prepare, "model.longest=50")
    (rejected,) = (tmp_path / "data" / "rejected.jsonl").read_text("utf-8").splitlines()
    assert "too-long" in rejected and "more than model.longest=50" in rejected
    said = sheen(*prepare, "model.longest=80", code=2).output
    assert "model.longest: 50 -> 80" in said
    said = sheen(*prepare, "model.longest=50", "model.too_long=trim", "--overwrite").output
    assert "1 rows have more than model.longest=50 tokens; training cuts them" in said
    assert not (tmp_path / "data" / "rejected.jsonl").read_text("utf-8")
    sheen(*prepare, "model.longest=30", "model.too_long=trim", "--overwrite")
    (rejected,) = (tmp_path / "data" / "rejected.jsonl").read_text("utf-8").splitlines()
    assert "too-long" in rejected  # the prompt leaves no room for a frame


def test_layers_of_sheens_own_rows_are_read_as_they_are(home: Path, tmp_path: Path) -> None:
    rows = [
        {"text": "one", "snac_codes": [[1, 2], [3, 4, 5, 6], [*range(7, 15)]]},
        {"text": "two", "snac_codes": [[*range(7, 15)], [3, 4, 5, 6], [1, 2]]},
    ]
    given = tmp_path / "sheen.jsonl"
    given.write_text("".join(f"{json.dumps(each)}\n" for each in rows), "utf-8")
    sheen("prepare", "--recipe", "qwen-snac", "--dataset", given, "--out", tmp_path / "data",
          *qwen(home), "data.validation=0", "data.min_seconds=0.1")  # fmt: skip
    (row,) = Rows(tmp_path / "data" / "train.jsonl")
    assert row["audio_codes"] == [[1, 3, 4, 7, 8, 9, 10], [2, 5, 6, 11, 12, 13, 14]]
    (rejected,) = (tmp_path / "data" / "rejected.jsonl").read_text("utf-8").splitlines()
    assert (
        "sheen.jsonl:2" in rejected and "1:2:4, coarse to fine, but these hold 8, 4, 2" in rejected
    )


def test_codes_of_a_row_are_named_with_it(home: Path, voice: Path) -> None:
    recipe, backbone = resolve("qwen-snac-lora", list(qwen(home)))
    row: dict[str, Any] = dict(Rows(home / "data" / "train.jsonl")[0])
    for changed, said in (
        ({"audio_codes": [[0] * 6 + [256]]}, rf"row {row['id']}: .*256"),
        ({"audio_codes": [[0] * 6]}, rf"row {row['id']}: .*7"),
        ({"text": "  "}, rf"row {row['id']}: "),
        ({"text": "a <audio_end> b"}, rf"row {row['id']}: "),
        ({"audio_codes": None}, "text without speech"),
    ):
        with pytest.raises(SheenError, match=said):
            backbone.hook.collate(
                recipe=recipe,
                rows=[{**row, **changed}],
                seed=None,
                artifacts=home / "data" / "artifacts",
            )
