"""Stopping on request: SIGTERM and the first Ctrl-C become a flag that the loop reads between steps."""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

import jax
import numpy as np


class StopRequest:
    """Context manager that catches SIGTERM and SIGINT; restores the previous handlers on exit.

    The first signal only sets a flag, for the loop to save and end. A second SIGINT raises KeyboardInterrupt.
    With several processes all must end after the same step, whichever got the signal: `requested` compares them. Python
    allows handlers only in the main thread; in others this does nothing.

    Args:
      every: steps between the comparisons of several processes; each costs a collective.
    """

    def __init__(self, every: int = 10):
        self.every = every
        self.signal: int | None = None
        self._old: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def requested(self, step: int) -> bool:
        """Whether to stop after `step`: the same answer in every process. Each process must call it at every step."""
        if jax.process_count() == 1:
            return self.signal is not None
        if step % self.every:
            return False
        from jax.experimental.multihost_utils import process_allgather

        return bool(np.any(process_allgather(np.array(self.signal is not None))))

    def __enter__(self) -> "StopRequest":
        self.signal = None
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._caught)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._old.items():
            # None: a handler that C code had set (jax.distributed's), which Python cannot put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._old.clear()

    def _caught(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
