"""Documents packed into windows of a fixed length, and windows as tensors.

A document that fits is never cut; the pieces of one that does not end between two frames. Which
tokens belong together is kept, so that nothing need attend from one document to another.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sheen_cli import SheenError
from sheen_lm.layout import IGNORE

PADDING = 0  # the segment of padding; those of documents count from 1


class Piece(NamedTuple):
    """`length` tokens of document number `document`, from its token `begin` on."""

    document: int
    begin: int
    length: int


class Shape(NamedTuple):
    """What decides where a document may be cut: its tokens; from token `start` on only between two
    frames, which are `stride` tokens each. The `tail` after the last frame stays with it.
    """

    length: int
    start: int = 0
    stride: int = 1
    tail: int = 0


def cut(shape: Shape, window: int) -> list[int]:
    """The lengths of a document's pieces, in order; their sum is the document's. Raises SheenError
    where not even a frame and the end after it fit a window.
    """
    length, start, stride, tail = shape
    last = max(length - tail - stride, start)  # where the last frame begins
    if length - last > window:
        raise SheenError(
            f"a window of {window} tokens holds no frame of {stride} and the end; make it longer"
        )
    pieces, at = [], 0
    while length - at > window:
        to = at + window
        if to > start:
            to = min(start + (to - start) // stride * stride, last)
        pieces.append(to - at)
        at = to
    return [*pieces, length - at]


def best_fit(lengths: Sequence[int], window: int) -> list[list[int]]:
    """Numbers of the pieces in each window: the longest piece first, each into the fullest window
    that still holds it. No length exceeds `window`.
    """
    windows: list[list[int]] = []
    spaces: list[int] = []  # what is free in some window, ascending
    free: dict[int, list[int]] = {}  # that much free -> windows
    for number in np.argsort(-np.asarray(lengths, np.int64), kind="stable").tolist():
        length = lengths[number]
        at = bisect_left(spaces, length)
        if at == len(spaces):
            space, mine = window, len(windows)
            windows.append([])
        else:
            space = spaces[at]
            mine = free[space].pop()
            if not free[space]:
                del free[space], spaces[at]
        windows[mine].append(number)
        if space := space - length:
            if space not in free:
                insort(spaces, space)
                free[space] = []
            free[space].append(mine)
    return windows


def whole(documents: Sequence[Shape], window: int) -> list[list[Piece]]:
    """Windows of documents that are whole where they fit, best fit first."""
    pieces = []
    for number, shape in enumerate(documents):
        at = 0
        for length in cut(shape, window):
            pieces.append(Piece(number, at, length))
            at += length
    packed = best_fit([piece.length for piece in pieces], window)
    return [[pieces[each] for each in mine] for mine in packed]


def concatenated(documents: Sequence[Shape], window: int) -> list[list[Piece]]:
    """Windows of documents one after the other, cut wherever a window is full."""
    windows: list[list[Piece]] = []
    room = 0
    for number, shape in enumerate(documents):
        at = 0
        while at < shape.length:
            if not room:
                windows.append([])
                room = window
            length = min(room, shape.length - at)
            windows[-1].append(Piece(number, at, length))
            at, room = at + length, room - length
    return windows


PACKINGS = {"documents": whole, "concatenated": concatenated}


class Arrays(NamedTuple):
    """Windows as arrays (B, n), int64: tokens; targets, each on the position that predicts it;
    segments, 1, 2, ... by document and 0 where there is padding.
    """

    tokens: np.ndarray
    targets: np.ndarray
    segments: np.ndarray


def arrays(
    windows: Sequence[tuple[np.ndarray, Sequence[int]]], window: int, pad: int, apart: bool = True
) -> Arrays:
    """Windows, given by their tokens and the lengths of their pieces, right-padded to `window`.

    Every token but padding is a target, except for the first of each piece, which nothing precedes.
    Unless the pieces are kept `apart`, a window is one segment, and only its first token is none.
    """
    tokens = np.full((len(windows), window), pad, np.int64)
    segments = np.full_like(tokens, PADDING)
    for row, (mine, lengths) in enumerate(windows):
        tokens[row, : len(mine)] = mine
        segments[row, : len(mine)] = np.repeat(np.arange(len(lengths)), lengths) + 1 if apart else 1
    targets = np.full_like(tokens, IGNORE)
    follows = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] != PADDING)
    targets[:, :-1][follows] = tokens[:, 1:][follows]
    return Arrays(tokens, targets, segments)
