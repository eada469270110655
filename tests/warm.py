"""A Python that is warm: `Warm(...).python` is a program that behaves as the interpreter's, and
whose processes, and those that they start as `sys.executable`, are forked from one that has
imported the named modules already.

Each is a real process, with its own arguments, folder, environment, pipes and exit code; what it
has not is the seconds that PyTorch takes to be imported. For tests whose subject is not how a
process starts or is killed.

    python tests/warm.py SOCKET MODULE[:FUNCTION]...

A function that is named is called, too.
"""

import array
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import traceback
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import NoReturn

# Run by a bare interpreter, in some milliseconds: it hands all that a process has to the warm one.
CLIENT = """#!{python} -IS
import array, json, os, socket, sys
server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
server.connect({address!r})
facts = [sys.argv[1:], os.getcwd(), dict(os.environ), os.getppid()]
rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
server.sendmsg([b"!"], rights)
server.sendall(json.dumps(facts).encode("utf-8", "surrogateescape") + b"\\n")
code = int(server.makefile().readline() or 1)
os.kill(os.getpid(), -code) if code < 0 else os._exit(code)
"""


class Warm:
    """The warm process, to be used in a `with` block; it lies in `folder`. With `environment` it
    starts in that one, for what libraries read when they are imported.
    """

    def __init__(
        self, folder: Path, *modules: str, environment: dict[str, str] | None = None
    ) -> None:
        address = str(folder / "warm")
        assert len(address) < 100, "a socket's name must be short"
        self.environment, self.python = environment, folder / "python"
        self.python.write_text(CLIENT.format(python=sys.executable, address=address))
        self.python.chmod(0o700)
        command, pipe = [sys.executable, __file__, address, *modules], subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe)
        assert self.process.stdout is not None and self.process.stdout.readline() == b"warm\n"

    def __enter__(self) -> "Warm":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()  # the end of its input is its own


def serve(address: str, modules: list[str]) -> NoReturn:
    """Fork a keeper for every client; the keeper forks what the client asks for, and waits."""
    sys.executable = str(Path(address).with_name("python"))
    for each in modules:
        name, _, function = each.partition(":")
        module = importlib.import_module(name)
        if function:
            getattr(module, function)()
    shelf = sys.path[1:]  # without our own folder
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    shelf = [path for path in shelf if path not in given]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(address)
        server.listen()
        print("warm", flush=True)
        while server in select.select([server, 0], [], [])[0]:
            client, _ = server.accept()
            if not os.fork():
                server.close()
                keep(client, shelf)
            client.close()
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:  # keepers that are done
                    pass
    while True:
        try:
            os.wait()
        except ChildProcessError:
            sys.exit()


def keep(client: socket.socket, shelf: list[str]) -> NoReturn:
    """Run what a client asks for and tell it the exit code; it ends with the client."""
    handles = array.array("i")
    _, rights, _, _ = client.recvmsg(1, socket.CMSG_SPACE(3 * handles.itemsize))
    handles.frombytes(rights[0][2])
    with client.makefile() as stream:
        arguments, folder, environment, parent = json.loads(stream.readline())
    if not (child := os.fork()):
        client.close()
        for number, handle in enumerate(handles):
            os.dup2(handle, number)
        os.getppid = lambda: parent  # who started the client, for those that end with it
        os._exit(become(arguments, folder, environment, shelf))
    os.closerange(0, 3)
    for handle in handles:
        os.close(handle)
    ready, _, _ = select.select([os.pidfd_open(child), client], [], [])
    if client in ready:  # it is gone
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if client not in ready:
        client.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def become(arguments: list[str], folder: str, environment: dict[str, str], shelf: list[str]) -> int:
    """Do as `python ARGUMENTS` would, for -m, -c and a script, with -P or -u; returns the code."""
    hashes = environment.get("PYTHONHASHSEED")
    assert hashes in (None, os.environ.get("PYTHONHASHSEED")), "this one hashes otherwise"
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    more = environment.get("PYTHONPATH", "").split(os.pathsep)
    flags = list(takewhile(("-P", "-u").__contains__, arguments))
    kind, what, *rest = arguments[len(flags) :]
    if kind not in ("-m", "-c"):
        kind, what, rest = "", kind, [what, *rest]
        folder = os.path.dirname(os.path.abspath(what))
    sys.path[:] = [*([] if "-P" in flags else [folder]), *filter(None, more), *shelf]
    sys.argv[:] = [what, *rest]
    importlib.invalidate_caches()
    # buffered as a new process's are
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.stdin = os.fdopen(0, "r", encoding="utf-8", closefd=False)
    code: object = 0
    try:
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        elif kind == "":
            runpy.run_path(what, run_name="__main__")
        else:
            sys.argv[0] = "-c"
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code if isinstance(code, int) else int(code is not None)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:])
