"""Other programs' processes: how many run at once, and what is said of one that failed."""

import os


class ProgramFailed(Exception):
    """A program ended where it should have answered; the message has the last line that it said."""

    def __init__(self, program: str, status: int, said: str):
        last = said.strip().splitlines()[-1:] or ["without a word"]
        super().__init__(f"{program} ended with status {status}: {last[0]}")


def processors() -> int:
    """Those that this process may use, where the system tells, otherwise all of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
