"""How many processors there are to share."""

import os


def processors() -> int:
    """Those that this process may use, where the system tells, otherwise all of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
