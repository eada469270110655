"""Where keys for the Hub and for W&B may be, and how to keep them out of every message."""

import os
import re
from netrc import NetrcParseError, netrc
from pathlib import Path
from urllib.parse import unquote, urlsplit

KEYS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")
URLS = ("HF_ENDPOINT", "WANDB_BASE_URL", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
SHORT = 6  # characters below which a value is no key, and would be found in ordinary words


def values() -> list[str]:
    """Every secret in the environment: keys, and passwords inside addresses; longest first."""
    found = {os.environ.get(name, "").strip() for name in KEYS}
    for name in [*URLS, *map(str.lower, URLS)]:
        before, at, _ = os.environ.get(name, "").rpartition("@")
        if at:
            user, _, password = before.partition("://")[2].partition(":")
            password = password or user
            found |= {password, unquote(password)}
    return sorted((each for each in found if len(each) >= SHORT), key=len, reverse=True)


def scrub(text: str, hidden: list[str]) -> str:
    for value in hidden:
        text = text.replace(value, "***")
    return text


def host(address: str) -> str:
    """The host of a URL and nothing else of it, since before it there may be a password."""
    _, at, rest = address.rpartition("@")
    if not at:
        rest = urlsplit(address).netloc or address
    name = re.split(r"[/?#]", rest)[0]
    return name if re.fullmatch(r"[\w.\-]+(:\d+)?|\[[\da-fA-F:]+\](:\d+)?", name) else "no host"


def hub() -> bool:
    """Whether there is a token for the Hub, in the environment or stored by `hf auth login`."""
    if any(os.environ.get(name, "").strip() for name in KEYS[:2]):
        return True
    try:
        from huggingface_hub import get_token
    except ImportError:
        return False
    return bool(get_token())


def wandb() -> bool:
    """Whether there is a key for W&B, in the environment or in the netrc file of `wandb login`."""
    if os.environ.get("WANDB_API_KEY", "").strip():
        return True
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        entry = netrc(file).authenticators(
            host(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
        )
    except (OSError, NetrcParseError, UnicodeDecodeError):  # none, or none that can be read
        return False
    return bool(entry and entry[2])
