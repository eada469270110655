"""What the rules look at: babble prepared by the backbone, a model after a few steps, what it says,
two clips learnt by heart, and a second process. Each is made once, when a rule first asks for it.
"""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import soundfile
import torch
from torch import Tensor, nn

from sheen_cli import backbones, rows, training
from sheen_cli.babble import speech
from sheen_cli.backbones import Backbone
from sheen_cli.clips import Clips
from sheen_cli.objective import total_loss
from sheen_cli.optimization import Group, default_groups
from sheen_cli.prepare import prepare
from sheen_cli.recipe import Recipe, override, validate
from sheen_cli.sources import Source
from sheen_cli.types import Audio, Batch, Loss, Request, Row

# (text, text whose babble is its sound, speaker). The last differs from the one before in nothing
# but its text; the first two are learnt by heart.
CLIPS = (
    ("one two", "one two", "ann"),
    ("three six", "three six", "bob"),
    ("two three one", "two three one", "ann"),
    ("four one", "four one", "bob"),
    ("two one two three one four", "four one", "bob"),
)
SHORT, LONG = 3, 4  # the two that sound the same
SETTINGS = (
    "data.validation=0", "data.min_seconds=0.05", "data.max_samples=null",
    "train.max_minutes=null", "train.epochs=null", "train.max_steps=200", "train.batch_size=2",
    "train.accumulate=1", "train.bucket=1", "train.schedule=constant", "train.warmup_steps=0",
    "train.precision=fp32", "train.threads=null", "train.workers=0", "train.weight_decay=0",
    "train.save_every=100000", "train.validate_every=100000", "log.samples=0",
)  # fmt: skip
STEPS = 3  # an adapter that starts as zero lets its other half learn from the second step on
PATIENCE = 1200  # seconds that the fresh process may take
SECONDS = 0.6  # the longest speech of a rule that generates


@dataclass(frozen=True)
class Built(training.Run):
    """A run that keeps what the plugin's `train` gives to `fit`, and may leave it untrained."""

    built: list[tuple[nn.Module, training.Save, Sequence[Group]]] = field(default_factory=list)
    only_build: bool = False

    def fit(
        self, model: nn.Module, save: training.Save, groups: Sequence[Group] | None = None
    ) -> None:
        chosen = list(groups) if groups is not None else default_groups(model)
        self.built.append((model, save, chosen))
        if not self.only_build:
            training.fit(self, model, save, chosen)


@dataclass(frozen=True)
class Spoken:
    """What synth said for a request, and the row that has its codes."""

    request: Request
    audio: Audio
    row: Row


class Lab:
    """One backbone under examination."""

    def __init__(self, name: str, settings: Sequence[str], folder: Path) -> None:
        self.name, self.settings, self.folder = name, settings, folder

    @cached_property
    def resolved(self) -> tuple[Recipe[Any], Backbone]:
        """The backbone's default recipe made tiny, over the babble."""
        spec = backbones.load(self.name).spec
        base = self.folder / "base"
        base.mkdir()
        tiny = spec.tiny(base) if spec.tiny else ()
        source = [f"data.dataset={json.dumps(str(self.source(spec.sample_rate)))}"]
        return backbones.resolve(spec.recipe, [*SETTINGS, *source, *tiny, *self.settings])

    @property
    def recipe(self) -> Recipe[Any]:
        return self.resolved[0]

    @property
    def backbone(self) -> Backbone:
        return self.resolved[1]

    def source(self, rate: int) -> Path:
        """The babble as a data set."""
        folder = self.folder / "babble"
        folder.mkdir()
        lines = []
        for number, (text, sound, speaker) in enumerate(CLIPS):
            soundfile.write(folder / f"{number}.wav", speech(sound, rate), rate, subtype="FLOAT")
            facts = {"audio": f"{number}.wav", "text": text, "speaker": speaker, "language": "en"}
            lines.append(json.dumps(facts))
        (folder / "babble.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
        return folder / "babble.jsonl"

    @cached_property
    def clips(self) -> Clips:
        """The clips as the host hands them to `prepare`."""
        spec = self.backbone.spec
        source = Source(self.recipe.data.dataset or "", self.recipe, spec)
        return Clips(source, self.recipe, spec.sample_rate)

    @cached_property
    def data(self) -> Path:
        """The babble prepared by the host."""
        prepare(self.recipe, self.backbone, self.folder / "data")
        return self.folder / "data"

    @cached_property
    def rows(self) -> list[Row]:
        """One row a clip, in order."""
        return list(rows.Rows(self.data / "train.jsonl", self.backbone.spec.codebooks))

    # --- batches and losses ---------------------------------------------------------------------

    def collate(self, some: Sequence[Row], seed: int | None = None) -> Batch:
        batch: Batch = self.backbone.hook.collate(
            recipe=self.recipe, rows=some, seed=seed, artifacts=self.data / "artifacts"
        )
        return batch

    def loss(self, model: nn.Module, batch: Batch, trace: bool = False) -> Loss:
        device = next(model.parameters()).device
        inputs = {name: tensor.to(device) for name, tensor in batch.inputs.items()}
        loss: Loss = self.backbone.hook.loss(
            recipe=self.recipe, model=model, batch=Batch(inputs, batch.counts), trace=trace
        )
        return loss

    def sums(self, some: Sequence[Row]) -> tuple[dict[str, float], dict[str, int]]:
        """Each term's sum and count over rows in one batch, without augmentation."""
        model, batch = self.model, self.collate(some)
        with torch.no_grad():
            loss = self.loss(model, batch)
        return {name: float(term.sum) for name, term in loss.terms.items()}, batch.counts

    # --- models ---------------------------------------------------------------------------------

    def run(
        self,
        name: str,
        settings: Sequence[str] = (),
        some: Sequence[Row] = (),
        resume: Path | None = None,
        only_build: bool = False,
    ) -> Built:
        """A training run over rows of the babble; all of them where none are given."""
        values = override(self.recipe.model_dump(mode="json"), settings)
        recipe = validate(values, self.backbone.spec.options, "the kit's recipe")
        path = self.folder / f"{name}.jsonl"
        rows.write(path, map(rows.encode, some or self.rows))
        return Built(
            recipe=recipe,
            backbone=self.backbone,
            folder=self.folder / name,
            artifacts=self.data / "artifacts",
            rows=rows.Rows(path, self.backbone.spec.codebooks),
            validation=None,
            accelerator=training.accelerator(recipe.train),
            resume=resume,
            only_build=only_build,
        )

    def train(self, run: Built) -> nn.Module:
        """Call the plugin's `train`; returns the very model that it trained, ready to speak."""
        run.folder.mkdir(exist_ok=True)
        training.seed(run.recipe)
        self.backbone.hook.train(recipe=run.recipe, run=run)
        if len(run.built) != 1:
            raise TypeError(f"train() called run.fit {len(run.built)} times, not once")
        return run.built[0][0].eval()

    @cached_property
    def young(self) -> tuple[nn.Module, Sequence[Group]]:
        """A model as `train` builds it, untrained, and its parameter groups."""
        run = self.run("young", only_build=True)
        return self.train(run), run.built[0][2]

    @cached_property
    def moved(self) -> tuple[nn.Module, set[str], set[str]]:
        """The young model after a few steps; the parameters that got a gradient; those that
        changed.
        """
        model, groups = self.young
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        optimizer = torch.optim.Adam([p for group in groups for p in group.parameters], lr=1e-3)
        touched: set[str] = set()
        for step in range(STEPS):
            torch.manual_seed(step)
            batch = self.collate(self.rows, seed=step)
            loss = self.loss(model.train(), batch)
            model.zero_grad()
            counts = {name: float(count) for name, count in batch.counts.items()}
            torch.autograd.backward(total_loss(loss, counts))
            touched |= {
                name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()
            }
            optimizer.step()
        model.zero_grad()
        changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        return model.eval(), touched, changed

    @property
    def model(self) -> nn.Module:
        """The model that the rules measure: no longer as it was built, far from trained."""
        return self.moved[0]

    @cached_property
    def learnt(self) -> nn.Module:
        """A model that learnt the first two clips by heart; its checkpoint is in `heart/last`."""
        return self.train(self.run("heart", some=self.rows[:2]))

    # --- speech ---------------------------------------------------------------------------------

    def request(self, row: Row, **more: Any) -> Request:
        """What asks for the row: its text and what the backbone heeds of the rest."""
        heeded = {name: row[name] for name in ("speaker", "language") if name in self.reads}
        return Request(row["text"], **heeded, **more)

    @property
    def reads(self) -> tuple[str, ...]:
        return self.backbone.spec.reads

    def speak(self, requests: Sequence[Request], model: nn.Module | None = None) -> list[Audio]:
        hook = self.backbone.hook
        return list(
            hook.synth(recipe=self.recipe, model=model or self.model, requests=requests, trace=True)
        )

    @cached_property
    def spoken(self) -> list[Spoken]:
        """Sampled and greedy speech, one request at a time, with the rows that its codes make."""
        found = []
        for number, row in enumerate(self.rows[:3]):
            for greedy in (False, True):
                request = self.request(row, seed=number, greedy=greedy, max_seconds=SECONDS)
                (said,) = self.speak([request])
                if said.codes is not None and len(said.codes):
                    made = {**row, "audio_codes": said.codes.tolist()}
                    found.append(Spoken(request, said, made))
        return found

    # --- another process ------------------------------------------------------------------------

    @cached_property
    def elsewhere(self) -> dict[str, Any]:
        """What a fresh process finds: the modules that importing the plugin brings, its batches,
        and the losses and logits of the learnt model loaded from a copy of its checkpoint, while
        the data is out of reach.
        """
        source = self.folder / "heart" / "last"
        place = self.folder / "elsewhere" / "checkpoint"
        place.parent.mkdir()
        if source.exists():
            shutil.copytree(source, place)
        if (self.folder / "data" / "artifacts").exists():
            shutil.copytree(self.folder / "data" / "artifacts", place.with_name("artifacts"))
        task = {
            "name": self.name,
            "recipe": self.recipe.model_dump(mode="json") if "resolved" in vars(self) else {},
            "rows": vars(self).get("rows", []),  # none, where `prepare` does not even make rows
            "checkpoint": str(place),
            "artifacts": str(place.with_name("artifacts")),
            "seconds": SECONDS,
            "answer": "answer",
        }
        with self.out_of_reach(self.folder / "data", self.folder / "heart"):
            out = subprocess.run(
                [sys.executable, "-m", "sheen_cli.testing.child"],
                input=json.dumps(task),
                capture_output=True,
                text=True,
                cwd=place.parent,
                timeout=PATIENCE,
                env={**os.environ, "PYTHONHASHSEED": "4321"},
            )
        answer = place.parent / "answer"
        found = pickle.loads(answer.read_bytes()) if answer.is_file() else {}
        return {"error": out.stderr.strip() if out.returncode else "", **found}

    @contextmanager
    def out_of_reach(self, *folders: Path) -> Iterator[None]:
        hidden = [(folder, folder.with_name(f"{folder.name}-hidden")) for folder in folders]
        hidden = [(folder, away) for folder, away in hidden if folder.exists()]
        for folder, away in hidden:
            folder.rename(away)
        try:
            yield
        finally:
            for folder, away in hidden:
                away.rename(folder)


def measured(lab: Lab, model: nn.Module) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The losses and logits of the two clips that were learnt by heart; the child does the same."""
    with torch.no_grad():
        loss = lab.loss(model.eval(), lab.collate(lab.rows[:2]), trace=True)
    sums = {name: float(term.sum) for name, term in loss.terms.items()}
    return sums, {name: value.float().cpu() for name, value in loss.logits.items()}
