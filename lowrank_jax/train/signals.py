"""Stopping on request: SIGTERM and the first Ctrl-C become a flag that the loop reads between steps."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

import jax
import numpy as np

from lowrank_jax.core import interrupts

SOON = 0.05
STOPPING = "stopping: the step that runs is completed, then a checkpoint is written"
STOPPING_ALL = "stopping: all processes end after the same step, then a checkpoint is written"
AGAIN = "; press Ctrl-C again to end at once, back at the last checkpoint"
SECONDS = 5.0  # at most about so long between two comparisons, whatever a step takes


class Stopped(Exception):
    """A signal has come during work that it may interrupt."""


def send_again(swallowed: type[BaseException], wanted: Callable[[], bool] = lambda: True) -> Callable[[Any], Any]:
    """Sends SIGTERM where Python ignores an exception that a handler raised: in a __del__, or as garbage is collected.

    Args:
      swallowed: the exception.
      wanted: asked SOON seconds later, when Python has left that place: whether the signal is sent.

    Returns:
      the hook of such exceptions so far, for sys.unraisablehook.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, swallowed):
            before(unraisable)
            return
        timer = threading.Timer(SOON, lambda: wanted() and os.kill(os.getpid(), signal.SIGTERM))
        timer.daemon = True
        timer.start()

    sys.unraisablehook = hook
    return before


class StopRequest:
    """Context manager that catches SIGTERM and SIGINT; restores the previous handlers on exit.

    The first signal is answered by a line and sets a flag, for the loop to save and end. A SIGINT after it ends the
    program at once (see `core.interrupts`); where no program of ours runs, it raises KeyboardInterrupt.
    With several processes all must end after the same step, whichever got the signal: `requested` compares them. Python
    allows handlers only in the main thread; in others this does nothing.

    Args:
      every: most steps between the comparisons of several processes; each costs a collective.
      seconds: the time between them, where `every` steps take longer: a signal may leave a run few seconds.
    """

    def __init__(self, every: int = 10, seconds: float = SECONDS):
        self.every, self.seconds = every, seconds
        self.signal: int | None = None
        self._at_once, self._working = False, False
        self._last: int | None = None  # step of the last comparison
        self._next, self._since = 0, 0.0  # step of the next one, and time of the last
        self._answers = contextlib.ExitStack()
        self._old: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def requested(self, step: int) -> bool:
        """Whether to stop after `step`: the same answer in every process. Each process must call it at every step."""
        if jax.process_count() == 1:
            return self.signal is not None
        if step < self._next:
            return False
        from jax.experimental.multihost_utils import process_allgather

        # The slowest process's time, which all of them know, so that all compare again after the same step.
        asked, passed = process_allgather(np.array([self.signal is not None, time.monotonic() - self._since])).max(0)
        each = passed / (1 if self._last is None else step - self._last)
        steps = self.every if each * self.every <= self.seconds else max(int(self.seconds / each), 1)
        self._last, self._next, self._since = step, step + steps, time.monotonic()
        return bool(asked)

    def interrupts(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """`work`, which raises Stopped where a signal comes during it or has come before.

        Not with several processes, of which one could leave while the others are in a collective.
        """

        def interruptible(*args: Any) -> Any:
            if jax.process_count() > 1:
                return work(*args)
            try:
                self._at_once = self._working = True
                if self.signal is not None:
                    raise Stopped
                return work(*args)
            finally:
                self._at_once = self._working = False

        return interruptible

    def __enter__(self) -> "StopRequest":
        self.signal, self._last, self._next, self._since = None, None, 0, time.monotonic()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._caught)
            lines: dict[int, str] = {signal.SIGTERM: STOPPING, signal.SIGINT: STOPPING + AGAIN}
            if jax.process_count() > 1:  # of which one ends with a note for the others, when its collective returns
                lines = dict.fromkeys(lines, STOPPING_ALL)
            self._answers.enter_context(interrupts.answered(lines))
            self._hook = send_again(Stopped, self._still_working)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._answers.close()
        for number, handler in self._old.items():
            # None: a handler that C code had set (jax.distributed's), which Python cannot put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if self._old:
            sys.unraisablehook = self._hook
        self._old.clear()

    def _still_working(self) -> bool:
        self._at_once = self._working
        return self._working

    def _caught(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        if self._at_once:
            self._at_once = False
            raise Stopped
