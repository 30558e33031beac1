"""`UserError`, for faults that a user can fix: its message names what is wrong and the remedy."""


class UserError(Exception):
    """Something outside the code is wrong: a config value, a file, a shape, a device.

    `experiments.run` prints its message as one line and exits with status 2; a traceback is for our own faults.
    """
