"""The codecs of codec language models: equal to their packages' own calls on weights of the real
classes, and a clear line for what they cannot hear, say or open.
"""

import json
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from fakehub import FakeHub
from safetensors.torch import load_file
from tiny_codecs import write
from warm import Warm

from sheen_cli import Clip, SheenError
from sheen_lm import codecs
from sheen_lm.codecs import codec as codec_file
from sheen_lm.codecs import snac
from sheen_lm.layout import verified

STOCK = ("mimi", "dac", "encodec")
ALL = ("snac", *STOCK)
SPEECH = Path(__file__).parent / "data" / "speech"
SAMPLES = {"snac": 2048, "mimi": 1920, "dac": 320, "encodec": 320}
BOOKS = {"snac": 7, "mimi": 6, "dac": 4, "encodec": 8}


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Hugging Face's cache, where SNAC's weights are kept as safetensors."""
    with pytest.MonkeyPatch.context() as patch:
        where = tmp_path_factory.mktemp("cache")
        patch.setattr("huggingface_hub.constants.HF_HOME", str(where))
        yield where


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("codecs")
    return {kind: write(kind, root / kind) for kind in ALL}


@pytest.fixture(scope="module")
def loaded(folders: dict[str, Path]) -> dict[str, codecs.Codec]:
    return {kind: codecs.load(str(folder)) for kind, folder in folders.items()}


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    """Four recordings, 1.3 to 4 s."""
    names = ("is-set-to", "telephone-number", "conf-muted", "dictate-record_mode")
    paths = [path for path in sorted(SPEECH.glob("*.flac")) if path.stem.endswith(names)]
    assert len(paths) >= 4
    return [soundfile.read(path, dtype="float32")[0] for path in paths[:4]]


def whole(audio: np.ndarray, samples: int) -> torch.Tensor:
    return torch.from_numpy(np.pad(audio, (0, -len(audio) % samples)))[None, None]


def refused(*arguments: Any, **more: Any) -> str:
    """The one line with which a codec is not loaded."""
    with pytest.raises(SheenError) as caught:
        codecs.load(*arguments, **more)
    line = str(caught.value)
    assert "\n" not in line
    return line


# --- equal to the packages' own -------------------------------------------------------------------


def test_snac_is_the_packages_own(
    folders: dict[str, Path], loaded: dict[str, codecs.Codec], clips: list[np.ndarray]
) -> None:
    from snac import SNAC

    own, ours = SNAC.from_pretrained(str(folders["snac"])), loaded["snac"]
    for clip in clips:
        with torch.inference_mode():
            coarse, middle, fine = own.encode(torch.from_numpy(clip)[None, None])
            torch.manual_seed(codec_file.SEED)
            said = own.decode([coarse, middle, fine])[0, 0].numpy()
        codes = ours.encode(clip)
        assert codes.shape == (-(-len(clip) // 2048), 7) and codes.dtype == np.int64
        assert np.array_equal(codes[:, 0], coarse[0])
        assert np.array_equal(codes[:, 1:3].ravel(), middle[0])
        assert np.array_equal(codes[:, 3:].ravel(), fine[0])
        assert all(len(np.unique(column)) > len(codes) // 2 for column in codes.T)
        assert np.array_equal(ours.decode(codes), said) and said.std() > 1e-3


def stock_codes(kind: str, own: Any, sound: torch.Tensor, books: int) -> Any:
    """As the package's documentation encodes and decodes: codes (books, frames) and sound."""
    if kind == "mimi":
        codes = own.encode(sound, num_quantizers=books).audio_codes
        return codes[0], own.decode(codes).audio_values[0, 0]
    if kind == "dac":
        codes = own.encode(sound, n_quantizers=books).audio_codes
        return codes[0], own.decode(audio_codes=codes).audio_values[0]
    found = own.encode(sound, bandwidth={2: 0.9, 4: 1.8, 8: 3.6}[books])
    said = own.decode(found.audio_codes, found.audio_scales).audio_values
    return found.audio_codes[0, 0], said[0, 0]


@pytest.mark.parametrize(
    "kind, books",
    [("mimi", 6), ("mimi", 3), ("dac", 4), ("dac", 2), ("encodec", 8), ("encodec", 4)],
)
def test_the_codecs_of_transformers_are_its_own(
    kind: str, books: int, folders: dict[str, Path], clips: list[np.ndarray]
) -> None:
    from transformers import AutoModel

    own = AutoModel.from_pretrained(folders[kind])
    ours = codecs.load(str(folders[kind]), codebooks=books)
    for clip in clips[:2]:
        with torch.inference_mode():
            expected, said = stock_codes(kind, own, whole(clip, SAMPLES[kind]), books)
        codes = ours.encode(clip)
        assert codes.shape == (-(-len(clip) // SAMPLES[kind]), books)
        assert np.array_equal(codes.T, expected)
        assert len(np.unique(codes, axis=0)) > len(codes) // 4
        back = ours.decode(codes)
        assert len(back) == len(codes) * SAMPLES[kind]
        assert np.array_equal(back[: len(said)], said.clip(-1, 1).numpy()) and said.std() > 1e-6
        assert not back[len(said) :].any() and len(back) - len(said) < 10


def test_an_encodec_cuts_the_next_larger_bandwidth(
    folders: dict[str, Path], loaded: dict[str, codecs.Codec], clips: list[np.ndarray]
) -> None:
    three = codecs.load(str(folders["encodec"]), codebooks=3)
    codes = three.encode(clips[0])
    assert np.array_equal(codes, loaded["encodec"].encode(clips[0])[:, :3])
    assert len(three.decode(codes)) == len(codes) * 320


@pytest.mark.parametrize("kind", ALL)
def test_what_a_codec_says_of_itself(
    kind: str, folders: dict[str, Path], loaded: dict[str, codecs.Codec]
) -> None:
    codec = loaded[kind]
    sizes = {"snac": 4096}.get(kind, 64)
    assert (codec.name, codec.rate, codec.samples) == (kind, 24_000, SAMPLES[kind])
    assert codec.sizes == (sizes,) * BOOKS[kind]
    layers = {"snac": (1, 2, 2, 3, 3, 3, 3)}
    assert codec.layers == layers.get(kind, tuple(range(1, BOOKS[kind] + 1)))
    assert codec.frame_rate == {"snac": 11.71875, "mimi": 12.5}.get(kind, 75)
    assert codec.revision is None
    told = codecs.shape(str(folders[kind]))
    assert (told.rate, told.samples) == (codec.rate, codec.samples)


def test_the_time_of_known_codecs_is_told_without_them(tmp_path: Path) -> None:
    told = codecs.shape("kyutai/mimi")
    assert (told.rate, told.samples) == (24_000, 1_920)
    (tmp_path / "config.json").write_text('{"model_type": "dac"}', "utf-8")
    with pytest.raises(SheenError, match=r"config\.json has no 'downsampling_ratios'"):
        codecs.shape(str(tmp_path))
    code = (
        "import sys; from sheen_lm import codecs; codecs.shape('kyutai/mimi');"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# --- lengths, batches, precision ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
def test_clips_are_filled_up_to_whole_frames(
    kind: str, loaded: dict[str, codecs.Codec], clips: list[np.ndarray]
) -> None:
    codec, samples = loaded[kind], SAMPLES[kind]
    for length in (1, samples - 1, samples, samples + 1, 2_400, 3 * samples):
        codes = codec.encode(clips[0][5_000 : 5_000 + length])
        assert codes.shape == (-(-length // samples), BOOKS[kind])
        assert len(codec.decode(codes)) == len(codes) * samples
    filled = np.pad(clips[0][:2_400], (0, -2_400 % samples))
    assert np.array_equal(codec.encode(clips[0][:2_400]), codec.encode(filled))


@pytest.mark.parametrize("kind", ALL)
def test_no_sound_is_no_codes_and_the_other_way_round(
    kind: str, loaded: dict[str, codecs.Codec]
) -> None:
    codes = loaded[kind].encode(np.zeros(0, np.float32))
    assert codes.shape == (0, BOOKS[kind])
    assert loaded[kind].decode(codes).shape == (0,)


@pytest.mark.parametrize("kind", ALL)
def test_silence_has_constant_codes_and_speech_has_not(
    kind: str, loaded: dict[str, codecs.Codec], clips: list[np.ndarray]
) -> None:
    silent = loaded[kind].encode(np.zeros(48_000, np.float32))
    inner = silent[len(silent) // 4 : -len(silent) // 4]  # the edges hear the convolutions' padding
    assert codecs.constant(inner)
    assert codecs.constant(silent[:1]) and codecs.constant(silent[:0])
    assert not codecs.constant(loaded[kind].encode(clips[0]))


def test_only_sounds_of_equally_many_frames_share_a_batch() -> None:
    lengths = [40, 20, 40, 0, 20, 60, 40, 40]
    assert list(codec_file.batches(lengths, 0)) == [[1], [4], [0], [2], [6], [7], [5]]
    assert list(codec_file.batches(lengths, 80)) == [[1, 4], [0, 2], [6, 7], [5]]
    assert list(codec_file.batches(lengths, 160)) == [[1, 4], [0, 2, 6, 7], [5]]


@pytest.mark.parametrize("kind", ALL)
def test_a_batch_of_equal_lengths_is_one_by_one(
    kind: str, loaded: dict[str, codecs.Codec], clips: list[np.ndarray]
) -> None:
    """What a GPU does, heard on this machine; near ties may fall otherwise."""
    codec, same = loaded[kind], [clip[:30_000] for clip in clips]
    together = codec.parts.hear(torch.cat([whole(clip, codec.samples) for clip in same]))
    for codes, alone in zip(together.numpy(), codec.encode_all(same), strict=True):
        assert (codes == alone).mean() > 0.99


def test_a_batch_of_unequal_lengths_would_change_the_codes(
    loaded: dict[str, codecs.Codec], clips: list[np.ndarray]
) -> None:
    """Why SNAC's clips are never padded for a batch: it hears what comes after."""
    codec, clip = loaded["snac"], clips[0][:20_480]
    longer = np.concatenate([clip, clips[1][5_000:15_240]])
    assert not np.array_equal(codec.encode(longer)[: len(codec.encode(clip))], codec.encode(clip))


@pytest.mark.parametrize("kind", ALL)
def test_float32_all_through_and_repeatable(
    kind: str, loaded: dict[str, codecs.Codec], clips: list[np.ndarray]
) -> None:
    """Nothing of a training around is heard, and nothing of it is changed."""
    codec = loaded[kind]
    codes = codec.encode(clips[1])
    sound = codec.decode(codes)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert np.array_equal(codec.encode(clips[1]), codes)
            assert np.array_equal(codec.decode(codes), sound) and sound.dtype == np.float32
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(torch.get_rng_state(), before)


def test_loading_leaves_the_random_numbers_alone(folders: dict[str, Path]) -> None:
    before = torch.get_rng_state()
    for folder in folders.values():
        codecs.load.__wrapped__(str(folder))
    assert torch.equal(torch.get_rng_state(), before)


# --- SNAC's frames --------------------------------------------------------------------------------


def test_the_columns_of_snac_are_l1_l2a_l2b_l3a_to_l3d() -> None:
    layers = [[10, 11], [20, 21, 22, 23], [30, 31, 32, 33, 34, 35, 36, 37]]
    assert snac.framed(layers) == [
        [10, 20, 21, 30, 31, 32, 33],
        [11, 22, 23, 34, 35, 36, 37],
    ]


@pytest.mark.parametrize("counts", [(1, 2, 4), (1, 2, 4, 8), (1, 1), (1,)])
def test_frames_and_layers_are_inverses(counts: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    for frames in (1, 2, 9):
        codes = torch.randint(4096, (3, frames, sum(counts)), generator=generator)
        layers = snac.parted(codes, counts)
        assert [layer.shape for layer in layers] == [(3, frames * count) for count in counts]
        assert torch.equal(snac.joined(layers, counts), codes)
        again = snac.parted(snac.joined(layers, counts), counts)
        assert all(map(torch.equal, again, layers))


@pytest.mark.parametrize("lengths", [(4, 2, 1), (2, 4, 7), (2, 4), (1, 2, 4, 8)])
def test_layers_in_another_order_are_refused(lengths: tuple[int, ...]) -> None:
    layers = [[0] * length for length in lengths]
    with pytest.raises(SheenError, match=r"SNAC's .* 1:2:4, coarse to fine"):
        snac.framed(layers)


# --- codes that do not fit ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, said",
    [
        ({(2, 4): 4096}, r"row 5: codebook 4 \(layer 3\) holds 4096 in frame 2, .* 0 to 4095"),
        ({(0, 1): -1, (1, 0): 9999}, r"row 5: codebook 1 \(layer 2\) holds -1 in frame 0"),
    ],
)
def test_codes_out_of_range_are_named(
    change: dict[Any, int], said: str, loaded: dict[str, codecs.Codec]
) -> None:
    codec, codes = loaded["snac"], np.zeros((3, 7), np.int64)
    for place, code in change.items():
        codes[place] = code
    with pytest.raises(SheenError, match=said):
        verified(codes, codec.sizes, codec.layers, "row 5")
    with pytest.raises(SheenError, match="codes for snac: codebook"):
        codec.decode(codes)


def test_codes_of_another_codec_are_refused(
    loaded: dict[str, codecs.Codec], clips: list[np.ndarray]
) -> None:
    theirs = loaded["mimi"].encode(clips[0])
    with pytest.raises(SheenError, match=r"7 codebooks are needed.* 18 x 6; they are another"):
        loaded["snac"].decode(theirs)
    with pytest.raises(SheenError, match="whole numbers, not float64"):
        loaded["mimi"].decode(theirs.astype(np.float64))
    with pytest.raises(SheenError, match="needed"):
        loaded["mimi"].decode(theirs[0])
    fine = loaded["mimi"].decode(theirs.astype(np.int16).tolist())  # as a row holds them
    assert np.array_equal(fine, loaded["mimi"].decode(theirs))


# --- clips ----------------------------------------------------------------------------------------


def test_sound_that_is_none_of_the_codecs_is_refused(loaded: dict[str, codecs.Codec]) -> None:
    codec, second = loaded["snac"], np.zeros(44_100, np.float32)
    with pytest.raises(SheenError, match=r"one channel \(n,\), not an array \(1, 44100\)"):
        codec.encode(second[None])
    second[100] = np.nan
    with pytest.raises(SheenError, match="no numbers"):
        codec.encode(second)


@pytest.mark.parametrize("seconds", [0.0, 8.0])
def test_every_clip_gets_its_codes_in_order(
    seconds: float, loaded: dict[str, codecs.Codec], clips: list[np.ndarray]
) -> None:
    codec = loaded["mimi"]
    brought = np.full((5, 6), 7)
    given = [Clip(f"clip-{n}", "one", clip, 24_000) for n, clip in enumerate(clips)]
    given.insert(1, Clip("brought", "two", np.zeros(0, np.float32), 24_000, codes=brought))

    def encoded(clips: list[Clip]) -> list[tuple[Clip, np.ndarray]]:
        return list(codecs.encoded(lambda: codec, clips, codec.sizes, codec.layers, seconds))

    made = encoded(given)
    assert [clip for clip, _ in made] == given
    assert np.array_equal(made[1][1], brought)
    for clip, codes in made[:1] + made[2:]:
        assert np.array_equal(codes, codec.encode(clip.audio))
    with pytest.raises(SheenError, match="clip-0: mimi hears sound at 24000 Hz, not at 44100"):
        encoded([replace(given[0], rate=44_100)])
    wrong = replace(given[1], codes=brought + 60)
    with pytest.raises(SheenError, match=r"brought, codes of the data: codebook 0 .* holds 67"):
        encoded([wrong])


# --- which codec made them ------------------------------------------------------------------------


def test_rows_of_another_codec_are_refused(
    folders: dict[str, Path], loaded: dict[str, codecs.Codec], tmp_path: Path
) -> None:
    codecs.note(loaded["mimi"], tmp_path)
    facts = json.loads((tmp_path / "codec.json").read_text("utf-8"))
    assert facts["library"].startswith("transformers ") and facts["rate"] == 24_000
    assert facts["sizes"] == [64] * 6 and facts["sha256"] == loaded["mimi"].sha256
    codecs.check(loaded["mimi"], tmp_path, "data")
    assert codecs.revision(tmp_path) is None
    with pytest.raises(SheenError, match=r"data was made by another codec \(mimi [0-9a-f]{12}\)"):
        codecs.check(loaded["snac"], tmp_path, "data")
    fewer = codecs.load(str(folders["mimi"]), codebooks=4)
    with pytest.raises(SheenError, match="data was made with 6 codebooks of mimi, not with 4"):
        codecs.check(fewer, tmp_path, "data")
    (tmp_path / "codec.json").write_text("{", "utf-8")
    with pytest.raises(SheenError, match=r"codec\.json is damaged; prepare the data again"):
        codecs.check(fewer, tmp_path, "data")
    (tmp_path / "codec.json").unlink()  # as where the source brings codes
    codecs.check(fewer, tmp_path, "data")


def test_snac_is_converted_once_and_known_by_its_weights(
    folders: dict[str, Path], loaded: dict[str, codecs.Codec], home: Path, tmp_path: Path
) -> None:
    first = set((home / "sheen").iterdir())
    copy = codecs.load(str(shutil.copytree(folders["snac"], tmp_path / "copy")))
    assert copy.sha256 == loaded["snac"].sha256
    assert set((home / "sheen").iterdir()) == first
    other = codecs.load(str(write("snac", tmp_path / "other", seed=1)))
    assert other.sha256 != copy.sha256
    (new,) = set((home / "sheen").iterdir()) - first
    pickled = torch.load(tmp_path / "other" / "pytorch_model.bin", weights_only=True)
    kept = load_file(new)
    assert kept.keys() == pickled.keys()
    assert all(torch.equal(kept[name], pickled[name]) for name in kept)
    shutil.copy(new, tmp_path / "other" / "model.safetensors")  # a folder may hold it itself
    (tmp_path / "other" / "pytorch_model.bin").unlink()
    assert codecs.load.__wrapped__(str(tmp_path / "other")).sha256 == other.sha256


# --- the Hub --------------------------------------------------------------------------------------

ASK = """
import sys
from huggingface_hub import constants
constants.HF_HUB_OFFLINE = "offline" in sys.argv
from sheen_cli import SheenError
from sheen_lm import codecs
try:
    codec = codecs.load(sys.argv[1], revision=sys.argv[2] or None)
    print(codec.sha256, codec.revision)
except SheenError as error:
    print("error:", error)
"""


def test_codecs_of_the_hub(
    folders: dict[str, Path], loaded: dict[str, codecs.Codec], tmp_path: Path
) -> None:
    """Of one commit all through, which is remembered; from the cache when the Hub is away."""
    root = tmp_path / "hub"
    for kind in ("snac", "mimi"):
        shutil.copytree(folders[kind], root / "models" / "me" / kind)
    (root / "models" / "me" / "empty").mkdir()
    (root / "models" / "me" / "empty" / "README.md").write_text("nothing", "utf-8")
    with ExitStack() as until_the_end:
        with FakeHub(root) as hub:
            environment = hub.env(tmp_path / "cache")
            modules = ("sheen_lm.codecs", "snac", "transformers.models.mimi.modeling_mimi")
            warm = Warm(tmp_path, *modules, environment=environment)
            until_the_end.enter_context(warm)

            def answer(source: str, revision: str = "", how: str = "online") -> str:
                command = [warm.python, "-c", ASK, source, revision, how]
                done = subprocess.run(command, env=environment, capture_output=True, text=True)
                assert done.returncode == 0, done.stderr
                return done.stdout.strip()

            said = {kind: answer(f"me/{kind}").split() for kind in ("snac", "mimi")}
            for kind, (sha256, commit) in said.items():
                assert sha256 == loaded[kind].sha256 and len(commit) == 40
            assert "me/empty: it holds no config.json" in answer("me/empty")
            assert "codec me/none cannot be downloaded: 4" in answer("me/none")
        assert answer("me/snac", said["snac"][1]).split() == said["snac"]  # asks nobody
        assert answer("me/mimi", "", "offline").split() == said["mimi"]
        gone = answer("me/none", "", "offline")
        assert "there is no such folder, and config.json cannot be downloaded now" in gone


# --- what cannot be opened ------------------------------------------------------------------------


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def test_a_pickle_that_would_run_code_is_not_opened(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(folders["snac"], tmp_path / "snac")
    weights, marker = tmp_path / "snac" / "pytorch_model.bin", tmp_path / "marker"
    torch.save({"weight": Evil(marker)}, weights)
    assert "pytorch_model.bin is not opened" in refused(str(tmp_path / "snac"))
    assert not marker.exists()
    weights.write_bytes(b"no pickle at all")
    assert "is not opened: it is damaged or" in refused(str(tmp_path / "snac"))
    torch.save([torch.zeros(1)], weights)
    assert "something else than a model's tensors" in refused(str(tmp_path / "snac"))
    torch.save({"weight": torch.zeros(1)}, weights)
    assert "its config.json and weights are no SNAC" in refused(str(tmp_path / "snac"))


def test_what_is_no_codec_is_said_in_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    assert "neither a folder nor a Hub id" in refused(str(tmp_path / "nowhere"))
    assert "has 1 to 6 codebooks, not 7" in refused(str(folders["mimi"]), codebooks=7)
    assert "has 1 to 4 codebooks, not 0" in refused(str(folders["dac"]), codebooks=0)
    assert "has 7 codes a frame, not 3" in refused(str(folders["snac"]), codebooks=3)

    def with_config(name: str, values: Any) -> str:
        folder = tmp_path / name
        folder.mkdir()
        text = values if isinstance(values, str) else json.dumps(values)
        (folder / "config.json").write_text(text, "utf-8")
        return refused(str(folder))

    (tmp_path / "bare").mkdir()
    assert "it holds no config.json" in refused(str(tmp_path / "bare"))
    assert "config.json is damaged" in with_config("half", '{"model_type": ')
    assert "config.json is damaged: it is no JSON object" in with_config("list", "[]")
    assert "its config.json is of llama; known are" in with_config("llama", {"model_type": "llama"})
    assert "is of nothing known" in with_config("nothing", {})
    assert "model.safetensors is missing" in with_config("mimi", {"model_type": "mimi"})
    assert "pytorch_model.bin or model.safetensors is missing" in with_config(
        "snac", {"vq_strides": [4, 2, 1], "attn_window_size": None}
    )
    assert "hubertsiuzdak/snac_24khz" in with_config("music", {"vq_strides": [8, 4, 2, 1]})


@pytest.mark.parametrize("kind", ALL)
def test_damaged_and_foreign_weights_are_said_in_one_line(
    kind: str, folders: dict[str, Path], home: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(folders[kind], tmp_path / kind)
    weights = folder / "model.safetensors"
    if kind == "snac":
        codecs.load(str(folders[kind]))
        shutil.copy(next((home / "sheen").iterdir()), weights)
        (folder / "pytorch_model.bin").unlink()
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    line = refused(str(folder))
    assert ("is damaged" if kind == "snac" else "weights make no") in line
    other = "dac" if kind != "dac" else "mimi"
    shutil.copy(folders[other] / "model.safetensors", weights)
    line = refused(str(folder))
    assert ("are no SNAC" if kind == "snac" else "weights are missing, first") in line


def test_codecs_of_music_and_of_other_versions(tmp_path: Path) -> None:
    stereo = write("encodec", tmp_path / "stereo", audio_channels=2)
    assert "is an EnCodec of stereo or of scaled pieces" in refused(str(stereo))
    (tmp_path / "config.json").write_text('{"model_type": "xcodec2"}', "utf-8")
    line = refused(str(tmp_path))
    import transformers

    if "Xcodec2Model" in dir(transformers):
        assert "model.safetensors is missing" in line
    else:
        assert "has no Xcodec2Model (5.17 has it); prepare rows that hold" in line


def test_a_config_that_names_a_kernel_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["mimi"], tmp_path / "mimi")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["_attn_implementation"] = "someone/kernels"
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    assert "'_attn_implementation' of its config.json names another" in refused(str(folder))


def test_the_package_snac_is_asked_for(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "snac", None)
    codecs.load.cache_clear()
    assert 'pip install "sheen-tts[snac]"' in refused(str(folders["snac"]))


def test_a_cache_that_cannot_be_written_is_named(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "file"))
    codecs.load.cache_clear()
    assert "set HF_HOME to a folder that can be written" in refused(str(folders["snac"]))
