"""The one exception that is shown to a user as a single line."""

_LONGEST_REASON = 300


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one line: what was expected, what was found, what to do. The commands print it without a traceback
    and exit with 1. It is defined here, at the bottom of the import order, so that every layer can raise it.

    >>> raise UserError("Expected a number,\\nbut got a word; correct it")
    Traceback (most recent call last):
    datamodules.errors.UserError: Expected a number, but got a word; correct it

    ``str(error)`` is that line wherever the error was raised. When it crosses from a DataLoader worker into the main
    process, torch builds it anew as ``type(error)("Caught UserError in DataLoader worker process 0.\\nOriginal
    Traceback ... datamodules.errors.UserError: <line>")``; the constructor takes the line back out of that text.
    """

    def __init__(self, message: str) -> None:
        line = message.rpartition(f"{__name__}.UserError: ")[2]
        super().__init__(_printable(" ".join(line.splitlines()).strip()))


def _printable(line: str) -> str:
    """Spell out what a name of a file may hold and a terminal would obey, such as the colours of ANSI."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in line)


def reason_of(error: BaseException) -> str:
    """Take the first line of another library's message, with the next if it ends in a colon; else the error's class.

    >>> reason_of(ValueError("no such file\\nsee the log"))
    'no such file'
    >>> reason_of(ValueError())
    'ValueError'
    """
    first, second, *_ = [*(line.strip() for line in str(error).splitlines() if line.strip()), "", ""]
    reason = f"{first} {second}" if first.endswith(":") else first
    return reason[:_LONGEST_REASON] or type(error).__name__
