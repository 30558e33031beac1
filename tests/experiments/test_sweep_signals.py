"""A sweep that hears two signals: its run is told, and the sweep ends after it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lowrank_jax.core.errors import INTERRUPTED

ROOT = Path(__file__).parents[2]
TERM, INT = signal.SIGTERM, signal.SIGINT
# A stand-in for the run: it writes down each signal, and ends some time later, where a file says that it may.
RUN = """
import os, signal, sys, time
def hear(number, _):
    with open("heard", "a") as file:
        file.write(f"{number} ")
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, hear)
open("ready", "w").close()
while not os.path.exists("go"):
    time.sleep(0.02)
open("ended", "w").close()
sys.exit(130)
"""
SWEEP = """
import sys
from experiments import sweep
from experiments.cli import launch
from experiments.sweeps import engine
engine.RUN_PROGRAM = (sys.executable, "fake_run.py")
sweep.define_flags()
launch(sweep.main, own_config=True)
"""


def plain():
    """In a shell's background signals may be ignored."""
    for number in (TERM, INT):
        signal.signal(number, signal.SIG_DFL)


def wait_for(there):
    for _ in range(1000):
        if there():
            return
        time.sleep(0.05)
    raise AssertionError("what was waited for did not happen")


@pytest.fixture
def sweeping(place):
    """A sweep whose run has begun, in a session of its own."""
    (place / "fake_run.py").write_text(RUN)
    flags = ["--config=config.py", "--grid=grid.py", "--workdir=runs"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    one = subprocess.Popen(
        [sys.executable, "-c", SWEEP, *flags], cwd=place, env={**os.environ, "PYTHONPATH": path}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=plain,
    )  # fmt: skip
    wait_for(lambda: (place / "ready").exists() or one.poll() is not None)
    yield one
    (place / "go").touch()
    one.communicate()


@pytest.mark.parametrize(
    ("first", "second", "told", "status"),
    [
        ((os.kill, TERM), (os.kill, TERM), [TERM], 128 + TERM),
        ((os.kill, TERM), (os.kill, INT), [TERM, INT], 128 + TERM),
        ((os.killpg, INT), (os.killpg, INT), [INT, INT], INTERRUPTED),  # as a terminal sends it
        ((os.killpg, INT), (os.kill, INT), [INT, INT], INTERRUPTED),
    ],
)
def test_the_run_ends_first(place, sweeping, first, second, told, status):
    def heard():
        return [int(word) for word in (place / "heard").read_text().split()] if (place / "heard").exists() else []

    for count, (send, number) in ((1, first), (len(told), second)):
        send(sweeping.pid, number)
        wait_for(lambda least=count: len(heard()) >= least)
        time.sleep(0.5)  # Popen.wait answers a Ctrl-C within 0.25 s
    with pytest.raises(subprocess.TimeoutExpired):
        sweeping.wait(0.5)
    assert not (place / "ended").exists()
    (place / "go").touch()
    _, err = sweeping.communicate()
    assert (sweeping.returncode, (place / "ended").exists()) == (status, True), err
    assert "Traceback" not in err
    assert heard()[: len(told)] == told
    assert set(heard()[len(told) :]) <= {INT}  # of a terminal, and passed on
