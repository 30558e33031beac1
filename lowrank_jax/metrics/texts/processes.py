"""What metrics that start other programs share: how many may run at once, and the error of one that failed."""

import os


class ProgramFailed(Exception):
    """A program ended where it should have answered; the message has the last line of its standard error."""

    def __init__(self, program: str, status: int, said: str):
        last = said.strip().splitlines()[-1:] or ["without a word"]
        super().__init__(f"{program} ended with status {status}: {last[0]}")


def processors() -> int:
    """How many processors this process may use; all of the machine's where the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
