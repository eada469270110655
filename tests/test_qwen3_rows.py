"""What Qwen3-TTS rows are made of: codes, voices, references, and the forms in which they are laid
out.
"""

import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import sheen

from sheen_cli import Clip, Reference, Request, Skip
from sheen_cli.babble import speech
from sheen_cli.backbones import load
from sheen_cli.rows import Rows
from sheen_qwen3_tts import (
    Conditioning,
    Options,
    base,
    batches,
    codec,
    miniature,
    references,
    stock,
)
from sheen_qwen3_tts import model as models
from sheen_qwen3_tts.layout import IGNORE, VECTOR, parse, prefix
from sheen_qwen3_tts.voice import hear, wish

TEXTS = ("one two three", "four five", "six seven", "eight", "nine one two", "three four five six")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.build(tmp_path_factory.mktemp("rows") / "base").resolve()


def clip(number: int, speaker: str | None, **more: Any) -> Clip:
    text = TEXTS[number % len(TEXTS)]
    sound = speech(f"{text} {number}", 24_000)
    return Clip(f"clip-{number}", text, sound, 24_000, speaker, "en", **more)


@pytest.fixture(scope="module")
def clips(folder: Path) -> list[Clip]:
    """Five of Anna, three of Bo, one of Cy."""
    return [clip(number, name) for number, name in enumerate(["Anna"] * 5 + ["Bo"] * 3 + ["Cy"])]


def prepared(folder: Path, clips: list[Clip], artifacts: Path) -> list[Any]:
    artifacts.mkdir()
    return list(
        load("qwen3-tts").hook.prepare(recipe=recipe(folder), clips=clips, artifacts=artifacts)
    )


def recipe(folder: Path) -> Any:
    from sheen_cli.backbones import resolve

    return resolve("qwen3tts-lora", [f"model.base={folder}"])[0]


@pytest.fixture(scope="module")
def made(folder: Path, clips: list[Clip], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Rows as the host would write them, and the tables beside them."""
    artifacts = tmp_path_factory.mktemp("made") / "artifacts"
    rows = prepared(folder, clips, artifacts)
    facts = [{"id": c.id, "text": c.text, "language": c.language} for c in clips]
    whole = [{**fact, **row} for fact, row in zip(facts, rows, strict=True)]
    return json.loads(json.dumps(whole)), references.load(artifacts)


def test_the_reference_of_a_row_is_another_clip_of_its_speaker(
    made: Any, clips: list[Clip]
) -> None:
    rows, tables = made
    speaker = {each.id: each.speaker for each in clips}
    assert tables.names == ("anna", "bo", "cy")
    for row, each in zip(rows, clips, strict=True):
        assert tables.names[row["voice"]] == each.speaker.lower()
        if each.speaker == "Cy":
            assert row["reference"] is None
            continue
        heard = tables.references[row["reference"]]
        assert heard.name != each.id and speaker[heard.name] == each.speaker
        assert row["ref_audio"] is row["ref_text"] is None  # nothing lies in a file
    assert len({row["reference"] for row in rows[:5]}) > 1  # not one for all


def test_vectors_and_codes_are_those_of_the_clips(
    made: Any, clips: list[Clip], folder: Path
) -> None:
    rows, tables = made
    encoder, spoken = codec.speaker_encoder(folder), codec.load(folder)
    mean = torch.stack([codec.vector(encoder, each.audio) for each in clips[:5]]).mean(0)
    torch.testing.assert_close(tables.voices[0], mean)
    by_id = {each.id: each for each in clips}
    for heard in tables.references:
        assert torch.equal(heard.vector, codec.vector(encoder, by_id[heard.name].audio))
        assert torch.equal(heard.codes, codec.encode(spoken, by_id[heard.name].audio))
    for row, each in zip(rows, clips, strict=True):
        assert len(row["audio_codes"]) == -(-len(each.audio) // codec.FRAME)


def test_references_are_few_and_of_a_good_length(folder: Path, tmp_path: Path) -> None:
    long = np.resize(speech("one", 24_000), 24_000 * 16)
    good = np.resize(speech("two", 24_000), 24_000 * 4)
    many = [replace(clip(number, "a"), id=f"short-{number}") for number in range(12)]
    many += [replace(clip(0, "a"), id="long", audio=long)]
    many += [replace(clip(0, "a"), id=f"good-{n}", audio=good) for n in range(3)]
    prepared(folder, many, tmp_path / "artifacts")
    names = [heard.name for heard in references.load(tmp_path / "artifacts").references]
    assert len(names) == references.MOST and "long" not in names
    assert {"good-0", "good-1", "good-2"} <= set(names)
    prepared(folder, many, tmp_path / "again")
    assert names == [heard.name for heard in references.load(tmp_path / "again").references]


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streaming"])
@pytest.mark.parametrize("conditioning", ["slot", "xvector", "icl"])
def test_a_row_of_any_form_is_what_synth_lays_out(
    folder: Path, made: Any, clips: list[Clip], conditioning: str, streaming: bool
) -> None:
    """The same prompt and vector, from the row and its artifacts as from a request."""
    rows, tables = made
    row, form = rows[0], batches.Form(conditioning, True, streaming)
    voices = dict(zip(tables.names, tables.voices, strict=True))
    speaking = models.load(folder, voices)
    heard = next(c for c in clips if c.id == tables.references[row["reference"]].name)
    reference = Reference(heard.audio, heard.text, conditioning == "icl")
    if conditioning == "slot":
        request = Request(row["text"], speaker="anna", language="en")
    else:
        request = Request(row["text"], language="en", reference=reference)
    taken = request.reference and hear(speaking, codec.load(folder), request.reference)
    asked = wish(speaking, request, taken)
    asked = replace(asked, prompt=replace(asked.prompt, streaming=streaming))
    batch = batches.collate(base.read(folder), [row], [form], tables)
    torch.testing.assert_close(batch.inputs["vectors"][0], asked.vector)
    start = prefix(asked.prompt, speaking.base.ids)
    length = len(start.text)
    assert batch.inputs["text"][0, :length].tolist() == start.text.tolist()
    assert batch.inputs["codec"][0, :length].tolist() == start.codec.tolist()
    targets = batch.inputs["targets"][0]
    assert (targets[: length - 1] == IGNORE).all()  # nothing of the reference is learnt
    assert targets[length - 1].tolist() == row["audio_codes"][0]
    assert batch.counts["talker"] == len(row["audio_codes"]) + 1


def test_shares_are_drawn_and_a_seed_settles_them() -> None:
    options = Options(
        conditioning=Conditioning(slot=1, xvector=1, icl=2), named_language=0.25, streaming=0.75
    )
    forms = batches.drawn(3, 4_000, options)
    assert forms == batches.drawn(3, 4_000, options) != batches.drawn(4, 4_000, options)
    share = {
        name: np.mean([form.conditioning == name for form in forms])
        for name in ("slot", "xvector", "icl")
    }
    assert share == pytest.approx({"slot": 0.25, "xvector": 0.25, "icl": 0.5}, abs=0.03)
    assert np.mean([form.named for form in forms]) == pytest.approx(0.25, abs=0.03)
    assert np.mean([form.streaming for form in forms]) == pytest.approx(0.75, abs=0.03)
    assert batches.drawn(None, 2, options) == [batches.Form("slot", True, False)] * 2
    with pytest.raises(ValueError, match="all shares are 0"):
        Conditioning(slot=0, xvector=0, icl=0)


def test_a_row_without_a_reference_or_its_words_takes_the_form_that_it_can(
    folder: Path, made: Any
) -> None:
    rows, tables = made
    opened = base.read(folder)
    forms = {name: batches.Form(name) for name in ("slot", "xvector", "icl")}

    def laid(row: Any, form: str, tables: references.Tables = tables) -> Any:
        return batches.lay(opened, row, forms[form], tables)

    alone = rows[-1]
    for form in ("xvector", "icl"):
        assert np.array_equal(laid(alone, form).codec, laid(alone, "slot").codec)
        assert torch.equal(laid(alone, form).vector, tables.voices[2])
    mute = replace(tables, references=[replace(heard, text=None) for heard in tables.references])
    assert np.array_equal(laid(rows[0], "icl", mute).codec, laid(rows[0], "xvector").codec)
    prompt, frames = parse(
        replace_rows(laid(rows[0], "icl"), opened), opened.ids, len(rows[0]["audio_codes"])
    )
    assert prompt.speaker == VECTOR and prompt.reference is not None
    heard = tables.references[rows[0]["reference"]]
    assert prompt.reference[1] == references.frames(heard.codes)
    assert frames.tolist() == rows[0]["audio_codes"]


def replace_rows(laid: Any, opened: base.Base) -> Any:
    from sheen_qwen3_tts.layout import Rows

    return Rows(laid.text, laid.codec, ())


def test_references_and_codes_that_the_source_gives(
    folder: Path, clips: list[Clip], tmp_path: Path
) -> None:
    wav, bad = tmp_path / "ref.wav", tmp_path / "bad.wav"
    soundfile.write(wav, np.stack([speech("nine ten", 44_100)] * 2, 1), 44_100)
    bad.write_bytes(b"RIFF")
    codes = np.arange(5 * 16).reshape(5, 16) % 32
    given = [
        replace(clips[0], ref_audio=wav, ref_text="nine ten"),
        replace(clips[1], audio=np.zeros(0, np.float32), codes=codes, ref_audio=wav),
        replace(clips[2], ref_audio=bad),
    ]
    rows = prepared(folder, given, tmp_path / "artifacts")
    tables = references.load(tmp_path / "artifacts")
    assert rows[0]["ref_audio"] == str(wav) and rows[0]["ref_text"] == "nine ten"
    assert tables.references[rows[0]["reference"]].name == wav.name  # no machine's path
    assert rows[1]["audio_codes"] == codes.tolist()  # taken as they are
    assert isinstance(rows[2], Skip) and "bad.wav" in rows[2].detail
    own = [codec.vector(codec.speaker_encoder(folder), each.audio) for each in (clips[0], clips[2])]
    reference = tables.references[rows[0]["reference"]].vector
    torch.testing.assert_close(tables.voices[0], torch.stack([*own, reference]).mean(0))


def test_what_is_said_of_a_set(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wav = tmp_path / "ref.wav"
    soundfile.write(wav, speech("nine", 24_000), 24_000)
    some = [replace(clip(0, "a"), language="ha"), replace(clip(1, "b"), language="Auto")]
    prepared(folder, [replace(each, ref_audio=wav) for each in some], tmp_path / "one")
    said = capsys.readouterr().err
    assert "1 of 2 rows are of the language 'ha', which the base lacks" in " ".join(said.split())
    assert "is the reference of several speakers (a, b)" in " ".join(said.split())
    assert "2 of 2 rows have a reference without words" in " ".join(said.split())
    prepared(folder, some, tmp_path / "two")
    said = " ".join(capsys.readouterr().err.split())
    assert "2 of 2 rows have no other clip of their speaker" in said


def test_batches_of_the_codec_are_of_like_length_and_capped() -> None:
    lengths = [5, 1, 9, 3, 3, 20]
    order = sorted(range(6), key=lengths.__getitem__)
    cut = list(codec.within(order, lengths, 10))
    assert [number for batch in cut for number in batch] == order
    assert all(
        len(batch) == 1 or len(batch) * max(lengths[n] for n in batch) <= 10 for batch in cut
    )
    assert [5] in cut and max(map(len, cut)) == 3


def test_a_clips_codes_do_not_depend_on_its_batch(folder: Path, clips: list[Clip]) -> None:
    spoken = codec.load(folder)
    alone = [codec.encode(spoken, each.audio) for each in clips]
    together = dict((each.id, codes) for each, codes in codec.encoded(spoken, clips, seconds=4.0))
    assert list(together) == [each.id for each in clips]  # in order
    for each, codes in zip(clips, alone, strict=True):
        assert codes.shape == together[each.id].shape
        assert torch.equal(codes[-1], together[each.id][-1])  # the clip's end, above all
        assert (codes == together[each.id]).float().mean() >= 0.99  # near ties may fall otherwise


def test_data_of_another_codec_is_refused(folder: Path, clips: list[Clip], tmp_path: Path) -> None:
    from sheen_cli import SheenError

    prepared(folder, clips[:2], tmp_path / "artifacts")
    codec.check(folder, tmp_path / "artifacts", "data")
    facts = json.loads((tmp_path / "artifacts" / codec.FACTS).read_text("utf-8"))
    (package,) = set(facts) & set(stock.SHARERS)
    for name in (package, "transformers"):
        assert facts[name] == version(name)
    other = miniature.build(tmp_path / "other", seed=1)
    with pytest.raises(SheenError, match="data was made by another codec"):
        codec.check(other, tmp_path / "artifacts", "data")


def official(folder: Path, home: Path) -> tuple[Path, list[dict[str, Any]]]:
    """The official trainer's JSONL, of clips whose codes are there and whose sound is not."""
    spoken, lines = codec.load(folder), list[dict[str, Any]]()
    home.mkdir()
    soundfile.write(home / "ref.wav", speech("nine ten one", 24_000), 24_000)
    for number, text in enumerate(TEXTS):
        codes = codec.encode(spoken, speech(text, 24_000)).tolist()
        line = {"audio": f"{number}.wav", "text": text, "ref_audio": "ref.wav"}
        lines.append({**line, "audio_codes": codes})
    return home / "official.jsonl", lines


def mels(path: Path) -> torch.Tensor:
    """A reference as the official data set reads it (1, frames, 128); at 24 kHz or not at all."""
    from qwen_tts.core.models.modeling_qwen3_tts import mel_spectrogram

    sound, rate = soundfile.read(path, dtype="float32")
    assert rate == 24_000 and sound.ndim == 1
    shape = {"n_fft": 1024, "num_mels": 128, "hop_size": 256, "win_size": 1024}
    found: torch.Tensor = mel_spectrogram(
        torch.from_numpy(sound)[None], sampling_rate=rate, fmin=0, fmax=12_000, **shape
    )
    return found.transpose(1, 2)


def test_what_prepare_writes_is_what_the_official_script_reads(
    folder: Path, tmp_path: Path
) -> None:
    """Of one speaker's clips of other rates, which that script refuses, and of several lengths,
    whose spectrograms it could not put together.
    """
    data, out = tmp_path / "set", tmp_path / "out"
    data.mkdir()
    lines = ["file_name|text|speaker|language"]
    for number, text in enumerate(TEXTS):
        rate = (22_050, 44_100)[number % 2]
        soundfile.write(data / f"{number}.wav", speech(f"{text} {number}", rate), rate)
        lines.append(f"{number}.wav|{text}|Anna|en")
    (data / "metadata.csv").write_text("\n".join([*lines, ""]))
    sheen("prepare", "--recipe", "qwen3tts-lora", "--dataset", data, "--out", out, "--keep-audio",
          f"model.base={folder}")  # fmt: skip
    rows = [json.loads(line) for line in (out / "train.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) > 3 and {row["text"] for row in rows} <= set(TEXTS)
    for row in rows:
        assert isinstance(row["text"], str) and row["text"].strip()
        assert mels(Path(row["audio"])).shape[0] == 1  # in a file of that rate
        codes = row["audio_codes"]
        assert all(type(code) is int and 0 <= code < 32 for frame in codes for code in frame)
        assert {len(frame) for frame in codes} == {16}
        samples = soundfile.info(row["audio"]).frames
        assert len(codes) == -(-samples // codec.FRAME)
    heard = [mels(Path(row["ref_audio"])) for row in rows]
    assert len({row["ref_audio"] for row in rows}) == 1
    assert torch.cat(heard, dim=0).shape == (len(rows), heard[0].shape[1], 128)
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        torch.cat([mels(Path(row["audio"])) for row in rows], dim=0)  # so not any file would do


def put(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


def test_the_official_jsonl_trains_as_it_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, lines = official(folder, tmp_path / "theirs")
    put(path, lines)
    settings = [f"model.base={folder}", "model.selftest=false", "log.samples=0"]
    said = sheen("train", "--recipe", "qwen3tts-lora", "--data", path, "--max-steps", "2",
                 "--out", "run", *settings)  # fmt: skip
    assert "preparing" in said.output and (tmp_path / "run" / "best").exists()
    rows = [
        row for name in ("train", "validation") for row in Rows(Path(f"data/official/{name}.jsonl"))
    ]
    assert sorted(row["text"] for row in rows) == sorted(TEXTS)
    codes = {line["text"]: line["audio_codes"] for line in lines}
    assert all(row["audio_codes"] == codes[row["text"]] for row in rows)
    tables = references.load(Path("data/official/artifacts"))
    vector = codec.vector(codec.speaker_encoder(folder), speech("nine ten one", 24_000))
    torch.testing.assert_close(tables.voices[0], vector, atol=1e-3, rtol=0)  # 16-bit sound


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda codes: [[99] * 16, *codes],
            "official.jsonl:1: audio_codes: frame 0, codebook 0: 99",
        ),
        (lambda codes: [frame[:8] for frame in codes], "frames x 16 are wanted"),
        (lambda codes: codes[:1] * 9, "the codec hears the same in every frame"),
    ],
    ids=["range", "codec", "constant"],
)
def test_codes_that_cannot_be_are_named(
    folder: Path, tmp_path: Path, spoil: Any, message: str
) -> None:
    path, lines = official(folder, tmp_path / "theirs")
    put(path, [{**line, "audio_codes": spoil(line["audio_codes"])} for line in lines])
    said = sheen(
        "prepare", "--dataset", path, "--out", tmp_path / "o", f"model.base={folder}", code=2
    )
    assert "no usable row" in said.output and message in " ".join(said.output.split())


def test_a_row_is_never_its_own_reference_under_another_name(
    folder: Path, clips: list[Clip], tmp_path: Path
) -> None:
    wav = tmp_path / "copy.wav"
    sound = (clips[0].audio * 2**15).round().clip(-(2**15), 2**15 - 1) / 2**15
    soundfile.write(wav, sound, 24_000)
    first = replace(clips[0], audio=sound.astype(np.float32))
    twins = [first, replace(first, id="twin"), replace(first, id="third", ref_audio=wav), clips[1]]
    rows = prepared(folder, twins, tmp_path / "artifacts")
    tables = references.load(tmp_path / "artifacts")
    for row in rows:
        heard = tables.references[row["reference"]]
        assert heard.codes.tolist() != row["audio_codes"]


def test_the_words_of_a_given_reference_may_come_with_any_row(
    folder: Path, clips: list[Clip], tmp_path: Path
) -> None:
    wav = tmp_path / "ref.wav"
    soundfile.write(wav, speech("nine ten", 24_000), 24_000)
    some = [replace(clips[0], ref_audio=wav), replace(clips[1], ref_audio=wav, ref_text="nine ten")]
    rows = prepared(folder, some, tmp_path / "artifacts")
    assert [row["ref_text"] for row in rows] == ["nine ten"] * 2


def test_a_given_reference_that_is_a_clip_of_the_set_has_its_words(
    folder: Path, clips: list[Clip], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the official trainer recommends its file: one recording is the reference of all rows."""
    wavs = [tmp_path / f"{number}.wav" for number in range(3)]
    for wav, each in zip(wavs, clips, strict=False):
        soundfile.write(wav, each.audio, 24_000, "FLOAT")
    some = [
        replace(each, path=wav, ref_audio=wavs[1]) for wav, each in zip(wavs, clips, strict=False)
    ]
    rows = prepared(folder, some, tmp_path / "artifacts")
    assert "without words" not in capsys.readouterr().err
    assert [row["ref_audio"] for row in rows] == [str(wavs[1])] * 3
    assert [row["ref_text"] for row in rows] == [some[1].text] * 3
    tables = references.load(tmp_path / "artifacts")
    heard = [tables.references[row["reference"]] for row in rows]
    assert heard[0].text == heard[2].text == some[1].text != heard[1].text


def test_the_rows_of_a_speaker_name_one_file_as_their_reference(
    folder: Path, tmp_path: Path
) -> None:
    some = [
        replace(clip(number, "ab"[number % 2]), path=tmp_path / f"{number}.wav")
        for number in range(5)
    ]
    rows = prepared(folder, some, tmp_path / "artifacts")
    texts = {str(each.path): each.text for each in some}
    for mine in (rows[::2], rows[1::2]):
        assert len({row["ref_audio"] for row in mine}) == 1
        assert all(row["ref_text"] == texts[row["ref_audio"]] for row in mine)
    assert rows[0]["ref_audio"] != rows[1]["ref_audio"]
    assert len({row["reference"] for row in rows[::2]}) > 1  # what is trained on is not that alone


def test_a_base_in_a_relative_folder_is_the_same_from_elsewhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    assert Options(base=folder.name).base == str(folder)
    assert Options(base="a/b").base == "a/b"
    more = Options(new_languages={"norwegian": "german", "hausa": "english"})
    assert more.tags == (("hausa", "english"), ("norwegian", "german"))
