"""What can only be asked of released weights, by `sheen plugins check qwen3-tts --base ID`: are the
losses those that are reported, do we say what the stock package says, can the base be taught?

The tests of this package run on made-up weights, of which much is known to be random; there the
figures are shown and only what holds of any weights can fail.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

import sheen_qwen3_tts as plugin
from sheen_cli import Audio, Clip, Measured, Recipe, Request, SheenError
from sheen_qwen3_tts import checkpoint, codec, stock
from sheen_qwen3_tts.basetrial import FRAMES, TEXT, Trial
from sheen_qwen3_tts.codec import FRAME, RATE
from sheen_qwen3_tts.preflight import crossed

WORDS = "flight two nine one leaves from gate seven monday"  # of the clip that is built in
SECONDS = 8.0  # that a clone may take for TEXT
LARGEST = 10.0  # total from which the batch is built wrongly, or the base is no speech model
STEPS, LEARNING_RATE = 8, 5e-4  # of the adapters' trial
CLOSE = 1e-4  # between numbers that should be equal
TIE = 1e-3  # between logits, below which a GPU's rounding may choose either
QUIET = 1e-4  # RMS below which nothing is said
ALIKE = 0.6  # correlation of loudness between a clip and what the codec gives back of it


def check(recipe: Recipe[Any], name: str, clip: Clip | None, folder: Path) -> Iterator[Measured]:
    """Measure the base `name`, a folder or a Hub id; `folder` takes what is written. Raises
    SheenError where there is no such base.
    """
    options = recipe.model.model_copy(
        update={"base": name, "repetition_penalty": 1.0, "lora": trial_lora()}
    )
    trial = Trial(recipe.model_copy(update={"model": options}), clip or spoken(), folder)
    for step in STEPS_IN_ORDER:
        try:
            yield step(trial)
        except SheenError:  # the user can mend it
            raise
        except Exception as error:  # whatever it is, it is the answer
            told = f"{type(error).__name__}: {' '.join(str(error).split())}"
            yield Measured(step.__name__.replace("_", "-"), False, told)


def trial_lora() -> Any:
    return plugin.Lora(rank=8, alpha=16.0, projection=False)


def spoken() -> Clip:
    """Recorded words in a row: speech, if of a synthetic voice."""
    import soxr

    from sheen_demo import words

    samples = words.compose(WORDS.split(), Random(0), tempo=1)
    samples = soxr.resample(samples, words.RATE, RATE).astype(np.float32)
    return Clip("built-in", WORDS, samples, RATE)


# --- what is measured, in order -------------------------------------------------------------------


def opened(trial: Trial) -> Measured:
    """Every tensor that the config names was found, or loading had failed."""
    count = sum(p.numel() for p in trial.speech.parameters())
    talker = trial.base.talker
    found = {name: stock.installed(name) for name in (*stock.SHARERS, "transformers", "torch")}
    versions = ", ".join(f"{name} {number}" for name, number in found.items() if number)
    return Measured(
        "opened", True,
        f"{count / 1e6:.1f} M parameters, talker {talker['num_hidden_layers']} x "
        f"{talker['hidden_size']}, {len(trial.base.languages)} languages; float32 on "
        f"{trial.device.type}; {versions}",
        {"parameters": count},
    )  # fmt: skip


def losses(trial: Trial) -> Measured:
    found = trial.scores
    text = (
        f"talker {found.aligned:.2f}, sub-talker {found.subtalker:.2f}, in all {found.total:.2f} "
        f"(reported of 1.7B: 6, 7.2, 8.2)"
    )
    ok: bool | None = found.total < LARGEST
    if not trial.trained:
        text += f"; at chance ({trial.chance:.2f}): the base is untrained, or the clip no speech"
        ok = None
    figures = {"talker": found.aligned, "subtalker": found.subtalker, "total": found.total}
    return Measured("losses", ok, text, figures)


def aligned(trial: Trial) -> Measured:
    """It predicts what is due, and not what comes after it."""
    found = trial.scores
    heads = list(zip(found.heads, found.heads_ahead, strict=False))
    unsure = [number for number, (own, after) in enumerate(heads, 1) if own >= after]
    wrong = [head for head, *_ in crossed(found.heads, found.heads_ahead, trial.base.codes)]
    own, after = (sum(each) / len(heads) for each in zip(*heads, strict=True))
    text = (
        f"next frame {found.aligned:.2f}, the one after it {found.ahead:.2f}; own codebook "
        f"{own:.2f}, the next one {after:.2f}, {len(heads) - len(unsure)} of {len(heads)} heads"
    )
    ok: bool | None = found.aligned < found.ahead and own < after and not wrong
    if unsure:
        ok = None if ok else False
        text += f": not heads {', '.join(map(str, wrong or unsure))}"
    if not trial.trained:
        ok, text = None, f"{text}; says nothing of an untrained base"
    figures = {"next": found.aligned, "after_next": found.ahead, "own": own, "next_codebook": after}
    return Measured("aligned", ok, text, figures)


def codes(trial: Trial) -> Measured:
    """The clip through the codec and back; its codes, vector and tokens are the stock package's."""
    ours = torch.tensor(trial.row["audio_codes"])
    sound = codec.decode(codec.load(trial.base.folder), ours)
    with np.errstate(invalid="ignore"):  # of a sound that is equally loud throughout
        alike = np.corrcoef(loudness(sound), loudness(trial.clip.audio))[0, 1]
    alike = float(np.nan_to_num(alike))
    vector = codec.vector(codec.speaker_encoder(trial.base.folder), trial.clip.audio)
    apart = float((vector - trial.stock.vector).abs().max())
    same = torch.equal(ours, trial.stock.codes)
    tokens = trial.base.words(TEXT) == trial.stock.tokens
    text = (
        f"{len(ours)} frames; codes {'equal' if same else 'DIFFER from'} the stock package's, "
        f"tokens {'equal' if tokens else 'DIFFER'}, voice within {apart:.0e}; decoded, its "
        f"loudness correlates {alike:.2f}"
    )
    ok: bool | None = same and tokens and apart < CLOSE
    if ok and alike < ALIKE:
        ok = False if trial.trained else None
    return Measured("codes", ok, text, {"frames": len(ours), "voice": apart, "loudness": alike})


def loudness(sound: np.ndarray) -> np.ndarray:
    """RMS of each frame."""
    frames = sound[: len(sound) // FRAME * FRAME].reshape(-1, FRAME)
    level: np.ndarray = np.sqrt(np.square(frames, dtype=np.float64).mean(1))
    return level


def tokens(trial: Trial) -> Measured:
    """Greedy speech is the stock package's, from a voice alone and in context."""
    told, ok, figures = [], True, {}
    for in_context, theirs in trial.stock.said.items():
        name = "in context" if in_context else "x-vector"
        limit = FRAMES * FRAME / RATE
        request = Request(TEXT, 0, True, limit, reference=trial.heard(in_context))
        audio = trial.say(request)
        count, gap = agreeing(audio, theirs)
        good = count == len(theirs) or (gap is not None and gap < TIE)
        tie = ", then a tie of logits" if good and count < len(theirs) else ""
        told.append(f"{name} {count} of {len(theirs)} frames{tie}")
        ok, figures[name.replace(" ", "_").replace("-", "_")] = ok and good, count
    return Measured("tokens", ok, f"equal to the stock generate: {', '.join(told)}", figures)


def agreeing(audio: Audio, theirs: Tensor) -> tuple[int, float | None]:
    """Frames that are equal from the start, and at the first that is not, by how much our logits
    prefer our code; None where all are equal or one of the two speeches ended.
    """
    assert audio.codes is not None
    ours = torch.from_numpy(audio.codes)
    both = min(len(ours), len(theirs))
    other = (ours[:both] != theirs[:both]).nonzero()
    if not len(other):
        return both if len(ours) == len(theirs) else min(both, len(theirs) - 1), None
    frame, book = other[0].tolist()
    groups = ours.shape[1] - 1
    logits = audio.logits["talker"][frame]
    if book:
        logits = audio.logits["subtalker"][frame * groups + book - 1]
    return frame, float(logits[ours[frame, book]] - logits[theirs[frame, book]])


def clone_xvector(trial: Trial) -> Measured:
    return clone(trial, "clone-xvector", False)


def clone_icl(trial: Trial) -> Measured:
    return clone(trial, "clone-icl", True)


def clone(trial: Trial, name: str, in_context: bool) -> Measured:
    """It speaks with the clip's voice. How like it is, is only shown."""
    audio = trial.say(Request(TEXT, 0, False, SECONDS, reference=trial.heard(in_context)))
    encoder = codec.speaker_encoder(trial.base.folder)
    rms = float(np.sqrt(np.square(audio.samples, dtype=np.float64).mean()))
    like = 0.0  # of a sound that is too short for a voice
    if len(audio.samples) >= codec.SHORTEST:
        ours, theirs = (codec.vector(encoder, each) for each in (audio.samples, trial.clip.audio))
        like = float(cosine_similarity(ours, theirs, dim=0))
    ok: bool | None = bool(np.isfinite(audio.samples).all()) and rms > QUIET
    ended = audio.stop == "end"
    if ok and not ended:
        ok = None
    seconds = len(audio.samples) / RATE
    end = "ended by itself" if ended else "CUT OFF at its limit"
    text = f"{seconds:.1f} s, RMS {rms:.3f}, {end}, likeness to the clip's voice {like:.2f}"
    return Measured(name, ok, text, {"seconds": seconds, "rms": rms, "likeness": like})


def lora(trial: Trial) -> Measured:
    """A few steps of adapters on the clip lower its loss."""
    speech = trial.speech
    plugin.adapted(speech, trial.recipe)
    speech.to(trial.device)
    trained = [p for p in speech.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, LEARNING_RATE)
    course = []
    for _ in range(STEPS):
        objective, _ = trial.loss(speech)
        course.append(float(objective.detach()))
        optimizer.zero_grad()
        objective.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        before, after = course[0], float(trial.loss(speech)[0])
    text = f"loss {before:.3f} -> {after:.3f} in {STEPS} steps of {len(trained)} tensors"
    return Measured("lora", after < before, text, {"before": before, "after": after})


@torch.no_grad()
def saved(trial: Trial) -> Measured:
    """The adapters, written and read again over a fresh base, give the same logits."""
    trained = {name: t.cpu() for name, t in trial.loss(trial.speech.eval())[1].items()}
    folder = trial.folder / "checkpoint"
    checkpoint.save_adapter(trial.speech, folder)
    size = (folder / checkpoint.ADAPTER).stat().st_size / 1e6
    trial.forget()
    again = trial.loss(trial.placed(folder))[1]
    apart = max(float((trained[name] - t.cpu()).abs().max()) for name, t in again.items())
    text = f"{size:.3g} MB; logits after reloading differ by {apart:.0e} at most"
    return Measured("saved", apart < CLOSE, text, {"megabytes": size, "difference": apart})


def export_custom_voice(trial: Trial) -> Measured:
    return exported(trial, "custom-voice")


def export_base(trial: Trial) -> Measured:
    return exported(trial, "base")


@torch.inference_mode()
@stock.hushed()
def exported(trial: Trial, kind: str) -> Measured:
    """The taught base as a folder of the stock package, which speaks with it."""
    trial.forget()
    folder = trial.folder / kind
    folder.mkdir()
    plugin.export(trial.recipe, trial.folder / "checkpoint", kind, folder)
    wrapper, clip = trial.wrapper(folder), trial.clip
    how = {"max_new_tokens": int(SECONDS * RATE / FRAME), "repetition_penalty": 1.0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "base":
            heard = {"ref_audio": (clip.audio, RATE), "ref_text": clip.text}
            (sound,), rate = wrapper.generate_voice_clone(TEXT, "auto", **heard, **how)
        else:
            (name,) = checkpoint.load_voices(trial.artifacts)
            (sound,), rate = wrapper.generate_custom_voice(TEXT, name, "auto", **how)
    shutil.rmtree(folder)
    rms, seconds = float(np.sqrt(np.square(sound, dtype=np.float64).mean())), len(sound) / rate
    ok = bool(np.isfinite(sound).all()) and rms > QUIET
    text = f"the stock package loads it and says {seconds:.1f} s, RMS {rms:.3f}"
    return Measured(f"export-{kind}", ok, text, {"seconds": seconds, "rms": rms})


STEPS_IN_ORDER: tuple[Callable[[Trial], Measured], ...] = (
    opened, losses, aligned, codes, tokens, clone_xvector, clone_icl, lora, saved,
    export_custom_voice, export_base,
)  # fmt: skip
