"""The one exception that a user can mend: its message names the thing that is wrong and the remedy."""


class UserError(Exception):
    """Something outside the code is wrong: a config value, a file, a shape, a device.

    `experiments.run` prints its message as one line and exits with status 2; a traceback is for our own faults.
    """
