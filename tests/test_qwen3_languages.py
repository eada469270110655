"""Languages that the base lacks: tags of their own, trained by adapters or whole, and exported."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import sheen
from safetensors.torch import load_file

from sheen_cli import SheenError
from sheen_cli.babble import speech
from sheen_cli.rows import Rows
from sheen_cli.synthesis import Voice
from sheen_qwen3_tts import base, batches, checkpoint, languages, miniature, references, stock

TEXTS = ("daya biyu", "uku hudu", "biyar", "shida bakwai", "takwas tara", "goma")
NEW = "model.new_languages={hausa: english}"
SHORT = ["--max-steps", "4", "train.batch_size=2", "log.every=1", "log.samples=0", NEW,
         "model.named_language=1", "train.learning_rate=1e-2"]  # fmt: skip
TABLE = "talker.model.codec_embedding.weight"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, forked: None) -> Path:
    """A tiny base, recordings of which half are Hausa, and a run with adapters and a whole one."""
    home = tmp_path_factory.mktemp("languages")
    miniature.build(home / "base")
    (home / "set" / "wavs").mkdir(parents=True)
    lines = ["file_name|text|speaker|language"]
    for number, text in enumerate(TEXTS):
        soundfile.write(home / "set" / "wavs" / f"{number}.wav", speech(text, 24_000), 24_000)
        lines.append(f"{number}.wav|{text}|Anna|{('ha', 'en')[number % 2]}")
    (home / "set" / "metadata.csv").write_text("\n".join(lines))
    own = f"model.base={home / 'base'}"
    out = ["--dataset", home / "set", "--out", home / "data"]
    said = sheen("prepare", "--recipe", "qwen3tts-lora", *out, own, NEW, "data.validation=0")
    assert "lacks" not in said.output
    for name in ("full", "lora"):
        run = ["--recipe", f"qwen3tts-{name}", "--data", home / "data", "--out", home / name]
        sheen("train", *run, *SHORT, own, f"model.selftest={str(name == 'lora').lower()}")
    return home


def test_a_new_language_takes_a_free_row_and_is_known_by_name_and_code(home: Path) -> None:
    plain, more = base.read(home / "base"), base.read(home / "base", (("hausa", "en"),))
    assert plain.language("ha") is None and not plain.added
    row = more.language("ha")
    assert row == more.language("Hausa") == more.languages["hausa"]
    assert row in plain.free() and row not in more.free()
    assert more.added == {"hausa": (row, plain.languages["english"])}
    again = base.extended(more, {"hausa": "english"})  # it has it now
    assert again.added == {} and again.languages == more.languages
    with pytest.raises(SheenError, match=r"from 'klingon', which the base lacks; it has chinese"):
        base.read(home / "base", (("hausa", "klingon"),))


def test_a_language_is_known_by_whatever_code_a_data_set_has() -> None:
    names = {
        "norwegian": "no nor nb nb-NO nb_NO nob nn nno", "javanese": "jv jw jav jv-ID",
        "chinese": "zh zho cmn zh-Hant-TW chi", "cantonese": "yue", "igbo": "ig ibo",
        "hausa": "ha hau Hausa", "english": "en eng en_US", "german": "de deu ger",
        "french": "fr fra", "spanish": "spa", "italian": "ita", "portuguese": "por pt-BR",
        "russian": "rus", "japanese": "jpn", "korean": "kor", "yoruba": "yo yor",
        "swahili": "sw swa swh", "amharic": "amh", "hindi": "hin", "persian": "fa fas pes",
        "beijing_dialect": "beijing_dialect", "klingon": "Klingon", "auto": "auto", "": " ",
    }  # fmt: skip
    for name, codes in names.items():
        assert {languages.spelt_out(code) for code in codes.split(" ")} == {name}
    # every code that stands for another leads to a name
    assert all(languages.spelt_out(code) != code for code in languages.SAME if code != "lao")
    known = {languages.spelt_out(code) for code in languages.SAME}
    assert len(known) == len(set(languages.SAME.values()))
    assert not set(languages.SAME) & set(languages.LACKING)


def test_rows_are_laid_out_with_the_tag(home: Path) -> None:
    opened = base.read(home / "base", (("hausa", "english"),))
    tables = references.load(home / "data" / "artifacts")
    for row in Rows(home / "data" / "train.jsonl"):
        codec = batches.lay(opened, row, batches.SPOKEN, tables).codec
        wanted = opened.languages[{"ha": "hausa", "en": "english"}[row["language"]]]
        assert wanted in codec[:8, 0]


def test_adapters_train_the_row_of_the_new_language_and_no_other(home: Path) -> None:
    best = (home / "lora" / "best").resolve()
    state, start = load_file(best / checkpoint.ADAPTER), load_file(home / "base/model.safetensors")
    rows = state["language_embedding"]
    english = base.read(home / "base").languages["english"]
    assert rows.shape == (1, 16) and not torch.allclose(rows[0], start[TABLE][english].float())
    voice = Voice(home / "lora")
    assert torch.equal(voice.model.talker.language_embedding, rows)
    table = voice.model.talker.model.codec_embedding.weight
    row = voice.model.base.languages["hausa"]
    before = start[TABLE].float().clone()
    before[row] = before[english]  # where it started
    torch.testing.assert_close(table, before)


@pytest.mark.parametrize("run", ["lora", "full"])
def test_it_is_spoken_and_exported(home: Path, run: str) -> None:
    """Greedy speech of the export in the stock package is that of the checkpoint."""
    wav = home / f"{run}.wav"
    sheen("synth", home / run, "--language", "ha", "--text", "biyu", "-o", wav, "--greedy",
          "--max-seconds", "0.8")  # fmt: skip
    ours, _ = soundfile.read(wav)
    sheen("export", home / run, "--as", "custom-voice", "-o", home / f"{run}-export",
          "model.export_precision=fp32")  # fmt: skip
    config = json.loads((home / f"{run}-export" / "config.json").read_text())["talker_config"]
    row = config["codec_language_id"]["hausa"]
    assert row not in config["spk_id"].values()
    assert "hausa" not in (home / "base" / "config.json").read_text()  # the base is untouched
    theirs = stock.load().Qwen3TTSModel.from_pretrained(str(home / f"{run}-export"))
    (said,), _ = theirs.generate_custom_voice(
        "biyu", speaker="anna", language="hausa", do_sample=False, subtalker_dosample=False,
        repetition_penalty=1.05, max_new_tokens=10,
    )  # fmt: skip
    length = min(len(said), len(ours))
    assert length >= 5 * 1_920
    assert np.abs(said[:length] - ours[:length]).max() < 1e-4 + 2 / 2**15


def test_the_tag_is_heard(home: Path) -> None:
    found = []
    for language in ("hausa", "english", "auto"):
        said = sheen("synth", home / "lora", "--language", language, "--text", "biyu", "--greedy",
                     "-o", home / "tag.wav", "--max-seconds", "0.8", "--json")  # fmt: skip
        found.append(json.loads(said.stdout)["nll"]["talker"])
    assert len(set(found)) == 3


def test_a_whole_run_goes_on_after_the_checkpoint_that_it_resumed_from_is_gone(home: Path) -> None:
    run = ["--recipe", "qwen3tts-full", "--data", home / "data", "--out", home / "full", "--resume"]
    more = ["train.save_every=1", "train.keep=1", "model.selftest=false"]
    settings = [each for each in SHORT if each not in ("--max-steps", "4")]
    own = f"model.base={home / 'base'}"
    sheen("train", *run, "--max-steps", "7", *settings, *more, own)
    assert not (home / "full" / "checkpoint-4").exists()
    config = json.loads((home / "full" / "best" / "config.json").read_text())["talker_config"]
    assert "hausa" in config["codec_language_id"]
    sheen("synth", home / "full", "--language", "hausa", "--text", "uku", "-o", home / "x.wav",
          "--max-seconds", "0.5")  # fmt: skip


def test_what_is_said_of_new_languages_that_teach_nothing(home: Path, tmp_path: Path) -> None:
    new = "model.new_languages={norwegian: german, english: german}"
    said = sheen("prepare", "--recipe", "qwen3tts-lora", "--dataset", home / "set", "--out",
                 tmp_path / "data", f"model.base={home / 'base'}", new)  # fmt: skip
    said = " ".join(said.output.split())
    assert "no row is of 'norwegian', so its tag learns nothing" in said
    assert "the base has 'english' already" in said
