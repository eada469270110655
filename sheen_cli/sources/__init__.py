"""Data sets as entries: tables on disk, sets on the Hub, and what the backbone's package embeds."""

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from sheen_cli.audio import Rejected
from sheen_cli.errors import SheenError
from sheen_cli.recipe import Recipe
from sheen_cli.sources import tables
from sheen_cli.sources.columns import ALIASES, SPLITS, Table, common, entry, locate
from sheen_cli.sources.hub import HubSet
from sheen_cli.types import BackboneSpec, Entry

Listed = Entry | Rejected  # a bad line is an item of its own, so that it can be named and counted

ON_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class Source:
    """The entries of one data set, which can be listed again and again. `where` names it for
    people; `path` is where it lies, None where that is no place on this disk.
    """

    def __init__(self, dataset: str, recipe: Recipe[Any], spec: BackboneSpec) -> None:
        self.where, self.recipe, self.spec = dataset, recipe, spec
        path = Path(dataset).expanduser()
        self.embedded = dataset in spec.datasets
        self.remote = not self.embedded and not path.exists() and bool(ON_HUB.fullmatch(dataset))
        self.path = None if self.embedded or self.remote else path
        if self.path is not None:
            self._check(self.path)
        common(recipe.data)  # is said before anything is read
        for key in ("config", "revision"):
            if not self.remote and getattr(recipe.data, key) is not None:
                raise SheenError(f"data.{key} is for data sets on the Hub, and {dataset} is none")

    def _check(self, path: Path) -> None:
        if not path.exists():
            known = (
                f", nor a data set that the backbone embeds ({', '.join(self.spec.datasets)})"
                if self.spec.datasets
                else ""
            )
            raise SheenError(
                f"--dataset {path}: neither a folder nor a file, nor USER/NAME on the Hub{known}"
            )
        self._files = tables.listing(path)

    @cached_property
    def hub(self) -> HubSet:
        return HubSet(self.where, self.recipe.data)

    def origin(self) -> dict[str, Any]:
        """What tells this data set from another of its name: the hash of the files that list it, or
        the commit on the Hub.
        """
        if self.remote:
            return {"source": self.hub.origin()}
        return {"listing": None if self.path is None else tables.fingerprint(self._files)}

    def __iter__(self) -> Iterator[Listed]:
        if self.remote:
            yield from self._hub()
        else:
            yield from self._chosen(self._embedded() if self.embedded else self._table())

    def _embedded(self) -> Iterator[Listed]:
        yield from self.spec.datasets[self.where](self.recipe)

    def _table(self) -> Iterator[Listed]:
        assert self.path is not None
        folder = self.path if self.path.is_dir() else self.path.parent
        find = partial(locate, folder=folder, contained=folder == self.path)
        table = Table(self.recipe.data, self.spec, find)
        for where, row in tables.read(self._files, self.recipe.data.columns):
            yield listed(row, where, table)

    def _hub(self) -> Iterator[Listed]:
        fields = frozenset(ALIASES) - {"split"}  # the set's own splits count
        table = Table(self.recipe.data, self.spec, self.hub.find, fields)
        for split, where, row in self.hub:
            found = listed(row, where, table)
            yield (
                found if isinstance(found, Rejected) else replace(found, split=found.split or split)
            )

    def _chosen(self, entries: Iterator[Listed]) -> Iterator[Listed]:
        """The rows of the split that the recipe asks for, which are then split afresh; all, where
        it asks for none.
        """
        wanted = self.recipe.data.split
        if wanted is None:
            yield from entries
            return
        names, others = {wanted, SPLITS.get(wanted.lower(), wanted)}, set[str]()
        found = False
        for each in entries:
            if isinstance(each, Entry) and each.split not in names:
                others.add(each.split or "none")
                continue
            found = found or isinstance(each, Entry)
            yield replace(each, split=None) if isinstance(each, Entry) else each
        if others and not found:
            raise SheenError(
                f"{self.where} has no row of split '{wanted}'; its splits: "
                f"{', '.join(sorted(others))}"
            )


def listed(row: dict[str, Any] | Rejected, where: str, table: Table) -> Listed:
    """A row as an Entry, or why it cannot be one."""
    if isinstance(row, Rejected):
        return row
    try:
        return entry(row, where, table)
    except Rejected as rejected:
        return rejected
