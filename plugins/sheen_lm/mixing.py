"""Which windows are trained on: sources mixed by tokens, languages balanced.

A mixture has a fixed number of windows of every source and language. They are drawn without
repetition until all have been drawn, then again, and shuffled together. Which one comes where is a
pure function of (seed, position), so that no table is held.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sheen_cli import SheenError

ROUNDS = 6  # of the Feistel network; four mix, two more for the smallest halves
OFTEN = 4  # times; what comes again more often than that teaches little that is new
CLOSE = 0.01  # how far a realised share may be from the wanted one, of it, before it is said


@dataclass(frozen=True)
class Stratum:
    """Windows of one source and language, and the tokens in them."""

    source: str
    language: str
    windows: int
    tokens: int


@dataclass(frozen=True)
class Blend:
    """What a source is mixed by: a fixed `share` of all tokens, or a `weight` among those sources
    that divide what is left; neither: its tokens are its weight. Languages are balanced over those
    of one `kind` that have no share.
    """

    weight: float | None = None
    share: float | None = None
    kind: str = ""


@dataclass(frozen=True)
class Part:
    """A stratum's part in the mixture: the share of tokens that it is to have, and the number of
    its windows in it.
    """

    stratum: Stratum
    share: float
    count: int


@dataclass(frozen=True)
class Mixture:
    """Windows of all parts in one order."""

    parts: tuple[Part, ...]
    seed: int

    def __len__(self) -> int:
        return int(self._ends[-1])

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([part.count for part in self.parts])

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each position (n,) the number of its part and of the window in it."""
        slots = permuted(positions, len(self), self.seed)
        numbers = np.searchsorted(self._ends, slots, side="right")
        windows = np.empty_like(slots)
        for number, part in enumerate(self.parts):
            mine = np.flatnonzero(numbers == number)
            first = self._ends[number] - part.count
            windows[mine] = self._drawn(part, slots[mine] - first)
        return numbers, windows

    def _drawn(self, part: Part, draws: np.ndarray) -> np.ndarray:
        """The windows of a part at these draws: in another order each time all have come."""
        stratum = part.stratum
        passes, places = np.divmod(draws, stratum.windows)
        windows = np.empty_like(draws)
        for each in np.unique(passes).tolist():
            mine = passes == each
            key = (self.seed, stratum.source, stratum.language, each)
            windows[mine] = permuted(places[mine], stratum.windows, *key)
        return windows


def mixture(
    strata: Sequence[Stratum],
    blends: Mapping[str, Blend],
    tokens: int | None = None,
    temperature: float = 1.0,
    languages: Mapping[str, float] | None = None,
    seed: int = 42,
) -> Mixture:
    """A mixture of `tokens` tokens (None: as many as the strata), of every stratum at least a
    window. Raises SheenError for shares that cannot be.
    """
    shares = targets(strata, blends, temperature, languages)
    total = tokens or sum(stratum.tokens for stratum in shares)
    parts = []
    for stratum, share in shares.items():
        count = round(total * share * stratum.windows / stratum.tokens)
        parts.append(Part(stratum, share, max(1, count)))
    return Mixture(tuple(parts), seed)


def targets(
    strata: Sequence[Stratum],
    blends: Mapping[str, Blend],
    temperature: float,
    languages: Mapping[str, float] | None,
) -> dict[Stratum, float]:
    """The share of all tokens that each stratum is to have; one that is left out has none.

    1. Where `languages` are given, what is in another one is as if it were not there.
    2. A source has its share, or its part of what the shares leave: by weights, else by tokens.
       Where only sources with a share are there because others are left out, they divide all.
    3. Its languages divide what it has by their tokens. That is all, at a temperature of 1 and
       without `languages`.
    4. Else languages are balanced within each source that has a share, and over all others of one
       kind: what these have together goes to languages by `language_shares`. Inside a language
       strata keep the proportions of 3.
    """
    there = [stratum for stratum in strata if stratum.windows]
    kept = by_source(spoken(there, languages))
    fixed = {name: blends[name].share for name in kept}
    parts = blends
    if len(kept) < len(by_source(there)) and None not in fixed.values():
        parts = {name: Blend(weight=share) for name, share in fixed.items()}
    tokens = {name: sum(stratum.tokens for stratum in kept[name]) for name in kept}
    plain: dict[Stratum, float] = {}
    groups: dict[tuple[str, str | None], list[Stratum]] = {}
    for name, share in source_shares(tokens, parts).items():
        alone = None if fixed[name] is None else name
        groups.setdefault((blends[name].kind, alone), []).extend(kept[name])
        own = language_shares({each.language: each.tokens for each in kept[name]}, 1.0, None)
        plain |= {stratum: share * own[stratum.language] for stratum in kept[name]}
    if temperature == 1 and not languages:
        return plain
    found = dict(plain)
    for group in groups.values():
        found |= balanced({stratum: plain[stratum] for stratum in group}, temperature, languages)
    return found


def by_source(strata: Sequence[Stratum]) -> dict[str, list[Stratum]]:
    found: dict[str, list[Stratum]] = {}
    for stratum in strata:
        found.setdefault(stratum.source, []).append(stratum)
    return found


def spoken(strata: Sequence[Stratum], languages: Mapping[str, float] | None) -> list[Stratum]:
    """Those in the given languages, or all. Raises SheenError where that leaves none."""
    kept = [stratum for stratum in strata if not languages or stratum.language in languages]
    if strata and not kept:
        names = ", ".join(map(repr, dict.fromkeys(stratum.language for stratum in strata)))
        raise SheenError(f"no language of the sources has a weight: they have {names}")
    return kept


def balanced(
    shares: Mapping[Stratum, float], temperature: float, languages: Mapping[str, float] | None
) -> dict[Stratum, float]:
    """The sum of these shares, divided anew: among languages, and inside each as it was."""
    tokens: dict[str, int] = {}
    before: dict[str, float] = {}
    for stratum, share in shares.items():
        tokens[stratum.language] = tokens.get(stratum.language, 0) + stratum.tokens
        before[stratum.language] = before.get(stratum.language, 0.0) + share
    whole, after = sum(shares.values()), language_shares(tokens, temperature, languages)
    return {
        stratum: whole * after[stratum.language] * share / before[stratum.language]
        for stratum, share in shares.items()
    }


def source_shares(tokens: Mapping[str, int], blends: Mapping[str, Blend]) -> dict[str, float]:
    """Each source's share of all tokens. Raises SheenError where they do not add up."""
    if not tokens:
        raise SheenError("no source has a window to train on")
    fixed = {name: blends[name].share for name in tokens}
    shares = {name: share for name, share in fixed.items() if share is not None}
    others = [name for name in tokens if name not in shares]
    left = 1 - sum(shares.values())
    if left < -1e-9 or (others and left <= 0) or (not others and left > 1e-9):
        raise SheenError(
            f"the shares of {', '.join(shares)} add up to {1 - left:g}; "
            + ("leave something to the other sources" if others else "without others they make 1")
        )
    weights = {name: blends[name].weight for name in others}
    if missing := [name for name in others if weights[name] is None]:
        if len(missing) < len(others):
            raise SheenError(
                f"source {missing[0]} has neither a weight nor a share, but others have a weight; "
                f"give all of them one, or none"
            )
        weights = {name: float(tokens[name]) for name in others}
    whole = sum(weight or 0.0 for weight in weights.values())
    return {
        name: shares[name] if name in shares else left * (weights[name] or 0.0) / whole
        for name in tokens
    }


def language_shares(
    tokens: Mapping[str, int], temperature: float, weights: Mapping[str, float] | None
) -> dict[str, float]:
    """The languages' shares: as their tokens to the power 1 / temperature (1: as they are; the
    higher, the more alike), or by the weights, which all of them have.
    """
    if weights:
        raw = {language: weights[language] for language in tokens}
    else:
        top = max(tokens.values())
        raw = {name: (count / top) ** (1 / temperature) for name, count in tokens.items()}
    whole = sum(raw.values())
    return {language: each / whole for language, each in raw.items()}


def permuted(positions: np.ndarray, count: int, *key: object) -> np.ndarray:
    """Where each position of 0..count - 1 goes in the permutation that `key` names: a Feistel
    network over the next power of four, walked until it is back inside. It needs no table.
    """
    half = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    digest = hashlib.shake_128(repr(key).encode()).digest(8 * ROUNDS)
    keys = np.frombuffer(digest, "<u8").astype(np.uint64)
    values = np.atleast_1d(np.asarray(positions)).astype(np.uint64)
    outside = np.ones(len(values), bool)
    while outside.any():
        left, right = values[outside] >> half, values[outside] & mask
        for each in keys:
            left, right = right, left ^ (scrambled(right ^ each) & mask)
        values[outside] = (left << half) | right
        outside = values >= count
    return values.astype(np.int64)


def scrambled(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: 64 bits (n,) that all depend on all."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)))


def report(parts: Sequence[Part], tokens: Sequence[int]) -> list[dict[str, float | str | int]]:
    """What a mixture realises of each part, given its tokens in it."""
    whole = sum(tokens)
    return [
        {
            "source": part.stratum.source,
            "language": part.stratum.language,
            "wanted": round(part.share, 6),
            "realised": round(mine / whole, 6),
            "tokens": mine,
            "windows": part.count,
            "passes": round(part.count / part.stratum.windows, 4),
        }
        for part, mine in zip(parts, tokens, strict=True)
    ]


def times(passes: float) -> str:
    """How often the windows of a part come, in words."""
    return f"{passes:.1f}".removesuffix(".0") + " times" if passes >= 0.05 else "under 0.1 times"


def repeated(facts: Sequence[Mapping[str, float | str | int]]) -> list[str]:
    """The parts that come more often than they teach, in words."""
    return [
        f"{each['source']} ({each['language'] or 'no language'}) {times(float(each['passes']))}"
        for each in facts
        if round(float(each["passes"]), 1) > OFTEN
    ]


def distant(facts: Sequence[Mapping[str, float | str | int]]) -> list[str]:
    """The parts whose share is off by more than a hundredth of it, in words."""
    return [
        f"{each['source']} {each['language']}: {each['realised']:.4f} instead of {each['wanted']}"
        for each in facts
        if abs(float(each["realised"]) - float(each["wanted"])) > CLOSE * float(each["wanted"])
    ]
