"""The contract kit: proves that a backbone trains what it generates, saves what it is, and keeps
the promises of its hooks.

    sheen plugins check NAME                      on the command line
    report = sheen_cli.testing.check("NAME")      in Python: a Finding for every rule
    test_contract = contract("NAME")              in a test file: a pytest test for every rule

A rule that rests on one that is broken is not judged, so that what is reported is the cause and
not its consequences.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from sheen_cli.testing.lab import Lab
from sheen_cli.testing.report import Finding, Rule, judge
from sheen_cli.testing.rules_data import DATA
from sheen_cli.testing.rules_model import MODEL
from sheen_cli.testing.rules_speech import SPEECH
from sheen_cli.testing.rules_whole import PACKAGE, WHOLE

RULES: tuple[Rule, ...] = (*PACKAGE, *DATA, *MODEL, *SPEECH, *WHOLE)

__all__ = ["RULES", "Finding", "Rule", "check", "contract"]


def judged(name: str, settings: Sequence[str] = ()) -> Iterator[Finding]:
    """Judge the installed backbone `name` by every rule, in order, each as soon as it is known.

    `settings` are `section.key=value`, on top of what `BackboneSpec.tiny` says.
    """
    with tempfile.TemporaryDirectory(prefix="sheen-check-") as folder:
        lab = Lab(name, settings, Path(folder))
        verdicts: dict[str, Finding] = {}
        for rule in RULES:
            waits = [each for each in rule.needs if verdicts[each].status in ("failed", "waits")]
            verdicts[rule.name] = judge(rule, lab, waits)
            yield verdicts[rule.name]


def check(name: str, settings: Sequence[str] = ()) -> list[Finding]:
    """Judge the installed backbone `name` by every rule."""
    return list(judged(name, settings))


def contract(name: str, settings: Sequence[str] = ()) -> Callable[..., None]:
    """A pytest function that has a case for every rule: `test_contract = contract("NAME")`."""
    import pytest

    @cache
    def findings() -> dict[str, Finding]:
        return {finding.rule: finding for finding in check(name, settings)}

    @pytest.mark.parametrize("rule", [rule.name for rule in RULES])
    def test(rule: str) -> None:
        finding = findings()[rule]
        if finding.status == "failed":
            pytest.fail(str(finding), pytrace=False)
        if finding.status != "ok":
            pytest.skip(str(finding))

    result: Any = test
    return result  # type: ignore[no-any-return]
