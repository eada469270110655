"""The talker and its sub-talker behind one forward pass, with the sequence's two channels added up.

The stock modules do the arithmetic; which rows are read, and what they are compared with, is ours:
the stock classes shift labels that are already in place.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sheen_qwen3_tts import stock
from sheen_qwen3_tts.base import Base, read
from sheen_qwen3_tts.layout import IGNORE, NONE, VECTOR


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
    def device(self) -> torch.device:
        device: torch.device = self.talker.codec_head.weight.device
        return device

    def embed(self, text: Tensor, codec: Tensor, vectors: Tensor) -> Tensor:
        """Rows (B, n) and (B, n, groups), and each sequence's speaker vector (B, hidden) -> inputs
        (B, n, hidden). Text is projected first and masked after: a projection has biases.
        """
        talker = self.talker
        words = talker.text_projection(talker.model.text_embedding(text.clamp(min=0)))
        total: Tensor = words * (text != NONE)[..., None]
        first = codec[..., 0]
        total = total + talker.model.codec_embedding(first.clamp(min=0)) * (first >= 0)[..., None]
        total = total + vectors[:, None] * (first == VECTOR)[..., None]
        frame = codec[..., 1] != NONE  # control rows have no code but the first
        if bool(frame.any()):
            inner = torch.zeros_like(total)
            tables = talker.code_predictor.get_input_embeddings()
            inner[frame] = sum(
                table(codec[..., group][frame]) for group, table in enumerate(tables, 1)
            ).to(inner.dtype)
            total = total + inner
        return total

    def forward(
        self, text: Tensor, codec: Tensor, vectors: Tensor, mask: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits of code 0 or the end for every row that has it as a target (rows, vocabulary), and
        of codes 1.. for every row that predicts a frame (frames, groups - 1, codes).

        `vectors` (B, hidden) are the sequences' speakers'; `targets` (B, n, groups) lie on the row
        that predicts them; sequences are right-padded.
        """
        inputs = self.embed(text, codec, vectors)
        hidden = self.talker.model(
            inputs_embeds=inputs, attention_mask=mask, use_cache=False
        ).last_hidden_state
        asked, frames = targets[..., 0] != IGNORE, targets[..., 1] != IGNORE
        first: Tensor = self.talker.codec_head(hidden[asked])
        return first, self.inner(hidden[frames], targets[frames])

    def inner(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """Logits (frames, groups - 1, codes) of each frame's codes 1.. from the hidden state of the
        row that predicts it (frames, hidden) and its codes (frames, groups), the last one unread.
        """
        predictor = self.talker.code_predictor
        tables = [self.talker.model.codec_embedding, *predictor.get_input_embeddings()]
        steps = [hidden, *(table(codes[:, group]) for group, table in enumerate(tables[:-1]))]
        states = predictor.model(
            inputs_embeds=predictor.small_to_mtp_projection(torch.stack(steps, 1)), use_cache=False
        ).last_hidden_state
        heads = [head(states[:, group]) for group, head in enumerate(predictor.lm_head, 1)]
        return torch.stack(heads, 1)


def load(folder: Path, voices: Mapping[str, Tensor], attention: str = "auto") -> Speech:
    """The model of a base's folder, in float32."""
    base = read(folder)
    stock.load()
    from qwen_tts.core.models import Qwen3TTSConfig, Qwen3TTSForConditionalGeneration
    from transformers import PreTrainedModel

    config = Qwen3TTSConfig(**json_copy(base.config))
    # past the class's own from_pretrained, which loads the codec as well
    load_weights: Any = PreTrainedModel.from_pretrained.__func__
    model = load_weights(
        Qwen3TTSForConditionalGeneration, folder, config=config, dtype=torch.float32,
        attn_implementation=attention_of(attention),
    )  # fmt: skip
    stock.restore_rotary(model)
    return Speech(base, model, voices)


def json_copy(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy that the config's classes, which edit their input in place, may have."""
    import json

    values: dict[str, Any] = json.loads(json.dumps(config))
    values.pop("model_type", None)
    values.pop("architectures", None)
    return values


def attention_of(wanted: str) -> str:
    """The attention to load with; auto takes flash_attention_2 where it is installed, on a GPU."""
    if wanted != "auto":
        return wanted
    from importlib.util import find_spec

    return "flash_attention_2" if find_spec("flash_attn") and torch.cuda.is_available() else "sdpa"
