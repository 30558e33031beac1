"""Whether answers are mathematically equal, by math-verify in a separate process, which has a time limit.

math-verify's own time limits are signals, which only a main thread has; without them an answer such as 9^9^9^9^9 may
compute for ever. The process judges one answer after another; it is ended where one takes too long, and another
process takes its place.
"""

import importlib.util
import json
import selectors
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lowrank_jax.core.errors import UserError

PROGRAM = Path(__file__).with_name("judge.py")
MOST_SECONDS = 20.0  # for one answer; of the 40 tried for tests/metrics the slowest took under 3 s


class Verdicts(NamedTuple):
    """Whether each answer is right, and how many were given up on, which count as wrong."""

    right: list[bool]
    given_up: int


def installed() -> bool:
    """Whether math-verify is."""
    return importlib.util.find_spec("math_verify") is not None


def check_installed() -> None:
    """Refuses to go on without math-verify, before a run has been trained.

    Raises:
      UserError: it is not installed.
    """
    if not installed():
        raise UserError("answers to mathematical questions need math-verify; pip install 'lowrank_jax[eval]'")


def verify_all(golds: Sequence[str], answers: Sequence[str], seconds: float = MOST_SECONDS) -> Verdicts:
    """Judges each answer by the right one; a Unicode minus counts as "-".

    Args:
      golds, answers: the right answers, and those to judge, as texts; the last number, formula or box counts.
      seconds: after which an answer is given up on.

    Raises:
      UserError: math-verify is not installed, or cannot be started.
    """
    check_installed()
    right, given_up, judge = [], 0, _Judge()
    try:
        for gold, answer in zip(golds, answers, strict=True):
            said = judge.ask(gold, answer, seconds)
            if said is None:
                given_up += 1
                judge.end()
                judge = _Judge()
            right.append(bool(said))
    finally:
        judge.end()
    return Verdicts(right, given_up)


class _Judge:
    """The other process.

    Raises:
      UserError: it ends before it is ready; its traceback is on stderr.
    """

    def __init__(self):
        command = [sys.executable, "-P", str(PROGRAM)]  # -P: no module beside the file hides one of another package
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out, self._waiting = self._process.stdin, self._process.stdout, selectors.DefaultSelector()
        self._waiting.register(self._out, selectors.EVENT_READ)
        if not self._out.readline():
            self.end()
            raise UserError("math-verify cannot be started (see above); pip install 'lowrank_jax[eval]' again")

    def ask(self, gold: str, answer: str, seconds: float) -> bool | None:
        """Its verdict; None where it took too long, or ended."""
        try:
            print(json.dumps([gold, answer]), file=self._in, flush=True)
        except BrokenPipeError:
            return None
        line = self._out.readline() if self._waiting.select(seconds) else ""
        return json.loads(line) if line else None

    def end(self) -> None:
        """Ends it, whatever it computes."""
        self._waiting.close()
        self._process.kill()
        self._process.communicate()
