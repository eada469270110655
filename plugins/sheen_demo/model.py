"""The demo's acoustic model: a small LLaMA over words and delayed codec steps, with one head a
codebook.
"""

import torch
from torch import Tensor, nn
from transformers import Cache, LlamaConfig, LlamaModel

from sheen_demo.layout import BLANK, BOOKS, END


class AcousticModel(nn.Module):
    """Words (B, L) left-padded, then `<audio_start>` and audio steps; logits (B, S, 4, 129) for
    the steps that follow.
    """

    def __init__(self, words: int, hidden: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        config = LlamaConfig(
            vocab_size=1,
            hidden_size=hidden,
            intermediate_size=hidden * 5 // 2,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            attention_dropout=dropout,
            max_position_embeddings=4096,
            use_cache=False,
        )
        self.trunk = LlamaModel(config)
        # rows come as embeddings; a table that gets no gradient would stop distributed training
        self.trunk.embed_tokens = nn.Identity()
        self.word = nn.Embedding(words, hidden)
        self.code = nn.Embedding(BOOKS * (BLANK + 1), hidden)
        self.start = nn.Parameter(torch.randn(hidden) * 0.02)
        self.heads = nn.Linear(hidden, BOOKS * (END + 1), bias=False)
        self.dropout = nn.Dropout(dropout)
        for table in (self.word, self.code, self.heads):
            nn.init.normal_(table.weight, std=0.02)

    def embed_steps(self, steps: Tensor) -> Tensor:
        """(B, S, 4) -> (B, S, hidden): the sum of the four books' embeddings."""
        embedded: Tensor = self.code(steps + torch.arange(BOOKS, device=steps.device) * (BLANK + 1))
        return embedded.sum(2)

    def forward(self, words: Tensor, steps: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """`steps` (B, S - 1, 4) are the known ones; `positions` and `mask` (B, L + S) cover
        words, start and steps.
        """
        start = self.start.expand(len(words), 1, -1)
        rows = torch.cat([self.word(words), start, self.embed_steps(steps)], 1)
        states = self.trunk_states(rows, positions, mask)[:, words.shape[1] :]
        return self.logits(states)

    def trunk_states(
        self, rows: Tensor, positions: Tensor, mask: Tensor, cache: Cache | None = None
    ) -> Tensor:
        """Hidden states (B, n, hidden) of the last n of the rows that `mask` (B, m) covers. Which
        earlier row each may look at is spelt out: transformers would read positions that do not
        rise by one as several packed sequences, and takes longer over it than a small model.
        """
        seen = torch.ones(rows.shape[1], mask.shape[1], dtype=torch.bool, device=mask.device)
        seen = seen.tril(mask.shape[1] - rows.shape[1]) & mask[:, None, None].bool()
        states: Tensor = self.trunk(
            inputs_embeds=self.dropout(rows),
            position_ids=positions,
            attention_mask=seen,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        return states

    def logits(self, states: Tensor) -> Tensor:
        """(B, S, hidden) -> (B, S, 4, 129); END belongs to book 0 alone."""
        logits: Tensor = self.heads(states).unflatten(-1, (BOOKS, END + 1))
        ended = torch.zeros(BOOKS, END + 1, dtype=torch.bool, device=logits.device)
        ended[1:, END] = True
        return logits.masked_fill(ended, float("-inf"))
