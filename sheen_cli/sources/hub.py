"""A data set on the Hub, read row by row with the `datasets` library: pinned to a commit, never
decoded by it, never copied to this disk.
"""

import re
import time
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any, Protocol, TypeVar

from sheen_cli import console, logins
from sheen_cli.audio import Rejected
from sheen_cli.errors import SheenError
from sheen_cli.sources.columns import SPLITS

PAUSES = (1, 2, 4, 8)  # seconds between attempts; reading on has the libraries' own, longer ones
TIMEOUT = 60  # seconds for one answer
BUSY = {408, 429, 500, 502, 503, 504}

Answer = TypeVar("Answer")


class Choice(Protocol):
    """Which rows of a set: the recipe's section `data`, or another one with these keys."""

    @property
    def config(self) -> str | None: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def split(self) -> str | None: ...


class HubSet:
    """The rows of USER/NAME at one commit. Nothing is asked before it is needed."""

    def __init__(self, name: str, data: Choice) -> None:
        self.name, self.data = name, data

    def origin(self) -> dict[str, Any]:
        """What pins the rows: id, commit, configuration and splits."""
        names = {"id": self.name, "revision": self.commit, "config": self.data.config}
        return {**names, "splits": list(self.splits)}

    @cached_property
    def commit(self) -> str:
        from huggingface_hub import HfApi

        ask = partial(HfApi().dataset_info, self.name, timeout=TIMEOUT)
        return str(self._asked(lambda: ask(revision=self.data.revision).sha))

    @cached_property
    def splits(self) -> dict[str, Any]:
        """The splits to read: their names -> iterables of rows."""
        import datasets

        datasets.disable_progress_bars()
        opened = self._asked(
            lambda: datasets.load_dataset(
                self.name, self.data.config, revision=self.commit, streaming=True
            )
        )
        chosen = self._choose(list(opened))
        return {name: undecoded(opened[name]) for name in chosen}

    @property
    def sides(self) -> dict[str, str | None]:
        """Our names of the splits to read; None where there is but one."""
        several = len(self.splits) > 1
        return {name: SPLITS[name.lower()] if several else None for name in self.splits}

    def _choose(self, names: list[str]) -> list[str]:
        wanted, shown = self.data.split, ", ".join(names)
        if wanted is not None:
            ours = SPLITS.get(wanted.lower(), wanted)
            same = [name for name in names if SPLITS.get(name.lower(), name) == ours]
            if not (chosen := [wanted] if wanted in names else same):
                raise SheenError(f"{self.name} has no split '{wanted}'; it has {shown}")
            return chosen[:1]
        if len(names) == 1:
            return names
        chosen = [name for name in names if name.lower() in SPLITS]
        if not chosen:
            raise SheenError(f"{self.name} has the splits {shown}; name one with --split")
        if left := [name for name in names if name not in chosen]:
            console.say(f"{self.name}: left out {', '.join(left)}; --split takes one by name")
        return chosen

    def __iter__(self) -> Iterator[tuple[str | None, str, dict[str, Any]]]:
        """(our split, place, row) of every row; the split is None where there is but one."""
        for name, table in self.splits.items():
            split = self.sides[name]
            rows, number = iter(table), 0
            while True:
                number += 1
                try:
                    row = next(rows, None)
                except Exception as error:  # of many kinds: network, parquet, the library's own
                    raise self._broken(error, f"{name} row {number}") from error
                if row is None:
                    break
                yield split, f"{name} row {number}", row

    def find(self, audio: str) -> bytes:
        """The bytes of a file of the set; raises Rejected where there is none."""
        import fsspec

        path = audio if "://" in audio else f"hf://datasets/{self.name}@{self.commit}/{audio}"
        if not path.rpartition("::")[2].startswith(f"hf://datasets/{self.name}@"):
            raise Rejected("outside-set", f"{audio} is no file of the data set")

        def read() -> bytes:
            with fsspec.open(path, "rb") as stream:
                return bytes(stream.read())

        try:
            return self._asked(read)
        except FileNotFoundError:
            raise Rejected("missing-audio", f"no file {audio} in {self.name}") from None

    def _asked(self, ask: Callable[[], Answer]) -> Answer:
        """The Hub's answer, patiently. Raises SheenError with the way out; FileNotFoundError where
        a file of the set is missing.
        """
        for pause in (*PAUSES, None):
            try:
                return ask()
            except FileNotFoundError as error:
                if type(error) is FileNotFoundError:
                    raise
                raise self._problem(error) from error
            except Exception as error:
                if pause is None or not passing(error):
                    raise self._problem(error) from error
                console.say(f"{self.name}: {brief(error)}; again in {pause} s")
            time.sleep(pause)
        raise AssertionError

    def _broken(self, error: Exception, where: str) -> SheenError:
        if status(error) in (401, 403):
            return self._problem(error)
        return SheenError(
            f"{self.name} could not be read on at {where}: {brief(error)}; what was finished "
            f"before is untouched: run the same again, or with --max-samples for the part before it"
        )

    def _problem(self, error: Exception) -> SheenError:
        """What a failed question means to a user."""
        from huggingface_hub import errors

        text, name = " ".join(str(error).split()), self.name
        if isinstance(error, errors.OfflineModeIsEnabled):
            return SheenError(
                f"{name} is no folder or file here, and HF_HUB_OFFLINE forbids to ask the Hub; "
                f"unset it, or give a folder"
            )
        if isinstance(error, errors.GatedRepoError) or "gated dataset" in text:
            return SheenError(
                f"{name} is gated: ask for access on its page, and log in with `hf auth login` or "
                f"HF_TOKEN"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return SheenError(f"{name} has no revision '{self.data.revision}'")
        if isinstance(error, errors.RepositoryNotFoundError):
            hint = (
                "none that your login may read is on the Hub"
                if logins.hub()
                else "no public one on the Hub; for a private one log in with `hf auth login` or "
                "HF_TOKEN"
            )
            return SheenError(f"no data set {name}: no file or folder here, and {hint}")
        if status(error) in (401, 403):
            return SheenError(f"the Hub refuses the login for {name}; `hf auth login` renews it")
        if script := re.search(r"scripts are no longer supported, but found (\S+)", text):
            return SheenError(
                f"{name} is made by a program of its own ({script[1]}), which sheen does not run, "
                f"and there is no trust_remote_code; try data.revision=refs/convert/parquet, or "
                f"give its files as a folder"
            )
        if known := re.search(r"(?:available configs|Available): \[(.*?)\]", text):
            names = known[1].replace("'", "")
            return SheenError(f"{name} has the configurations {names}; name one: data.config=NAME")
        if passing(error):
            return SheenError(
                f"the Hub does not answer for {name}: {brief(error)}; try again later"
            )
        return SheenError(f"{name} cannot be read: {brief(error)}")


def undecoded(table: Any) -> Any:
    """The rows with sound as it lies in the files. `datasets` would decode it with torchcodec, and
    asks for that even to pass on a file's name, so such columns are text for it.
    """
    from datasets import Audio, Value

    if table.features is None:  # of CSV and JSON, which hold no sound
        return table
    for name, kind in table.features.items():
        if isinstance(kind, Audio) and table.info.builder_name == "audiofolder":
            table = table.cast_column(name, Value("string"))
        elif isinstance(kind, Audio):
            table = table.cast_column(name, Audio(decode=False))
    return table


def passing(error: Exception) -> bool:
    """Whether the same question may be answered a little later."""
    import httpx
    import requests
    from huggingface_hub.errors import OfflineModeIsEnabled

    network = (
        ConnectionError,
        TimeoutError,
        httpx.TransportError,
        requests.ConnectionError,
        requests.Timeout,
        requests.exceptions.ChunkedEncodingError,
    )
    if isinstance(error, OfflineModeIsEnabled):  # a ConnectionError, and for good
        return False
    return status(error) in BUSY or (status(error) is None and isinstance(error, network))


def status(error: Exception) -> int | None:
    """The HTTP status of an answer that was an error; the libraries wrap it in many kinds."""
    answer = getattr(error, "response", None)
    return None if answer is None else int(answer.status_code)


def brief(error: Exception) -> str:
    """An error as one line without secrets, addresses or the Hub's own advice."""
    text = logins.scrub(str(error), logins.values()).strip().partition("\n")[0]
    text = re.sub(r"\s*(?:for url: |\()?https?://\S+", "", text)
    return text[:200] or type(error).__name__
