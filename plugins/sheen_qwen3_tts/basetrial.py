"""One base and one clip under examination: what this package makes of them and what the stock one
does, each made when it is first asked for.
"""

import gc
import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import sheen_qwen3_tts as plugin
from sheen_cli import Audio, Batch, Clip, Recipe, Reference, Request, SheenError, Skip
from sheen_qwen3_tts import base, stock
from sheen_qwen3_tts.codec import FRAME, RATE
from sheen_qwen3_tts.layout import IGNORE
from sheen_qwen3_tts.model import Speech

TEXT = "Good morning to you all."
FRAMES = 24  # of each speech that is compared with the stock package's
WEIGHT = 0.3  # of the sub-talker in the total that is reported: 6 + 0.3 * 7.2 = 8.2
CLEARLY = 0.3  # nats below chance from which a model counts as trained


@dataclass(frozen=True)
class Scores:
    """Cross-entropies in nats of one clip under teacher forcing: of code 0 against the frame that
    is due and the one after it; of each head against its codebook and, but for the last, the next.
    """

    aligned: float
    ahead: float
    heads: tuple[float, ...]
    heads_ahead: tuple[float, ...]

    @property
    def subtalker(self) -> float:
        return sum(self.heads) / len(self.heads)

    @property
    def total(self) -> float:
        return self.aligned + WEIGHT * self.subtalker


class Trial:
    """One base, one clip, and what was found of them; each thing is made when it is first needed.

    One model is in memory at a time, in float32, on the GPU if there is one.
    """

    def __init__(self, recipe: Recipe[Any], clip: Clip, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        whole = np.pad(clip.audio, (0, -len(clip.audio) % FRAME)).astype(np.float32)
        self.clip = replace(clip, audio=whole)  # the stock package does not fill up frames
        self.base = base.read(base.local(recipe.model.base))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.artifacts = folder / "checkpoint" / "artifacts"
        self.artifacts.mkdir(parents=True)

    @cached_property
    def row(self) -> dict[str, Any]:
        """The clip as `prepare` would leave it."""
        again = replace(self.clip, id="again")  # another of the same speaker, to refer to
        row, _ = plugin.prepare(self.recipe, [self.clip, again], self.artifacts)
        if isinstance(row, Skip):
            raise SheenError(f"the clip is refused: {row.reason}: {row.detail}")
        facts = {"id": self.clip.id, "text": self.clip.text, "speaker": None, "language": None}
        return {**facts, **row}

    @cached_property
    def batch(self) -> Batch:
        found = plugin.collate(self.recipe, [self.row], None, self.artifacts)
        return Batch({name: t.to(self.device) for name, t in found.inputs.items()}, found.counts)

    @cached_property
    def stock(self) -> "Stock":
        """What the stock package makes of the clip; its model is gone afterwards."""
        self.forget()
        found = Stock.of(self)
        gc.collect()
        return found

    @cached_property
    def speech(self) -> Speech:
        return self.placed(None)

    def placed(self, saved: Path | None) -> Speech:
        """Our model of the base, or of a checkpoint, in float32 and not training."""
        return plugin.opened(self.recipe, saved, torch.float32).to(self.device).eval()

    def wrapper(self, folder: Path) -> Any:
        """The stock package's model of a folder."""
        return stock.load().Qwen3TTSModel.from_pretrained(
            str(folder), dtype=torch.float32, attn_implementation="sdpa",
            device_map=str(self.device),
        )  # fmt: skip

    def forget(self) -> None:
        self.__dict__.pop("speech", None)
        gc.collect()

    def loss(self, speech: Speech) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective () as the recipe weighs it, and the logits behind it."""
        found = plugin.loss(self.recipe, speech, self.batch, True)
        parts = [term.scale * term.sum / self.batch.counts[n] for n, term in found.terms.items()]
        return sum(parts, torch.zeros((), device=self.device)), dict(found.logits)

    @cached_property
    @torch.no_grad()
    def scores(self) -> Scores:
        _, logits = self.loss(self.speech)
        targets = self.batch.inputs["targets"]
        due = targets[..., 0][targets[..., 0] != IGNORE]
        codes = targets[targets[..., 1] != IGNORE][:, 1:]
        first, inner = logits["talker"].float(), logits["subtalker"].float().view(*codes.shape, -1)
        count = codes.shape[1]
        return Scores(
            float(cross_entropy(first, due)),
            float(cross_entropy(first[:-1], due[1:])),
            tuple(float(cross_entropy(inner[:, n], codes[:, n])) for n in range(count)),
            tuple(float(cross_entropy(inner[:, n], codes[:, n + 1])) for n in range(count - 1)),
        )

    @property
    def chance(self) -> float:
        return math.log(self.base.talker["vocab_size"])

    @property
    def trained(self) -> bool:
        return min(self.scores.aligned, self.scores.ahead) < self.chance - CLEARLY

    def heard(self, in_context: bool) -> Reference:
        return Reference(self.clip.audio, self.clip.text, in_context)

    def say(self, request: Request) -> Audio:
        (audio,) = plugin.synth(self.recipe, self.speech, [request], True)
        return audio


@dataclass(frozen=True)
class Stock:
    """The stock package's answers: codes (frames, groups), vector (hidden,), text tokens, and what
    it says greedily from the voice alone and in context (frames, groups).
    """

    codes: Tensor
    vector: Tensor
    tokens: tuple[int, ...]
    said: dict[bool, Tensor]

    @classmethod
    @torch.inference_mode()
    @stock.hushed()
    def of(cls, trial: Trial) -> "Stock":
        wrapper, clip = trial.wrapper(trial.base.folder), trial.clip
        (item,) = wrapper.create_voice_clone_prompt((clip.audio, RATE), ref_text=clip.text)
        (tokens,) = wrapper._tokenize_texts([wrapper._build_assistant_text(TEXT)])
        said = {icl: cls.greedy(wrapper, item, tokens, clip.text, icl) for icl in (False, True)}
        words = tuple(tokens[0, 3:-5].tolist())
        return cls(item.ref_code.cpu(), item.ref_spk_embedding.float().cpu(), words, said)

    @staticmethod
    def greedy(wrapper: Any, item: Any, tokens: Tensor, said: str, in_context: bool) -> Tensor:
        heard = item.ref_code if in_context else None
        item = replace(item, icl_mode=in_context, x_vector_only_mode=not in_context, ref_code=heard)
        codes, _ = wrapper.model.generate(
            input_ids=[tokens], ref_ids=wrapper._tokenize_texts([wrapper._build_ref_text(said)]),
            voice_clone_prompt=wrapper._prompt_items_to_voice_clone_prompt([item]),
            languages=["auto"], non_streaming_mode=False, max_new_tokens=FRAMES + 1,
            do_sample=False, subtalker_dosample=False, repetition_penalty=1.0,
        )  # fmt: skip
        found: Tensor = codes[0].cpu()
        return found
