"""Sound to Qwen3-TTS codes: the official preparation script against ours, on the same clips, each
in a process of its own: seconds of sound a CPU second, and memory that the work adds.

Usage: qwen3_encoding.py OFFICIAL [CLIPS], the folder of the official scripts (prepare_data.py).
Weights are random, shapes are the released ones.
"""

import json
import resource
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

RATE = 24_000


def lengths(count: int) -> list[float]:
    """Seconds of the clips: log-normal around 6, from 2 to 20, the longest included."""
    drawn = np.random.default_rng(0).lognormal(np.log(6), 0.6, count - 1)
    return [*drawn.clip(2, 20).round(2).tolist(), 20.0]


def write(folder: Path, count: int) -> None:
    """Clips, their list, and a codec of the released shapes; its decoder, unused, is small."""
    from sheen_cli.babble import speech
    from sheen_qwen3_tts import miniature, stock

    stock.load()
    import torch
    from qwen_tts.core import Qwen3TTSTokenizerV2Config, Qwen3TTSTokenizerV2Model

    miniature.build(folder / "base")
    torch.manual_seed(0)
    place = folder / "base" / "speech_tokenizer"
    small = json.loads((place / "config.json").read_text())["decoder_config"]
    codec = Qwen3TTSTokenizerV2Model(
        Qwen3TTSTokenizerV2Config(decoder_config={**small, "codebook_dim": 16})
    )
    miniature.fill(codec)
    codec.save_pretrained(place)
    lines = []
    for number, seconds in enumerate(lengths(count)):
        file = folder / f"{number}.wav"
        sound = np.resize(speech(f"one two {number}", RATE), int(seconds * RATE))
        soundfile.write(file, sound, RATE)
        lines.append(json.dumps({"audio": str(file), "text": "one", "ref_audio": str(file)}))
    (folder / "list.jsonl").write_text("\n".join(lines))


def official(folder: Path, scripts: Path) -> list[list[list[int]]]:
    out = folder / "official.jsonl"
    sys.argv = ["prepare_data.py", "--device", "cpu", "--input_jsonl", str(folder / "list.jsonl")]
    sys.argv += ["--output_jsonl", str(out)]
    sys.argv += ["--tokenizer_model_path", str(folder / "base" / "speech_tokenizer")]
    runpy.run_path(str(scripts / "prepare_data.py"), run_name="__main__")
    return [json.loads(line)["audio_codes"] for line in out.read_text().splitlines()]


def ours(folder: Path) -> list[list[list[int]]]:
    from sheen_cli import Clip, audio
    from sheen_qwen3_tts import codec

    lines = [json.loads(line) for line in (folder / "list.jsonl").read_text().splitlines()]
    clips = (
        Clip(row["audio"], "one", audio.load(Path(row["audio"]), RATE, 0.1, 60.0), RATE)
        for row in lines
    )
    budget = 30.0 if codec.device() == "cuda" else 0.0
    spoken = codec.load(folder / "base")
    return [codes.tolist() for _, codes in codec.encoded(spoken, clips, budget)]


def child(who: str, folder: Path, scripts: Path) -> None:
    import torch

    from sheen_qwen3_tts import stock

    stock.load()
    torch.set_num_threads(1)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    codes = ours(folder) if who == "ours" else official(folder, scripts)
    facts = {"seconds": time.process_time() - start, "codes": codes}
    facts["memory"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    (folder / f"{who}.json").write_text(json.dumps(facts))


def main(scripts: Path, count: int) -> None:
    if not (scripts / "prepare_data.py").is_file():
        print(f"skipped: {scripts} holds no prepare_data.py")
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write(folder, count)
        sound = sum(lengths(count))
        facts = {}
        for who in ("official", "ours"):
            line = [sys.executable, __file__, "child", who, str(folder), str(scripts)]
            subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
            facts[who] = json.loads((folder / f"{who}.json").read_text())
    print(f"{count} clips, {sound:.0f} s of sound, one thread, float32")
    print(f"{'':<10}{'x real time':>12}{'MB added':>10}")
    for who, found in facts.items():
        print(f"{who:<10}{sound / found['seconds']:>12.2f}{found['memory']:>10.0f}")
    one, two = facts["official"], facts["ours"]
    pairs = [
        (a, b)
        for x, y in zip(one["codes"], two["codes"], strict=True)
        for a, b in zip(x, y, strict=True)
    ]
    differ = sum(a != b for a, b in pairs)
    print(
        f"speed {one['seconds'] / two['seconds']:.2f}, memory {two['memory'] / one['memory']:.2f}"
    )
    print(f"frames that differ: {differ} of {len(pairs)} (a batch's padding reaches a clip's end)")


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "child":
        child(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    elif len(sys.argv) < 2:
        print("skipped: give the folder of the official scripts (prepare_data.py)")
    else:
        main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 12)
