"""Runs commands of sheen in one process, each a line of JSON; the Hub's address is read only when
its library is imported. Nothing but loopback can be reached from here.
"""

import json
import os
import sys
import traceback
from ipaddress import ip_address

from typer.testing import CliRunner


def watch(event: str, arguments: tuple) -> None:
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
        if host != "localhost" and not ip_address(host).is_loopback:
            raise PermissionError(f"left loopback: {host}")
    if event == "socket.getaddrinfo" and arguments[0] not in (None, "localhost", "127.0.0.1"):
        raise PermissionError(f"left loopback: {arguments[0]}")


def main() -> None:
    from sheen_cli.cli import app

    sys.addaudithook(watch)
    for line in sys.stdin:
        job = json.loads(line)
        os.environ.pop("HF_TOKEN", None)
        os.environ.update(job["environment"])
        os.chdir(job["folder"])
        result = CliRunner().invoke(app, job["arguments"])
        error = "".join(traceback.format_exception(result.exception)) if result.exception else ""
        answer = {"code": result.exit_code, "output": result.output, "error": error}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
