"""The one exception that is shown to a user as a single line."""


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one line: what was expected, what was found, what to do. The commands print it without a traceback
    and exit with 1. It is defined here, at the bottom of the import order, so that every layer can raise it.
    """
