"""`UserError`, for faults that a user can fix: its message names what is wrong and the remedy."""

import sys

MENDABLE = 2  # exit status of a program that ends in a fault which its user can fix
INTERRUPTED = 130  # of a program that a signal stopped, after it had saved what there was; shells use it for Ctrl-C


class UserError(Exception):
    """Something outside the code is wrong: a config value, a file, a shape, a device.

    `experiments.run` prints its message as one line and exits with status 2; a traceback is for our own faults.
    """


def report(error: UserError) -> int:
    """Prints the error's one line to stderr and returns the exit status of such faults."""
    print(f"error: {error}", file=sys.stderr)
    return MENDABLE
