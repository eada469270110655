"""Rules of `synth`: it is the model that was trained, step by step, and it keeps to its request."""

from dataclasses import replace

import numpy as np
import torch

from sheen_cli import rows
from sheen_cli.testing.lab import SECONDS, Lab, Spoken
from sheen_cli.testing.report import Broken, NotOffered, rule
from sheen_cli.types import Audio

NEAR = 1e-4  # of logits, absolute, float32
LIKELY = 1e-3  # of summed negative log-likelihoods, absolute


@rule(
    "synth",
    "it samples from the global generator, or keeps its own from one call to the next, or does not "
    "read `greedy`",
    "steady",
)
def seeds(lab: Lab) -> None:
    """a request's seed settles what is said, whatever was said before; greedy needs no seed"""
    ask = [lab.request(lab.rows[0], seed=seed, max_seconds=SECONDS) for seed in range(4)]
    torch.manual_seed(1)
    (first,) = lab.speak(ask[:1])
    torch.manual_seed(2)
    (again,) = lab.speak(ask[:1])
    if not same(first, again):
        raise Broken("the same request said twice gives other codes or other sound")
    greedy = replace(ask[0], greedy=True)
    (likeliest,) = lab.speak([greedy])
    if not all(same(likeliest, lab.speak([replace(greedy, seed=n)])[0]) for n in (1, 2, 3)):
        raise Broken("greedy speech changes with the seed")
    if not same(first, likeliest) and all(same(first, lab.speak([each])[0]) for each in ask[1:]):
        raise Broken("four seeds say the same, though not what greedy says: the seed is not used")


def same(one: Audio, other: Audio) -> bool:
    return np.array_equal(coded(one), coded(other)) and np.array_equal(one.samples, other.samples)


def coded(audio: Audio) -> np.ndarray:
    return np.zeros((0, 0)) if audio.codes is None else np.asarray(audio.codes)


@rule(
    "synth",
    "the sound has another rate than describe() declares, two channels, another type, or what the "
    "codec makes of codes that it cannot read",
    "seeds",
)
def sound(lab: Lab) -> None:
    """finite mono float32 at the declared rate, as long as its frames, one Audio a request"""
    spec = lab.backbone.spec
    ask = [
        lab.request(row, seed=number, max_seconds=SECONDS) for number, row in enumerate(lab.rows)
    ]
    found = lab.speak(ask)
    if len(found) != len(ask):
        raise Broken(f"{len(found)} answers to {len(ask)} requests")
    for said in found:
        samples = said.samples
        if said.codes is not None and not len(said.codes):
            raise Broken("a speech has no frame at all: forbid the end before the first")
        if said.rate != spec.sample_rate:
            raise Broken(f"the rate is {said.rate}, declared is {spec.sample_rate}")
        if not isinstance(samples, np.ndarray) or samples.ndim != 1 or samples.dtype != np.float32:
            raise Broken(f"samples are {type(samples).__name__} {getattr(samples, 'shape', '')}")
        if not np.isfinite(samples).all() or np.abs(samples).max(initial=0) > 1.001:
            raise Broken("samples are not finite, or beyond -1..1")
        if said.stop not in ("end", "length"):
            raise Broken(f"stop is {said.stop!r}, neither 'end' nor 'length'")
        if said.codes is None or not spec.frame_rate:
            continue
        if spec.codebooks and (problem := rows.bad_codes(said.codes, spec.codebooks)):
            raise Broken(problem)
        expected = len(said.codes) / spec.frame_rate
        if abs(len(samples) / said.rate - expected) > 1 / spec.frame_rate + 0.05 * expected:
            raise Broken(
                f"{len(said.codes)} frames are {expected:.2f} s, the sound has "
                f"{len(samples) / said.rate:.2f} s"
            )
    if all(not np.ptp(said.samples) for said in found if len(said.samples)):
        raise Broken("every sample of every speech has the same value: nothing is to be heard")


@rule("synth", "max_seconds is not read, or counted in something else than seconds", "learns")
def limit(lab: Lab) -> None:
    """a speech that is longer than its request's max_seconds is cut off there and says so"""
    row = lab.rows[0]  # which the learnt model says at its length
    frame = 1 / lab.backbone.spec.frame_rate if lab.backbone.spec.frame_rate else 0.05
    seconds = row["duration"] / 2
    (said,) = lab.speak([lab.request(row, greedy=True, max_seconds=seconds)], lab.learnt)
    length = len(said.samples) / said.rate
    if abs(length - seconds) > 1.5 * frame:
        raise Broken(f"{length:.2f} s were said where {seconds:.2f} s were allowed")
    if said.stop != "length":
        raise Broken(f"it was cut off at {length:.2f} s, but stop is '{said.stop}'")


@rule(
    "synth",
    "prompts of unlike lengths are padded without a mask, or their positions are moved",
    "seeds",
)
def together(lab: Lab) -> None:
    """sentences spoken at once are what they are alone"""
    ask = [
        lab.request(row, seed=number, greedy=number % 2 == 0, max_seconds=SECONDS)
        for number, row in enumerate(lab.rows)
    ]
    many = lab.speak(ask)
    for request, said in zip(ask, many, strict=True):
        (alone,) = lab.speak([request])
        if not np.array_equal(coded(alone), coded(said)):
            raise Broken(f"{request.text!r} has other codes when it is spoken with others")
        if len(alone.samples) != len(said.samples) or not np.allclose(
            alone.samples, said.samples, atol=1e-4
        ):
            raise Broken(f"{request.text!r} sounds otherwise when it is spoken with others")


@rule(
    "collate, loss and synth",
    "training and synthesis build the prompt in two ways, a frame is fed to the position that "
    "predicts it, targets are shifted once more in loss, attention is not causal, or logits are "
    "kept after masks or temperature",
    "targets text seeds sound",
)
def logits(lab: Lab) -> None:
    """teacher-forced logits are those of the loop that speaks, at every step"""
    for spoken in heard(lab):
        model = lab.model
        batch = lab.collate([spoken.row])
        with torch.no_grad():
            forced = lab.loss(model, batch, trace=True).logits
        if not forced or not spoken.audio.logits:
            raise NotOffered("no logits are returned with trace=True; nll alone is compared")
        for name, mine in forced.items():
            said = spoken.audio.logits[name].float().cpu()
            mine = mine.float().cpu()
            if mine.shape != said.shape:
                raise Broken(f"'{name}': {tuple(mine.shape)} in loss, {tuple(said.shape)} in synth")
            if len(mine) != batch.counts[name]:
                raise Broken(f"'{name}': collate counts {batch.counts[name]}, loss has {len(mine)}")
            finite = torch.isfinite(mine)  # a choice that the model itself excludes is -inf
            gap = (mine - said)[finite].abs()
            if not torch.equal(finite, torch.isfinite(said)) or gap.max() > NEAR:
                first = int(((mine - said).abs().nan_to_num() > NEAR).any(-1).nonzero()[0])
                raise Broken(
                    f"'{name}': they differ by up to {gap.max():.2g}, from target {first} of "
                    f"{len(mine)} on"
                )


@rule(
    "loss and synth",
    "a head is compared with another codebook's codes, a scale is inside the sum, or synth "
    "reports likelihoods after masks or temperature, or without the end",
    "logits",
)
def nll(lab: Lab) -> None:
    """the loss of a row with synth's codes is the nll that synth reported, per term"""
    for spoken in heard(lab):
        losses, _ = lab.sums([spoken.row])
        if set(losses) != set(spoken.audio.nll):
            raise Broken(f"loss has {sorted(losses)}, nll has {sorted(spoken.audio.nll)}")
        for name, value in losses.items():
            reported = spoken.audio.nll[name]
            if not abs(value - reported) <= LIKELY + 1e-5 * abs(value):  # nor NaN
                raise Broken(
                    f"'{name}' of {spoken.request.text!r} ({len(spoken.row['audio_codes'])} "
                    f"frames): loss {value:.4f}, nll {reported:.4f}"
                )


def heard(lab: Lab) -> list[Spoken]:
    if lab.spoken:
        return lab.spoken
    if lab.backbone.spec.codebooks is None:
        raise NotOffered("the backbone returns no codes")
    raise Broken("synth returned no codes for any of six requests")


SPEECH = (seeds, sound, together, logits, nll)
