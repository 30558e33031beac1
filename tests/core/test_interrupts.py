"""Ctrl-C is answered at once: while Python imports, collects garbage or waits for C code, in any program."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lowrank_jax.core import interrupts
from lowrank_jax.core.errors import ENDED, INTERRUPTED, front_door

ROOT = Path(__file__).parents[2]
PROGRAM = "import ctypes, gc, os, signal, sys, threading, time; sys.argv = ['-m']; import experiments\n"
PROGRAM += "from lowrank_jax.core import interrupts\nhit = lambda *_: os.kill(os.getpid(), 2)\n"
PROGRAM += "heard = lambda: [time.sleep(0.01) for _ in iter(lambda: interrupts._desk.heard, True)]\n"
PROGRAM += "mask = signal.pthread_sigmask\n"
# The signal reaches another thread; the main one stays in C, where Python's handlers cannot run.
IN_C = "threading.Thread(target=lambda: [{hits}]).start(); mask(signal.SIG_BLOCK, [2]); ctypes.CDLL(None).sleep(60)\n"
ANSWERED = "signal.signal(signal.SIGINT, lambda *_: None)\nwith interrupts.answered({signal.SIGINT: 'stopping'}):\n"
CASES = {
    "in Python": ("print('so far'); hit(); time.sleep(60)", f"{ENDED}\n", INTERRUPTED),
    "as garbage is collected": (
        "gc.callbacks.append(hit); gc.collect(); gc.callbacks.clear(); time.sleep(60)",
        f"{ENDED}\n",
        INTERRUPTED,
    ),
    "in C": (IN_C.format(hits="hit()"), f"{ENDED}\n", INTERRUPTED),
    "in an import": ("import slow", f"{ENDED}\n", INTERRUPTED),
    "where it is answered": (ANSWERED + "    hit()\nprint('saved')", "stopping\n", 0),
    "where it is answered, twice, in C": (
        ANSWERED + "    " + IN_C.format(hits="hit(), heard(), hit()"),
        f"stopping\n{ENDED}\n",
        INTERRUPTED,
    ),
    "after that": (ANSWERED + "    hit()\nhit(); time.sleep(60)", f"stopping\n{ENDED}\n", INTERRUPTED),
    "where there is something to undo": (
        "try:\n  with interrupts.tidied(): hit(); time.sleep(60)\nexcept KeyboardInterrupt: print('undone')",
        "",
        0,
    ),
    "in a forked child": (
        "child = os.fork()\nif not child: signal.signal(2, lambda *_: os._exit(7)); hit(); time.sleep(60)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7\ntime.sleep(0.1)",
        "",
        0,
    ),
}


def ended(command, folder):
    path = os.pathsep.join((str(folder), str(ROOT)))
    return subprocess.run(
        [sys.executable, *command], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=50
    )


@pytest.mark.parametrize("case", CASES)
def test_ctrl_c(tmp_path, case):
    code, said, status = CASES[case]
    (tmp_path / "slow.py").write_text("try:\n  hit = __import__('__main__').hit(); __import__('time').sleep(60)\n")
    with (tmp_path / "slow.py").open("a") as file:
        file.write("except BaseException: __import__('time').sleep(60)\n")
    done = ended(["-W", "ignore", "-c", PROGRAM + code], tmp_path)  # Python 3.12 warns of a fork beside threads
    assert (done.stderr, done.returncode) == (said, status)
    words = {"in Python": "so far\n", "where it is answered": "saved\n", "where there is something to undo": "undone\n"}
    assert done.stdout == words.get(case, "")


def test_a_program_answers_from_its_first_import_on(tmp_path):
    (tmp_path / "absl.py").write_text("import os, time\nos.kill(os.getpid(), 2)\ntime.sleep(60)\n")
    done = ended(["-m", "experiments.run"], tmp_path)
    assert (done.stderr, done.returncode) == (f"{ENDED}\n", INTERRUPTED)


def test_the_front_door_has_one_line_for_what_is_raised(capfd):
    with pytest.raises(SystemExit) as left, front_door():
        raise KeyboardInterrupt
    assert (left.value.code, capfd.readouterr().err) == (INTERRUPTED, f"{ENDED}\n")


def test_the_line_stands_below_a_progress_bar(capfd):
    from tqdm import tqdm

    with tqdm(total=3):
        interrupts._say("here")
    assert "\nhere\n" in capfd.readouterr().err
