"""The talker and its sub-talker behind one forward pass, with the sequence's two channels added up.

The stock modules do the arithmetic; which rows are read, and what they are compared with, is ours:
the stock classes shift labels that are already in place.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sheen_cli import SheenError
from sheen_lm.attention import attention_of
from sheen_qwen3_tts import stock
from sheen_qwen3_tts.base import Base, read
from sheen_qwen3_tts.inner import Inner, entropies
from sheen_qwen3_tts.layout import IGNORE, NONE, VECTOR

LANGUAGES = "language_embedding"  # of the talker: rows (n, hidden) trained beside adapters


class Speech(nn.Module):
    """The stock model of a base, and the vectors of the voices that it is taught (n, hidden)."""

    talker: Any
    speaker_encoder: nn.Module | None
    voices: Tensor

    def __init__(self, base: Base, stock_model: nn.Module, voices: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.base, self.names = base, tuple(voices)
        self.talker = stock_model.get_submodule("talker")
        self.speaker_encoder = getattr(stock_model, "speaker_encoder", None)
        width = base.talker["hidden_size"]
        table = torch.stack(list(voices.values())) if voices else torch.zeros(0, width)
        self.register_buffer("voices", table.float(), persistent=False)

    @property
    def attention(self) -> str:
        name: str = self.talker.config._attn_implementation
        return name

    @property
    def device(self) -> torch.device:
        device: torch.device = self.talker.codec_head.weight.device
        return device

    def embed(
        self, text: Tensor, codec: Tensor, vectors: Tensor, known: list[Tensor] | None = None
    ) -> Tensor:
        """Rows (B, n) and (B, n, groups), and each sequence's speaker vector (B, hidden) -> inputs
        (B, n, hidden). Text is projected first and masked after: a projection has biases. `known`
        are the frames' codes, looked up.
        """
        talker = self.talker
        # most rows hold the same one, padding
        ids, places = torch.unique(text.clamp(min=0), return_inverse=True)
        words = talker.text_projection(talker.model.text_embedding(ids))[places]
        kind = words.dtype  # of all that follows: autocast's, whatever the tables are kept in
        total: Tensor = words * (text != NONE)[..., None]
        first = codec[..., 0]
        control = self.control(first).to(kind)
        total = total + control * (first >= 0)[..., None]
        total = total + vectors[:, None].to(kind) * (first == VECTOR)[..., None]
        frame = codec[..., 1] != NONE  # control rows have no code but the first
        if bool(frame.any()):
            inner, found = torch.zeros_like(total), known or self.looked_up(codec[frame])
            inner[frame] = sum(found[1:], found[0]).to(kind)
            total = total + inner
        return total

    def looked_up(self, codes: Tensor) -> list[Tensor]:
        """Vectors (k, hidden) of codes 1.. of frames (k, groups), a tensor each."""
        tables = self.talker.code_predictor.get_input_embeddings()
        return [table(codes[:, group]) for group, table in enumerate(tables, 1)]

    def control(self, ids: Tensor) -> Tensor:
        """Vectors (B, n, hidden) of the codec channel's first ids (B, n); of nothing, anything."""
        found: Tensor = self.talker.model.codec_embedding(ids.clamp(min=0))
        rows = getattr(self.talker, LANGUAGES, None)  # of new languages, beside adapters
        if rows is not None:
            for number, (row, _) in enumerate(self.base.added.values()):
                found = torch.where((ids == row)[..., None], rows[number].to(found.dtype), found)
        return found

    def forward(
        self, text: Tensor, codec: Tensor, vectors: Tensor, targets: Tensor, trace: bool = False
    ) -> tuple[Tensor, Inner]:
        """Logits of code 0 or the end for every row that has it as a target (rows, vocabulary), and
        what codes 1.. cost of every row with such targets; with `trace` their logits as well.

        `vectors` (B, hidden) are the sequences' speakers'; `targets` (B, n, groups) lie on the row
        that predicts them. Sequences are right-padded, so that causal attention alone, without a
        mask, keeps padding from all that is read; or put behind each other where that is less.
        """
        asked, frames, heard = (
            targets[..., 0] != IGNORE,
            targets[..., 1] != IGNORE,
            codec[..., 1] != NONE,
        )
        codes, count = targets[frames], int(heard.sum())
        # once for both stacks: a table's gradient is as large as the table, however few rows it has
        known = self.looked_up(torch.cat([codec[heard], codes]))
        inputs = self.embed(text, codec, vectors, [each[:count] for each in known])
        full = (text != NONE) | (codec[..., 0] != NONE)  # not padding
        if self.packs(full):
            hidden = inputs.new_zeros(inputs.shape)
            places = torch.arange(text.shape[1], device=text.device).expand_as(text)[full]
            hidden[full] = states(self.talker.model, inputs[full][None], places[None])[0]
        else:
            hidden = states(self.talker.model, inputs)
        first: Tensor = self.talker.codec_head(hidden[asked])
        predictor = self.talker.code_predictor
        steps = self.steps(hidden[frames], codes, [each[count:] for each in known])
        parts = [predictor.small_to_mtp_projection, predictor.model.layers, predictor.model.norm]
        parameters = [p for part in (*parts, predictor.lm_head) for p in part.parameters()]
        return first, entropies(self.scores, parameters, steps, codes[:, 1:], trace)

    def packs(self, full: Tensor) -> bool:
        """Whether a batch's rows (B, n), those that are no padding, cost less in one sequence. Its
        attention looks over all of them, unless the kernel knows where each sequence starts.
        """
        (count, length), rows = full.shape, int(full.sum())
        if self.attention == "flash_attention_2":
            return rows < count * length
        layer = self.talker.model.layers[0]
        work = sum(parameter.numel() for parameter in layer.parameters())  # products a row
        each = 2 * layer.self_attn.o_proj.in_features  # products a pair of rows
        alone = count * length * (work + length * each)
        return full.device.type == "cpu" and rows * (work + rows * each) < alone

    def steps(self, hidden: Tensor, codes: Tensor, known: list[Tensor] | None = None) -> Tensor:
        """The sub-talker's inputs (frames, groups, hidden): the hidden state of the row that
        predicts a frame (frames, hidden), and its codes (frames, groups) but the last.
        """
        known = known or self.looked_up(codes)
        first = self.talker.model.codec_embedding(codes[:, 0])
        return torch.stack([each.to(hidden.dtype) for each in (hidden, first, *known[:-1])], 1)

    def scores(self, steps: Tensor) -> Tensor:
        """Logits (frames, groups - 1, codes) of each frame's codes 1.. from such inputs."""
        predictor = self.talker.code_predictor
        found = states(predictor.model, predictor.small_to_mtp_projection(steps)).unbind(1)
        heads = [head(row) for row, head in zip(found[1:], predictor.lm_head, strict=True)]
        return torch.stack(heads, 1)


def states(stack: Any, inputs: Tensor, places: Tensor | None = None) -> Tensor:
    """The normed last hidden states of one of the two stacks. Only what the stack itself calls so
    is taken; in the talker's `hidden_states` they are not the last, and looking there finds None.

    Where `places` (1, n) start again at 0, another sequence starts, of which the others are hidden.
    """
    given: dict[str, Any] = {} if places is None else {"position_ids": places}
    found: Tensor | None = stack(inputs_embeds=inputs, use_cache=False, **given).last_hidden_state
    if found is None:
        raise RuntimeError(f"{type(stack).__name__} returned no last hidden state")
    return found.to(inputs.dtype)


def load(
    folder: Path,
    voices: Mapping[str, Tensor],
    attention: str = "auto",
    dtype: torch.dtype | None = torch.float32,
    new_languages: tuple[tuple[str, str], ...] = (),
) -> Speech:
    """The model of a base's folder; without a dtype each tensor keeps the one it is stored in. A
    new language starts from the row of another. Raises SheenError where tensors are missing, or
    are no part of the model.
    """
    base = read(folder, new_languages)
    stock.load()
    from accelerate import init_empty_weights
    from qwen_tts.core.models import Qwen3TTSConfig, Qwen3TTSForConditionalGeneration

    config = Qwen3TTSConfig(**json_copy(base.config))
    # Not the stock from_pretrained, which loads the codec as well, makes all tensors of one dtype
    # and fills those that are missing with noise.
    with init_empty_weights(include_buffers=False):
        model = Qwen3TTSForConditionalGeneration._from_config(
            config, attn_implementation=attention_of(attention, dtype)
        )
    state = {name: value if dtype is None else value.to(dtype) for name, value in stored(folder)}
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split("\n", 1)[-1].split())
        raise SheenError(f"{folder} is not what its config.json says: {reason}") from None
    stock.restore_rotary(model)
    with torch.no_grad():
        table = model.talker.model.codec_embedding.weight
        for row, like in base.added.values():
            table[row] = table[like]
    return Speech(base, model, voices)


def stored(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a folder, each through a mapping of its own: the pages of one that is then
    converted are given back, and of one that stays only what is read takes memory.
    """
    from safetensors import safe_open

    for shard in sorted(folder.glob("model*.safetensors")):
        with safe_open(shard, "pt") as tensors:
            names = list(tensors.keys())
        for name in names:
            with safe_open(shard, "pt") as tensors:
                yield name, tensors.get_tensor(name)


def json_copy(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy that the config's classes, which edit their input in place, may have."""
    import json

    values: dict[str, Any] = json.loads(json.dumps(config))
    values.pop("model_type", None)
    values.pop("architectures", None)
    return values
