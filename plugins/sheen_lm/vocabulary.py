"""A text model's tokenizer and tables made ready for codes: tokens added, rows found for them and
given values that lie among those of the old rows.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from sheen_cli import SheenError
from sheen_lm.convention import Convention, fields
from sheen_lm.layout import offset, resolve, token_names

if TYPE_CHECKING:
    from torch import Tensor

Init = Literal["mean", "spread", "normal", "zero"]
# The part of the old rows' covariance that "mean" keeps: new tokens start as likely as each other
# and as an average word, and differ by just enough to part (Hewitt, 2021, "Initializing new word
# embeddings for pretrained language models").
KEPT = 1e-5
CHUNK = 8192  # rows


@dataclass(frozen=True)
class Added:
    """What a tokenizer got: `tokens`, and their `ids`; `reused` of the convention's tokens were
    there.
    """

    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    reused: int


@dataclass(frozen=True)
class Report:
    """What became of the tables: their rows before and now; the ids of those that were given values
    by `init` (fresh,), how many of them are rows that the base had spare, how many stand for no
    token.
    """

    before: int
    rows: int
    init: str
    fresh: tuple[int, ...]
    spare: int
    unused: int
    tied: bool


def tokens(convention: Convention) -> list[str]:
    """All tokens that the convention needs, in the order in which its family adds them: `added`,
    the specials, then the codes. The numbers before `codes.number` belong to the codes' pattern,
    specials among them or spare.
    """
    codes = convention.codes
    names = [*convention.added]
    numbered: list[str] = []
    if codes.token is not None:
        if fields(codes.token) == {"number"}:
            numbered = [codes.token.format(number=number) for number in range(codes.number)]
        books = sorted(range(len(codes.sizes)), key=lambda book: (offset(codes, book), book))
        numbered += [name for book in books for name in token_names(codes, book)]
    inside = set(numbered)
    specials = (token for token in convention.specials.values() if isinstance(token, str))
    names += [token for token in specials if token not in inside]
    unique = list(dict.fromkeys([*names, *numbered]))
    return sorted(unique) if convention.order == "sorted" else unique


def extend(tokenizer: Any, convention: Convention) -> Added:
    """Add what the tokenizer lacks of the convention's tokens, in the convention's order."""
    from transformers import AddedToken

    vocabulary = tokenizer.get_vocab()
    wanted = tokens(convention)
    missing = [token for token in wanted if token not in vocabulary]
    taken = tokenizer.add_tokens([AddedToken(token, normalized=False) for token in missing])
    if taken != len(missing):
        raise SheenError(
            f"the tokenizer took {taken} of {len(missing)} tokens; tokens cannot be added to it"
        )
    ids = tokenizer.convert_tokens_to_ids(missing)
    return Added(tuple(missing), tuple(ids), len(wanted) - len(missing))


def resize(
    model: Any, tokenizer: Any, convention: Convention, added: Added, init: str = "mean",
    seed: int = 0,
) -> Report:  # fmt: skip
    """Give the model's tables a row for each token, and values to the rows of those in `added`.

    Rows that the base has to spare are used before the tables grow; tables that share their
    weights go on sharing them. Where nothing was added, the rows are trained ones and stay.
    """
    import torch

    if init not in get_args(Init):
        raise SheenError(f"init: {init} is none of {', '.join(get_args(Init))}")
    ids = resolve(convention, tokenizer)
    wanted = np.append(ids.codes[ids.codes >= 0], list(ids.roles.values()))
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    before, tied, size = len(inputs.weight), outputs.weight is inputs.weight, len(tokenizer)
    rows = max(before, size, int(wanted.max()) + 1, convention.rows)
    if rows > before:
        rows = -(-rows // convention.multiple) * convention.multiple
        model.resize_token_embeddings(rows, mean_resizing=False)
    fresh = _fresh(wanted, size, added, before, rows)
    old = (~fresh[: min(before, size)]).nonzero()[0]
    generator = torch.Generator().manual_seed(seed)
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    assert (tables[0].weight is tables[1].weight) == tied
    for weight in [table.weight.detach() for table in tables[: 1 if tied else 2]]:
        if fresh.any():
            scale = model.config.initializer_range
            values = _values(weight, old, int(fresh.sum()), init, scale, generator)
            weight[torch.from_numpy(fresh).to(weight.device)] = values
    used = np.arange(rows) < size
    used[wanted] = True
    return Report(
        before, rows, init, tuple(fresh.nonzero()[0].tolist()), int(fresh[:before].sum()),
        int((fresh & ~used).sum()), tied,
    )  # fmt: skip


def describe(added: Added, report: Report) -> str:
    """One line of what was done."""
    size = f"{report.before} rows" + (f" -> {report.rows}" if report.rows > report.before else "")
    return (
        f"vocabulary: {len(added.tokens)} tokens added, {added.reused} reused;"
        f" {'tied table' if report.tied else 'tables'} of {size}; {len(report.fresh)} new by"
        f" '{report.init}', {report.spare} of them spare rows of the base, {report.unused} without"
        " a token"
    )


def _fresh(wanted: np.ndarray, size: int, added: Added, before: int, rows: int) -> np.ndarray:
    """Which of the rows (rows,) hold nothing learnt, for a tokenizer of `size` tokens."""
    fresh = np.arange(rows) >= before
    fresh[list(added.ids)] = True
    if int(wanted.max()) >= before:  # ids without tokens, in a base that never had them all
        fresh[wanted[wanted >= size]] = True
    return fresh


def _values(
    table: "Tensor", old: np.ndarray, count: int, init: str, scale: float, generator: Any
) -> "Tensor":
    """Values (count, width) for new rows, after the rows `old` of the table."""
    import torch

    width = table.shape[1]
    if init == "zero":
        values = torch.zeros(count, width)
    elif init == "normal":
        values = scale * torch.randn(count, width, generator=generator)
    else:
        mean, root = _moments(table, old)
        noise = torch.randn(count, width, generator=generator) @ root.T
        values = mean + noise * (KEPT**0.5 if init == "mean" else 1.0)
    return values.to(table.device, table.dtype)


def _moments(table: "Tensor", old: np.ndarray) -> "tuple[Tensor, Tensor]":
    """The mean (width,) of the rows `old`, and the root (width, width) of their covariance."""
    import torch

    width = table.shape[1]
    total = torch.zeros(width, dtype=torch.float64)
    square = torch.zeros(width, width, dtype=torch.float64)
    for start in range(0, len(old), CHUNK):
        index = torch.from_numpy(old[start : start + CHUNK]).to(table.device)
        part = table[index].float().cpu()
        total += part.sum(0)
        square += part.T @ part
    mean = total / len(old)
    values, vectors = torch.linalg.eigh((square / len(old) - mean.outer(mean)).float())
    # the symmetric root, the one that does not depend on the signs of the eigenvectors
    return mean.float(), (vectors * values.clamp(min=0).sqrt()) @ vectors.T
