"""One writer a folder: a lock that the kernel frees when its process dies, however it dies."""

import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sheen_cli import console
from sheen_cli.errors import Busy
from sheen_cli.files import make, writing

LOCK = ".lock"  # goes when its holder ends; one that a killed process left locks nobody out
PATIENCE = 2.0  # seconds for a new holder to write down who it is
UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}

_held: set[Path] = set()  # by this process, which its own POSIX locks never refuse


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Be the one process that writes to `folder`, which is made if need be, until the block ends.
    Raises Busy, naming the other one, where there is one. Of several ranks the first one holds.

    POSIX record locks, not flock: a flock belongs to the open file, which forked readers inherit,
    so it would outlive a training that was killed; a record lock belongs to the process alone.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    make(folder)
    path = folder.resolve() / LOCK
    # before it is opened: closing any descriptor of the file would drop the lock that we have
    if path in _held:
        raise Busy(f"{folder} is being written by this very process")
    handle = gain(path, folder)
    _held.add(path)
    try:
        yield
    finally:
        # still locked, so nobody else's: who has opened it meanwhile sees that it is gone
        if current(handle, path):
            path.unlink()
        _held.discard(path)
        os.close(handle)


def gain(path: Path, folder: Path) -> int:
    """An open, locked descriptor of the lock file, which names us. Raises Busy."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            lock(handle, folder)
            if current(handle, path):
                with writing(path):
                    os.ftruncate(handle, 0)
                    os.pwrite(handle, json.dumps(ourselves()).encode(), 0)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        make(path.parent)


def current(handle: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`: not, if its holder or the folder went."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def lock(handle: int, folder: Path) -> None:
    """Lock without waiting. Raises Busy; a file system without locks is said and lived with."""
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise Busy(f"{folder} is being written by {holder(handle)}") from None
        if error.errno not in UNSUPPORTED:
            raise
        console.warn(
            f"{folder}: no locks here ({error.strerror}); see that nobody else writes to it"
        )


def ourselves() -> dict[str, Any]:
    """Who holds the lock, for others to read: arguments, but nothing of the environment."""
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": " ".join(shlex.join(["sheen", *sys.argv[1:]]).split()),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def holder(handle: int) -> str:
    """The holder as a person wants to read it, and what to do about it."""
    limit = time.monotonic() + PATIENCE
    while (facts := written(handle)) is None and time.monotonic() < limit:
        time.sleep(0.01)
    remedy = "wait for it, stop it, or choose another --out"
    if facts is None:
        return f"another process that has not said which; {remedy}"
    return (
        f"process {facts['pid']} on host {facts['host']} since {facts['started']}: "
        f"`{facts['command']}`; {remedy}"
    )


def written(handle: int) -> dict[str, Any] | None:
    """What the holder wrote; None while it has not, or while it is still that of a dead one."""
    try:
        facts: dict[str, Any] = json.loads(os.pread(handle, 1 << 20, 0))
    except ValueError:
        return None
    if facts["host"] == socket.gethostname():
        try:
            os.kill(facts["pid"], 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass  # somebody else's, and alive
    return facts
