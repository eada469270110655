"""Codecs: speech to frames of codes and back, by SNAC, Mimi, DAC, EnCodec and XCodec2.

Other packages and their weights do the work; here is what all of them need to be codecs of speech
language models: whole frames, float32, codes that are checked, and a note of which codec made them.
The names below load on first use: only `shape` needs no PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sheen_lm.codecs.codec import Codec as Codec
    from sheen_lm.codecs.codec import constant as constant
    from sheen_lm.codecs.codec import encoded as encoded
    from sheen_lm.codecs.record import check as check
    from sheen_lm.codecs.record import note as note
    from sheen_lm.codecs.record import read as read
    from sheen_lm.codecs.record import revision as revision
    from sheen_lm.codecs.source import load as load
    from sheen_lm.codecs.source import shape as shape

_HOME = {
    **dict.fromkeys(("Codec", "constant", "encoded"), "codec"),
    **dict.fromkeys(("check", "note", "read", "revision"), "record"),
    **dict.fromkeys(("load", "shape"), "source"),
}
__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'sheen_lm.codecs' has no attribute {name!r}")
    return getattr(import_module(f"sheen_lm.codecs.{_HOME[name]}"), name)
