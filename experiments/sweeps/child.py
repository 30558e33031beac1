"""The program of a sweep's cells as a process: whatever signals come, it is told of them and waited for."""

import contextlib
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen]:
    """Starts a program, and at the end waits until its process has ended; an error in between asks it to end.

    The first SIGTERM is passed on, so that the program saves and ends. The first Ctrl-C is not, as a terminal sends it
    to the program too. A Ctrl-C after an earlier signal is passed on, and ends the program at once. The handlers that
    this process had before answer the first signal when the program has ended; until then none of them raises anything.

    Args:
      options: of subprocess.Popen.
    """
    child, heard, before = None, [], {}

    def hear(number: int, _frame: FrameType | None) -> None:
        passed = number not in heard if number == signal.SIGTERM else bool(heard)
        heard.append(number)
        if passed and child is not None:
            child.send_signal(number)

    if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
        before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, hear)
        child = subprocess.Popen(command, **options)
        if heard:  # before the program could be told
            child.terminate()
        try:
            yield child
        except BaseException:
            child.terminate()
            raise
        finally:
            child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if heard:
            signal.raise_signal(heard[0])
