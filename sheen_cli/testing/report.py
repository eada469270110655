"""What a rule is, and what is found of it."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sheen_cli.errors import SheenError

if TYPE_CHECKING:
    from sheen_cli.testing.lab import Lab


class Broken(Exception):
    """A rule does not hold; the message says what was seen."""


class NotOffered(Exception):
    """A rule cannot be judged, because the backbone does not offer what it looks at."""


@dataclass(frozen=True)
class Rule:
    """One promise of the contract. `cause` is what most often breaks it; `needs` names the rules
    without which it tells nothing.
    """

    name: str
    hook: str  # the plugin's function that answers for it
    promise: str
    cause: str
    needs: tuple[str, ...]
    judge: "Callable[[Lab], None]"


@dataclass(frozen=True)
class Finding:
    """A rule's verdict on one backbone."""

    rule: str
    hook: str
    promise: str
    status: Literal["ok", "failed", "waits", "not offered"]
    problem: str = ""
    cause: str = ""

    def __str__(self) -> str:
        line = f"{self.rule}: {self.hook}: {self.promise}"
        if self.status == "failed":
            cause = f"\n  likely cause: {self.cause}" if self.cause else ""
            return f"{line}\n  seen: {self.problem}{cause}"
        return f"{line}\n  {self.status}: {self.problem}" if self.problem else line


def rule(hook: str, cause: str, needs: str = "") -> "Callable[[Callable[[Lab], None]], Rule]":
    """Make a rule of a function, whose name is the rule's and whose docstring its promise."""

    def made(function: "Callable[[Lab], None]") -> Rule:
        promise = " ".join((function.__doc__ or "").split()).rstrip(".")
        return Rule(function.__name__, hook, promise, cause, tuple(needs.split()), function)

    return made


def judge(rule: Rule, lab: "Lab", waits: list[str]) -> Finding:
    """Judge one rule, unless it waits for others. Whatever a hook raises breaks the rule."""

    def finding(
        status: Literal["ok", "failed", "waits", "not offered"], problem: str = "", cause: str = ""
    ) -> Finding:
        return Finding(rule.name, rule.hook, rule.promise, status, problem, cause)

    if waits:
        return finding("waits", f"not judged: it rests on {' and '.join(waits)}")
    try:
        rule.judge(lab)
    except Broken as broken:
        return finding("failed", str(broken), rule.cause)
    except NotOffered as reason:
        return finding("not offered", str(reason))
    except SheenError as error:
        return finding("failed", f"SheenError: {error}")
    except (Exception, SystemExit) as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        seen = f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
        return finding("failed", seen)  # the line says more than a guess at the cause
    return finding("ok")
