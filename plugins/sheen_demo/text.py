"""The demo's text: words in lower case, and the error for one that it has never heard."""

from collections.abc import Sequence
from difflib import get_close_matches

LISTED = 100  # words named in an error


def unknown_words(unknown: Sequence[str], vocabulary: Sequence[str]) -> str:
    more = f" and {len(vocabulary) - LISTED} more" if len(vocabulary) > LISTED else ""
    close = [
        f"'{near[0]}' for '{word}'"
        for word in unknown
        if (near := get_close_matches(word, vocabulary, 1))
    ]
    hint = f" Did you mean {', '.join(close)}?" if close else ""
    return (
        f"the demo's voice does not know {', '.join(map(repr, unknown))}; it has a closed "
        f"vocabulary.{hint} "
        f"Its words: {' '.join(vocabulary[:LISTED])}{more}"
    )


def split(text: str) -> list[str]:
    """The words of a text: lower case, punctuation dropped except inside a word."""
    cleaned = "".join(
        character if character.isalnum() or character in "'-" else " "
        for character in text.casefold()
    )
    return [word.strip("'-") for word in cleaned.split() if word.strip("'-")]
