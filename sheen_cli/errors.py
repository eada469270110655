"""The one error type of sheen."""


class SheenError(Exception):
    """Something that the user can mend; the message says what, where and the way out. Exit code
    2, no traceback.
    """
