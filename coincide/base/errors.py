"""Errors that a user can fix."""


class UserError(ValueError):
    """A problem that the user can fix: a job shows the message only, without a traceback.

    The message says what is wrong, where (file, row, key), and what to do.
    """
