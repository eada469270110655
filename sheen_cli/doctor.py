"""Whether this installation is ready: what is there, what works, and the command that mends what
does not. What may hang or crash is done in other processes.
"""

import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import EntryPoint, PackageNotFoundError, metadata, version
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from sheen_cli import console, plugins
from sheen_cli import logins as keys
from sheen_cli.probe import Child, Died

PYTHON = (3, 11)
LITTLE, NO_DISK = 10, 1  # GB of free disk: below the first a notice, below the second not ready
MACHINE = 120.0  # seconds that PyTorch may take to start and to try its devices
STEP = 300.0  # seconds that a backbone's tiny step may take, unless the user says otherwise
QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "WANDB_MODE": "disabled"}
OURS = ("dev", "all")  # extras that name no need of their own
MARKS = {True: "ok", None: "--", False: "NO"}


@dataclass(frozen=True)
class Check:
    """One thing looked at. `ok`: True; None for a notice, which does not decide; False for what
    must be mended first, by `remedy`.
    """

    name: str
    ok: bool | None
    value: str
    remedy: str | None = None


def checks(seconds: float = STEP) -> Iterator[Check]:
    """All checks, each as soon as it is done; a backbone's tiny step may take `seconds`."""
    hidden = keys.values()
    for check in _checks(seconds):
        remedy = check.remedy and keys.scrub(check.remedy, hidden)
        yield replace(check, value=keys.scrub(check.value, hidden), remedy=remedy)


def _checks(seconds: float) -> Iterator[Check]:
    points, broken = plugins.scan()
    yield python()
    yield from machine()
    yield from extras(points)
    yield disk(Path.cwd())
    yield from logins()
    for each in broken:
        yield Check(f"package {each.distribution}", False, each.problem, each.remedy)
    if not points:
        yield Check("backbones", False, "none is installed", plugins.remedy("sheen-tts"))
    names = [point.name for point in points]
    for name in sorted({*names}):
        rivals = [plugins.package(point) for point in points if point.name == name]
        if len(rivals) > 1:
            text = f"is offered by {' and '.join(sorted(rivals))}"
            fix = f"uninstall one of them, as with `pip uninstall {sorted(rivals)[0]}`"
            yield Check(f"backbone {name}", False, text, fix)
    for point in points:
        if names.count(point.name) == 1:
            yield from backbone(point, seconds)


def python() -> Check:
    ok = sys.version_info >= PYTHON
    value = f"{platform.python_version()} at {sys.executable}"
    return Check("python", ok, value, None if ok else "sheen needs Python 3.11 or newer")


def machine() -> Iterator[Check]:
    """PyTorch, devices, precision and attention."""
    with Child("machine", quiet=True) as child:
        try:
            while (answer := child.answer(MACHINE)) != {}:
                yield Check(**answer)
        except Died as error:
            text = f"PyTorch or the GPU's driver {error}"
            yield Check(
                "torch", False, text, "reinstall it; `nvidia-smi` tells if the driver works"
            )


def extras(points: Iterable[EntryPoint]) -> Iterator[Check]:
    """What the packages that offer backbones can use and do not have."""
    complete = True
    for name in sorted({plugins.package(point) for point in points}):
        try:
            missing = absent(name)
        except InvalidRequirement as error:
            missing, complete = {}, False
            yield Check(f"extras of {name}", None, f"its metadata is damaged: {error}")
        for extra, packages in missing.items():
            complete = False
            text = f"not installed: {', '.join(packages)}"
            yield Check(f"extra {name}[{extra}]", None, text, f'`pip install "{name}[{extra}]"`')
    if complete:
        yield Check("extras", True, "nothing is missing")


def absent(distribution: str) -> dict[str, list[str]]:
    """For each extra of a package, but OURS, the requirements that the environment lacks.

    An extra that would replace what another one, all of which is there, needs is a choice that was
    not made, and lacks nothing.
    """
    wanted = wishes(distribution)
    lacking = {
        extra: [each for each in some if not fits(each.name, str(each.specifier))]
        for extra, some in wanted.items()
    }
    settled = {each.name for extra, some in wanted.items() if not lacking[extra] for each in some}
    return {
        extra: [str(replaced(each)) for each in some]
        for extra, some in lacking.items()
        if some and not any(installed(each.name) and each.name in settled for each in some)
    }


def wishes(distribution: str) -> dict[str, list[Requirement]]:
    """What each extra of a package, but OURS, requires beyond the package itself."""
    facts = metadata(distribution)
    wanted = [Requirement(text) for text in facts.get_all("Requires-Dist") or []]
    return {
        extra: [
            each
            for each in wanted
            if each.marker
            and not each.marker.evaluate({"extra": ""})
            and each.marker.evaluate({"extra": extra})
            and canonicalize_name(each.name) != canonicalize_name(distribution)
        ]
        for extra in facts.get_all("Provides-Extra") or []
        if extra not in OURS
    }


def replaced(requirement: Requirement) -> Requirement:
    """The requirement without its marker."""
    plain = Requirement(str(requirement))
    plain.marker = None
    return plain


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def fits(package: str, specifier: str) -> bool:
    """Whether a package is installed in a version that the specifier ("" for any) allows. Raises
    InvalidSpecifier.
    """
    there = installed(package)
    wanted = SpecifierSet(specifier)
    return there is not None and wanted.contains(there, prereleases=True)


def disk(folder: Path) -> Check:
    """The free space where runs and data would go."""
    free = shutil.disk_usage(folder).free / 1e9
    ok = False if free < NO_DISK else None if free < LITTLE else True
    remedy = None if ok else "make room, or work in a folder on another disk"
    return Check("disk", ok, f"{free:.1f} GB free in {folder}", remedy)


def logins() -> Iterator[Check]:
    """Whether there are keys for the services; nothing here ever holds one in a message."""
    if keys.hub():
        yield Check("hub login", True, "logged in")
    else:
        yield Check(
            "hub login", None, "not logged in", "`hf auth login`, for uploads and gated models"
        )
    if endpoint := os.environ.get("HF_ENDPOINT"):
        yield Check("hub endpoint", None, f"HF_ENDPOINT leads to {keys.host(endpoint)}")
    there = installed("wandb")  # not find_spec: W&B leaves folders called wandb
    if there is None:
        yield Check("wandb", None, "not installed", "`pip install wandb`, to log there")
    elif keys.wandb():
        yield Check("wandb", True, f"{there}, logged in")
    else:
        yield Check("wandb", None, f"{there}, not logged in", "`wandb login`")


def backbone(point: EntryPoint, seconds: float) -> Iterator[Check]:
    """Its import, its tested versions, and one tiny real step, in a process of its own."""
    name = f"backbone {point.name}"
    where = f"{plugins.package(point)} {plugins.version(point)}"
    remedy = plugins.remedy(plugins.package(point))
    console.say(f"trying backbone '{point.name}' of {where}: load, prepare, train a step, speak")
    with Child("step", point.name, quiet=True, environment=QUIET) as child:
        try:
            facts = child.answer(plugins.patience())
        except Died as error:
            yield Check(name, False, f"{where}: its import {error}", remedy)
            return
        if facts["error"]:
            yield Check(name, False, facts["error"].removesuffix(f"; {remedy}"), remedy)
            return
        if extra := unmet(plugins.package(point), facts["stacks"]):
            fix = f'`pip install "{plugins.package(point)}[{extra}]"`'
            yield Check(name, None, f"{where}: not tried, its extra is not installed", fix)
            return
        yield stack(point.name, facts["stacks"])
        if not facts["tiny"]:
            yield Check(name, None, f"{where}: loads; it has no tiny settings, so it was not tried")
            return
        try:
            yield done(name, where, child.answer(seconds), remedy)
        except Died as error:
            yield Check(name, False, f"{where}: one tiny step {error}", remedy)


def done(name: str, where: str, facts: dict[str, Any], remedy: str) -> Check:
    if facts["error"]:
        return Check(name, False, f"{where}: {facts['error']}", remedy)
    text = (
        f"{where}: one real step in {facts['seconds']} s, loss {facts['loss']:g}, "
        f"{facts['sound']} s of sound"
    )
    return Check(name, True, text)


def unmet(distribution: str, stacks: list[dict[str, str]]) -> str | None:
    """The extra of a package that would bring what every tested stack of a backbone misses."""
    missing = {package for each in stacks for package in each if installed(package) is None}
    if not stacks or not all(missing & set(each) for each in stacks):
        return None
    for extra, wanted in absent(distribution).items():
        if missing & {Requirement(each).name for each in wanted}:
            return extra
    return None


def stack(backbone: str, stacks: list[dict[str, str]]) -> Check:
    """The installed versions against those that a backbone was tested with.

    The nearest of its stacks counts. Another torch is a notice: it is a matter of the machine.
    """
    name = f"versions for {backbone}"
    if not stacks:
        return Check(name, None, "it names no versions that it was tested with")
    try:
        wrong = [{p: s for p, s in each.items() if not fits(p, s)} for each in stacks]
    except InvalidSpecifier as error:
        return Check(name, False, f"its tested versions are no versions: {error}")
    grave = [[p for p in each if p != "torch" or installed(p) is None] for each in wrong]
    nearest = min(range(len(stacks)), key=lambda number: (len(grave[number]), len(wrong[number])))
    amiss = wrong[nearest]
    text = ", ".join(f"{package} {installed(package) or 'missing'}" for package in stacks[nearest])
    if not amiss:
        return Check(name, True, f"{text}: tested")
    wanted = " ".join(f'"{package}{specifier}"' for package, specifier in amiss.items())
    told = ", ".join(f"{package}{specifier}" for package, specifier in amiss.items())
    ok = False if grave[nearest] else None
    return Check(name, ok, f"{text}; tested with {told}", f"`pip install {wanted}`")


def lines(found: Iterable[Check]) -> list[str]:
    """The checks aligned for people: mark, name, value, and below it the remedy."""
    found = list(found)
    width = max(len(check.name) for check in found)
    text = []
    for check in found:
        text.append(f"{MARKS[check.ok]}  {check.name.ljust(width)}  {check.value}")
        if check.remedy and check.ok is not True:
            text.append(" " * (width + 6) + check.remedy)
    return text


def report(found: Iterable[Check]) -> dict[str, Any]:
    """{"ready": whether nothing must be mended, "checks": [...]}"""
    rows = [asdict(check) for check in found]
    return {"ready": all(row["ok"] is not False for row in rows), "checks": rows}
