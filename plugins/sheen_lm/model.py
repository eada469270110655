"""A causal language model that reads text and writes codec tokens: loaded, run, saved.

The stock modules compute hidden states; the head, the targets and the loss are ours.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, pad

from sheen_cli import SheenError
from sheen_lm.attention import attention_of
from sheen_lm.layout import IGNORE
from sheen_lm.loss import Head, Run, Scored, entropies
from sheen_lm.packing import PADDING


class CodesLM(nn.Module):
    """A language model of transformers and the ids of its convention.

    With `audio_only`, an array of ids, the loss chooses among these alone; SheenError where it
    counts others. After `own_rows` tokens have vectors beside the frozen tables: `ours` are their
    ids.
    """

    lm: Any
    places: Tensor  # (vocabulary,): a token's row in the tables of its own, or -1

    def __init__(
        self, lm: nn.Module, ids: Any = None, audio_only: np.ndarray | None = None
    ) -> None:
        super().__init__()
        if audio_only is not None and ids.convention.loss != "codes":
            raise SheenError("model.audio_only: this convention's loss counts more than audio, too")
        self.lm, self.ids, self.audio_only = lm, ids, audio_only
        self.adapter: list[Any] = []  # PEFT's view of `lm`, in a list: it is no module beside it
        self.artifacts: Path | None = None  # of the data that it learns or learnt from
        self.learnt: Any = None  # whose names that data holds, where it is to speak: see `prepared`
        self.fresh: tuple[int, ...] = ()  # ids of the tables' rows that the base never learnt
        self.own_rows(())

    def own_rows(self, ours: tuple[int, ...]) -> None:
        places = torch.full((self.input_table.shape[0],), -1, device=self.device)
        places[list(ours)] = torch.arange(len(ours), device=self.device)
        self.register_buffer("places", places, persistent=False)
        self.ours = ours
        self.choices = self.runs(self.audio_only)

    @property
    def input_table(self) -> Tensor:
        return base_weight(self.lm.get_input_embeddings())

    @property
    def output_table(self) -> Tensor:
        return base_weight(self.lm.get_output_embeddings())

    @property
    def tied(self) -> bool:
        return self.input_table is self.output_table

    @property
    def device(self) -> torch.device:
        return self.input_table.device

    @property
    def attention(self) -> str:
        name: str = self.lm.config._attn_implementation
        return name

    def runs(self, ids: np.ndarray | None = None) -> tuple[Run, ...]:
        """Where the output vectors of tokens lie, of all or of some; weight 0 is the table, 1 the
        rows of their own.
        """
        size = self.output_table.shape[0]
        tokens = np.arange(size) if ids is None else np.unique(ids)
        places = self.places.cpu().numpy()[tokens]
        rows = np.where(places < 0, tokens, places)
        breaks = (np.diff(tokens) != 1) | (np.diff(rows) != 1) | (np.diff(places < 0) != 0)
        found = []
        for part in np.split(np.arange(len(tokens)), np.flatnonzero(breaks) + 1):
            row = int(rows[part[0]])
            own = int(places[part[0]] >= 0)
            found.append(Run(own, row, row + len(part), int(tokens[part[0]])))
        return tuple(found)

    def head(self, choices: tuple[Run, ...] | None = None) -> Head:
        """What to choose from, by default as the loss does."""
        weights: tuple[Tensor, ...] = (self.output_table,)
        if self.ours:
            weights += (own_weight(self.lm.get_output_embeddings()),)
        return Head(weights, self.choices if choices is None else choices)

    def embed(self, tokens: Tensor) -> Tensor:
        """Vectors (..., hidden) of ids."""
        module = self.lm.get_input_embeddings()
        if self.ours:
            place = self.places[tokens]
            mine = embedding(place.clamp(min=0), own_weight(module))
            found = embedding(tokens, self.input_table)
            return torch.where((place >= 0)[..., None], mine.to(found.dtype), found)
        if self.tied and self.input_table.requires_grad and torch.is_grad_enabled():
            # the head's gradient is the whole table already; this one is added to it row by row
            return embedding(tokens, self.input_table, sparse=True)
        embedded: Tensor = module(tokens)
        return embedded

    def states(self, tokens: Tensor, segments: Tensor | None = None) -> Tensor:
        """The normed last hidden states (B, n, hidden) of ids (B, n). Rows are right-padded, so
        that causal attention alone keeps padding from all that is read. With `segments` (B, n), a
        token attends to those of its own segment alone, and each counts its positions from 0.
        """
        if segments is None:
            return self.run(tokens, None)
        if not packable(self.lm):
            raise SheenError(
                f"model.pack: {type(self.lm).__name__} has layers that would carry over from a row "
                "to the next; set model.pack=false"
            )
        if self.attention == "flash_attention_2":
            return self.flat(tokens, segments)
        return self.run(tokens, positions_of(segments))

    def flat(self, tokens: Tensor, segments: Tensor) -> Tensor:
        """The same, of all windows as one, without padding: flash attention takes sequences of any
        lengths behind each other, and no mask. Zeros where there is padding.
        """
        held = segments != PADDING
        found = self.run(tokens[held][None], positions_of(numbered(segments)[held][None]))
        states = found.new_zeros((*tokens.shape, found.shape[-1]))
        states[held] = found[0]
        return states

    def run(self, tokens: Tensor, positions: Tensor | None) -> Tensor:
        # Where positions start again transformers sees a new sequence, unless there is a mask;
        # where there is none, one of ones says so, and the fastest kernel is taken.
        mask = torch.ones_like(tokens) if positions is None else None
        found: Tensor = self.lm.base_model(
            inputs_embeds=self.embed(tokens), attention_mask=mask, position_ids=positions,
            use_cache=False,
        ).last_hidden_state  # fmt: skip
        return found

    def forward(
        self, tokens: Tensor, targets: Tensor, segments: Tensor | None = None, trace: bool = False
    ) -> Scored:
        """What the targets (B, n), each on the token that predicts it, cost; in their order."""
        asked = targets != IGNORE
        hidden = self.states(tokens, segments)[asked]
        return entropies(hidden, targets[asked], self.head(), trace)


def numbered(segments: Tensor) -> Tensor:
    """Segments (B, n), counted from 1, that no two windows share; padding stays PADDING."""
    windows = torch.arange(len(segments), device=segments.device)[:, None]
    return torch.where(segments == PADDING, PADDING, segments + windows * segments.max())


def positions_of(segments: Tensor) -> Tensor:
    """Positions (B, n) that start at 0 with each segment."""
    at = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    new = pad(segments[:, 1:] != segments[:, :-1], (1, 0), value=True)
    return at - torch.where(new, at, 0).cummax(1).values


def base_weight(module: Any) -> Tensor:
    """An embedding's or a head's table, whether or not PEFT has wrapped it."""
    inner = module.original_module if hasattr(module, "token_adapter") else module
    weight: Tensor = inner.weight
    return weight


def own_weight(module: Any) -> Tensor:
    """The rows that PEFT trains beside that table."""
    weight: Tensor = module.token_adapter.trainable_tokens_delta["default"]
    return weight


# --- loading --------------------------------------------------------------------------------------


def load(
    base: str | Path,
    attention: str = "auto",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
) -> tuple[Any, Any]:
    """A language model and its tokenizer, of a folder or a Hub id, as transformers has them. Raises
    SheenError where there is none, or where tensors are missing or no part of the model.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import find_adapter_config_file

    kind, words = attention_of(attention, dtype), tokenizer(base, revision)
    if find_adapter_config_file(base, revision=revision):  # transformers would put a base under it
        raise SheenError(
            f"model.base={base} is an adapter; make a whole model of the run that it is from: "
            f"sheen export RUN --as merged -o FOLDER, then model.base=FOLDER"
        )
    try:
        with quiet():  # it warns of what is an error here
            lm, told = AutoModelForCausalLM.from_pretrained(
                base, revision=revision, dtype=dtype, attn_implementation=kind,
                output_loading_info=True,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError) as error:
        raise unreadable(base, error) from None
    for what in ("missing", "unexpected", "mismatched"):
        if names := sorted(map(str, told[f"{what}_keys"])):
            some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
            raise SheenError(f"model.base={base} is not what its config.json says: {what} {some}")
    plain(lm, base)
    return lm, words


def tokenizer(base: str | Path, revision: str | None = None) -> Any:
    """That of a folder or a Hub id. Raises SheenError where there is none."""
    from transformers import AutoTokenizer

    name = str(base)
    if not Path(name).is_dir() and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise SheenError(f"model.base={base}: neither a folder nor a Hub id of the form USER/NAME")
    try:
        with quiet():  # it takes every large vocabulary for one of Mistral's
            return AutoTokenizer.from_pretrained(base, revision=revision)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise unreadable(base, error) from None


def config(base: str | Path) -> Any:
    """The configuration of a folder or a Hub id. Raises SheenError where there is none."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(base)
    except (OSError, ValueError, KeyError) as error:
        raise unreadable(base, error) from None


def unreadable(base: str | Path, error: Exception) -> SheenError:
    reason = " ".join(str(error).split())[:300]
    if isinstance(error, KeyError) or "Unrecognized configuration class" in reason:
        reason = "it is no language model that transformers knows"
    return SheenError(f"model.base={base} cannot be loaded: {reason}")


@contextmanager
def quiet() -> Iterator[None]:
    """While it lasts, transformers tells errors alone."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@torch.no_grad()
def plain(lm: Any, base: str | Path) -> None:
    """Raises SheenError where logits are not just hidden states times a table, as where a model
    scales or caps them, or adds a bias: the loss would be another than the model's.
    """
    wrapped, tokens = CodesLM(lm), torch.tensor([[0, 1]], device=lm.device)
    was = lm.training
    lm.eval()
    wanted = lm(input_ids=tokens, use_cache=False).logits.float()
    found = (wrapped.states(tokens) @ wrapped.output_table.T).float()
    lm.train(was)
    if not torch.allclose(found, wanted, rtol=0, atol=0.05 * float(wanted.abs().max())):
        raise SheenError(
            f"model.base={base}: {type(lm).__name__} does more to its logits than a product with "
            f"a table; such models are not supported"
        )


def checkpoint(model: CodesLM) -> None:
    """Keep no layer's insides for the backward pass, which computes them again."""
    model.lm.gradient_checkpointing_enable({"use_reentrant": False})


def packable(lm: Any) -> bool:
    """Whether segments of one window can be kept apart: of all layers, attention alone can."""
    kinds = getattr(lm.config, "layer_types", None) or ()
    return set(kinds) <= {"full_attention", "sliding_attention"}


# --- saving ---------------------------------------------------------------------------------------


def save_whole(model: CodesLM, folder: Path) -> None:
    """Config, weights and tokenizer, as plain transformers loads them; its `generate` ends where
    speech does.
    """
    settings = model.lm.generation_config
    settings.eos_token_id, settings.pad_token_id = model.ids.stop, model.ids.pad
    model.lm.save_pretrained(folder)
    model.ids.tokenizer.save_pretrained(folder)
