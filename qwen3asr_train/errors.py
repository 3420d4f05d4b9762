"""Errors whose message is meant for the person at the command line.

``python -m qwen3asr_train`` and the ``data_prep`` commands print them as one line and exit with
status 2; everything else is a bug and keeps its traceback.
"""


class UserError(RuntimeError):
    """Something the user can mend; the message says what and how, in one line."""


class DataError(UserError):
    """A file or a sample that cannot be used; the message names the file and the key."""
