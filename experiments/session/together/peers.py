"""Ends all of several processes when one ends or dies, each with one line that names it."""

import atexit
import contextlib
import json
import os
import re
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any, NoReturn

import jax
from tqdm import tqdm

from lowrank_jax.core import interrupts
from lowrank_jax.core.errors import INTERRUPTED, LOST, MENDABLE, UserError, report
from lowrank_jax.train.signals import send_again

AGAIN = "start all processes again: the run resumes from its last checkpoint, if it has one"
ANSWER_SECONDS = 1.0  # within it an answer of the coordinator that was sent arrives
OWN_SECONDS = 5.0  # for a process to end by an error of its own, and show that
FOREVER = 10**11  # milliseconds: three years
TASK = re.compile(r"\bTask:? (\d+)")  # a dead process, in the coordinator's message on a failed barrier
PREFIX = "lowrank_jax/"


class Peers:
    """The other processes, watched for as long as the context is open.

    One thread waits at a barrier that only the end of the run completes: it fails when a process dies, and says which.
    Another thread waits for the note that a process leaves when it ends with an error while the others go on.

    A failing process cannot tell at once whether the error is its own: a collective also fails where another process
    died. It is its own if all processes read the note; otherwise the barrier fails within `heartbeat_seconds`.

    Args:
      heartbeat_seconds: as given to jax.distributed.initialize.
    """

    def __init__(self, heartbeat_seconds: int):
        self.heartbeat_seconds = heartbeat_seconds
        self.process, self.processes, self.coordinator = 0, 1, ""
        self._client: Any = None
        self._speaking, self._note, self._leaving = threading.Lock(), {}, False
        self._heard, self._own = threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []
        self._notes = contextlib.ExitStack()

    def connected(self) -> None:
        """Takes the client and this process's place from jax.distributed.initialize."""
        from jax._src.distributed import global_state

        self._client, self.coordinator = global_state.client, global_state.coordinator_address
        self.process, self.processes = global_state.process_id, global_state.num_processes

    def lost(self) -> None:
        """Ends this process because jaxlib's client has lost the others; names the dead one if it is known."""
        self._end_after_death("")

    def __enter__(self) -> "Peers":
        if threading.current_thread() is threading.main_thread():
            self._notes.enter_context(interrupts.tidied())  # a note for the others, which wait for this process
            signal.signal(signal.SIGTERM, _interrupt)  # jax's own handler would only record the signal
            send_again(KeyboardInterrupt)
        if self.processes > 1:
            self._threads = [
                threading.Thread(target=work, daemon=True) for work in (self._watch_for_death, self._watch_for_note)
            ]
            for thread in self._threads:
                thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):  # the run is complete: there is nothing left to stop
                signal.signal(number, signal.SIG_IGN)
        with self._notes:
            if self.processes > 1:
                if error is None:
                    self._end_together()
                else:
                    self._end_in_error(error)
        if isinstance(error, KeyboardInterrupt):
            print(f"interrupted; {AGAIN}", file=sys.stderr)
            raise SystemExit(INTERRUPTED) from None

    # ---- the end of this process ----

    def _end_together(self) -> None:
        """Waits until all processes are done, and ends the threads: none may wait in C++ when the interpreter exits."""
        try:
            self._client.wait_at_barrier(f"{PREFIX}end", FOREVER)
        except jax.errors.JaxRuntimeError as error:
            self._end_after_death(str(error))
        self._leaving = True
        if self.process == 0:
            self._client.key_value_set(f"{PREFIX}note", json.dumps({}))
        self._client.wait_at_barrier(self._barrier(at_end=True), FOREVER)
        for thread in self._threads:
            thread.join()

    def _end_in_error(self, error: BaseException) -> None:
        """Leaves a note for the others, and returns for the error to be shown; or ends with the line of their note."""
        interrupted = isinstance(error, KeyboardInterrupt)
        mendable = isinstance(error, UserError | OSError)
        note = {
            "process": self.process,
            "status": INTERRUPTED if interrupted else MENDABLE if mendable else 1,
            "words": "interrupted" if interrupted else str(error) if mendable else f"{type(error).__name__}: {error}",
        }
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another was first, or the coordinator is lost
            self._client.key_value_set(f"{PREFIX}note", json.dumps(note))
        self._heard.wait()
        if self._note["process"] != self.process and not mendable and not interrupted:
            self._end_by_note()
        self._own.set()
        if not self._speaking.acquire(blocking=False):
            _wait()
        if self.process == 0:
            time.sleep(ANSWER_SECONDS)  # the coordinator's answers reach the others
        leave_with(note["status"])

    # ---- the end of another ----

    def _watch_for_death(self) -> None:
        try:
            self._client.wait_at_barrier(self._barrier(at_end=False), FOREVER)
        except jax.errors.JaxRuntimeError as error:
            self._end_after_death(str(error))

    def _watch_for_note(self) -> None:
        try:
            note = json.loads(self._client.blocking_key_value_get(f"{PREFIX}note", FOREVER))
            if not note:
                return
            self._note = note
            self._client.wait_at_barrier(f"{PREFIX}heard", FOREVER)
        except jax.errors.JaxRuntimeError as error:
            self._end_after_death(str(error))
        self._heard.set()
        if self._note["process"] != self.process and not self._own.wait(OWN_SECONDS):
            self._end_by_note()

    def _barrier(self, at_end: bool) -> str:
        """Its name: process 0 waits at "0" from the start and ends at "others"; the others do the reverse."""
        return f"{PREFIX}{'0' if (self.process == 0) != at_end else 'others'}"

    def _obey_note(self) -> None:
        """Ends this process by the note, if all have read one: then no process has died."""
        if self._heard.is_set():
            if self._note["process"] == self.process:
                _wait()  # the main thread ends this process
            self._end_by_note()

    def _end_after_death(self, message: str) -> NoReturn:
        """Ends this process because another died; `message` is what the client said of it."""
        if self._leaving:
            _wait()  # the run is complete, and the main thread ends the process
        self._obey_note()
        dead = [int(task) for task in TASK.findall(message)]
        if not dead:
            time.sleep(ANSWER_SECONDS)  # the other thread may get to know which it was
            self._obey_note()
            if self._note.get("process") == 0 != self.process:
                self._end_by_note()  # process 0 leaves once all have read its note
        if self.process in dead:
            line = f"process {self.process} of {self.processes}, this one, was silent or cut off; the others ended"
        elif dead:
            line = f"process {dead[0]} of {self.processes} died or was cut off: silent for {self.heartbeat_seconds} s"
        elif self.process:
            line = f"process 0 of {self.processes}, the coordinator, died or was cut off"
        else:
            line = f"one of the {self.processes} processes died or was cut off"
        self._end_with_line(f"{line}; {AGAIN}", LOST)

    def _end_by_note(self) -> NoReturn:
        note = self._note
        self._end_with_line(f"process {note['process']} of {self.processes} ended: {note['words']}", note["status"])

    def _end_with_line(self, line: str, status: int) -> NoReturn:
        if not self._speaking.acquire(blocking=False):
            _wait()
        if getattr(tqdm, "_instances", ()):
            print(file=sys.stderr)  # a progress bar stands on this line
        report(UserError(line))
        if self.process == 0:
            time.sleep(ANSWER_SECONDS)  # the coordinator's answers reach the others
        _leave(status)


def leave_with(status: int) -> None:
    """Makes the process exit without waiting for the others, as jax's own exit does for 300 s.

    Args:
      status: the exit status, unless a traceback is shown (then 1).
    """
    end = lambda: _leave(1 if hasattr(sys, "last_value") else status)  # noqa: E731
    atexit.register(end)
    # Before the interpreter waits for threads, of which orbax's may wait for the other processes.
    getattr(threading, "_register_atexit", atexit.register)(end)


def _leave(status: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # nobody reads it
            stream.flush()
    os._exit(status)


def _wait() -> NoReturn:
    """Waits until another thread has ended the process."""
    while True:
        time.sleep(60)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
