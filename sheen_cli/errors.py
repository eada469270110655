"""The error type of sheen, and the exit code that each kind of it ends a command with."""

import errno

# An OSError with one of these says that the disk is at fault, not the command: exit code 5. EFBIG
# is what a quota by `ulimit -f` and some file systems say in place of ENOSPC.
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


class SheenError(Exception):
    """Something that the user can mend; the message says what, where and the way out. Exit code
    2, no traceback.
    """

    code = 2


class Busy(SheenError):
    """Another process writes to the same place."""

    code = 3


class Unwritable(SheenError):
    """No space, no quota, or a disk that fails."""

    code = 5


class NotFinite(SheenError):
    """A loss or gradient that is no number; training on would only spoil the model."""

    code = 6


class Unreachable(SheenError):
    """A server that does not answer, or fails, again and again."""

    code = 7
