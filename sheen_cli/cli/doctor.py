"""`sheen doctor`."""

import json
from typing import Annotated

import typer

from sheen_cli import console
from sheen_cli.cli.options import Json


def doctor(
    seconds: Annotated[
        float, typer.Option("--timeout", min=1, help="Seconds that a backbone's step may take.")
    ] = 300,
    as_json: Json = False,
) -> None:
    """Say whether this installation is ready, and how to mend it.

    Looks at the machine, versions, disk and logins, and tries one tiny real step of every backbone.
    """
    from sheen_cli.doctor import checks, lines, report

    found = list(checks(seconds))
    facts = report(found)
    if as_json:
        console.result(json.dumps(facts))
    else:
        verdict = "ready" if facts["ready"] else "not ready: see the lines marked NO"
        console.result("\n".join([*lines(found), verdict]))
    if not facts["ready"]:
        raise typer.Exit(1)
