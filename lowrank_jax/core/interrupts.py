"""Answers Ctrl-C at once, on a thread of its own: Python's handlers wait until the C++ code that computes returns."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from types import FrameType

from lowrank_jax.core.errors import ENDED, INTERRUPTED

MARK = 0  # no signal has this number
ANSWER = 10.0  # seconds for the thread to answer, which it does at once but on an overloaded machine
FLUSH = 1.0  # seconds for stdout to take its buffer: its reader may have stopped


class _Desk:
    """Hears the signals of this process that have a handler in Python.

    Attributes:
      leaves: whether SIGINT ends the process.
      lines: {signal: what is said of the first one}; then only the next SIGINT ends the process.
      heard: whether one of `lines` has come.
    """

    def __init__(self):
        self.leaves, self.heard = False, False
        self.lines: Mapping[int, str] = {}
        self.open, self._writer, self._settled = False, -1, threading.Event()

    def start(self) -> None:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self.open, self._writer = True, writer
        threading.Thread(target=self._listen, args=(reader,), name="signals", daemon=True).start()

    def _listen(self, reader: int) -> None:
        while numbers := os.read(reader, 64):
            for number in numbers:
                self._settled.set() if number == MARK else self.hear(number)

    def settle(self) -> None:
        """Waits until what has come so far is answered: by the rules of its time, not by those that follow."""
        if self.open:
            self._settled.clear()
            os.write(self._writer, bytes([MARK]))
            self._settled.wait(ANSWER)

    def hear(self, number: int) -> None:
        if number == signal.SIGINT and self.leaves and (self.heard or not self.lines):
            _leave()
        if number in self.lines and not self.heard:
            self.heard = True
            _say(self.lines[number])

    def forked(self) -> None:
        """In a forked child, whose signals are not its parent's."""
        if self.open:
            with contextlib.suppress(ValueError):
                signal.set_wakeup_fd(-1)
        self.leaves, self.open = False, False


_desk = _Desk()
os.register_at_fork(after_in_child=_desk.forked)


def begin() -> None:
    """From here on Ctrl-C ends this process at once, with one line and status 130; see `tidied` and `answered`.

    What a program has written by then is what `kill -9` would have left. An exception would do worse: one that is
    raised while Python imports, collects garbage or deletes an object ends as a traceback, or is ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # otherwise it is ignored, as after nohup
        _desk.leaves = True
        signal.signal(signal.SIGINT, _raise)
        _start()


@contextlib.contextmanager
def tidied() -> Iterator[None]:
    """Within it Ctrl-C raises KeyboardInterrupt: for programs with something to undo, such as a child to end."""
    _desk.settle()
    before, _desk.leaves = _desk.leaves, False
    try:
        yield
    finally:
        _desk.settle()
        _desk.leaves = before


@contextlib.contextmanager
def answered(lines: Mapping[int, str]) -> Iterator[None]:
    """Within it the first of these signals is answered by its line; only a SIGINT after it ends the process.

    It does so where `begin` was called, and not in `tidied`. The handlers are the caller's, set before and kept until
    after it. In the main thread only.

    Args:
      lines: signal -> line.
    """
    _start()
    _desk.settle()
    before = (_desk.lines, _desk.heard)
    _desk.lines, _desk.heard = lines, False
    try:
        yield
    finally:
        _desk.settle()
        _desk.lines, _desk.heard = before


def _start() -> None:
    if not _desk.open:
        _desk.start()


def _raise(_number: int, _frame: FrameType | None) -> None:
    if not _desk.leaves:
        raise KeyboardInterrupt


def _say(line: str) -> None:
    """The line on stderr, below a progress bar; unbuffered, because the main thread may hold the buffer's lock."""
    bars = getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", ())
    with contextlib.suppress(OSError):
        os.write(2, f"{chr(10) if len(bars) else ''}{line}\n".encode())


def _leave() -> None:
    _say(ENDED)
    if sys.stdout is not None:
        flush = threading.Thread(target=sys.stdout.flush, daemon=True)
        flush.start()
        flush.join(FLUSH)
    os._exit(INTERRUPTED)
