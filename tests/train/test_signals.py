"""Stopping: a flag first, an interruption second, old handlers back, all processes together."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from experiments.session.together.peers import AGAIN, Peers
from lowrank_jax.train import signals
from lowrank_jax.train.signals import STOPPING, Stopped, StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_sets_the_flag_and_the_old_handler_comes_back(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.requested(1)
        os.kill(os.getpid(), number)
        assert stop.requested(2)
        assert stop.requested(3)
        assert stop.signal == number
    assert signal.getsignal(number) is before
    with stop:
        assert not stop.requested(1), "each entry starts anew"


def test_the_second_interrupt_raises():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested(1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested(1)


def test_a_signal_interrupts_work_that_allows_it_and_no_other():
    begun, ended = [], []

    def work(number):
        begun.append(number)
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            ended.append("handler")
        return number

    with StopRequest() as stop:
        assert stop.interrupts(work)(1) == 1
        with pytest.raises(Stopped):
            stop.interrupts(work)(2)
        with pytest.raises(Stopped):
            stop.interrupts(work)(3)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested(1)
    assert begun == [1, 2]
    assert ended == []
    with StopRequest() as stop:
        work(2)
        assert ended == ["handler"]


class Late:
    """A SIGTERM comes while Python deletes it, and ignores what the handler raises."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(100):
            pass


def test_a_signal_that_comes_where_python_ignores_exceptions_is_not_lost(capfd):
    """In an evaluation, and before the loop of one of several processes (`experiments.session.together.peers`)."""
    before, handlers = sys.unraisablehook, [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    def work():
        Late()
        time.sleep(30)

    with StopRequest() as stop, pytest.raises(Stopped):
        stop.interrupts(work)()
    assert sys.unraisablehook is before
    try:
        with pytest.raises(SystemExit) as ended, Peers(10):
            work()
        assert ended.value.code == 130
        with Peers(10):
            pass
        os.kill(os.getpid(), signal.SIGTERM)  # nothing is left to stop
    finally:
        sys.unraisablehook = before
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), handlers, strict=True):
            signal.signal(number, handler)
    assert capfd.readouterr().err == f"{STOPPING}\ninterrupted; {AGAIN}\n"


def test_handlers_come_back_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), StopRequest():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_threads_may_use_it():
    answers = []

    def work():
        with StopRequest() as stop:
            answers.append(stop.requested(1))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [False]


def test_two_processes_stop_after_the_same_step(tmp_path):
    """One of two gets the signal at step 7; both end at 11, where they compare again, or at 7 if steps are slow."""
    script = tmp_path / "worker.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, signal, sys
            import jax
            port, index = sys.argv[1:]
            jax.distributed.initialize(f"localhost:{port}", 2, int(index))
            from lowrank_jax.train.signals import StopRequest
            for seconds in (1e9, 0.0):
                with StopRequest(every=5, seconds=seconds) as stop:
                    for step in range(1, 30):
                        if step == 7 and index == "1":
                            os.kill(os.getpid(), signal.SIGTERM)
                        if stop.requested(step):
                            break
                print("stopped at", step, flush=True)
            """
        )
    )
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(signals.__file__).parents[2])}
    environment |= {"NPROC": "8", "XLA_FLAGS": ""}
    workers = [
        subprocess.Popen(
            [sys.executable, script, str(port), str(index)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    outputs = [worker.communicate(timeout=100) for worker in workers]
    assert [out.splitlines()[-2:] for out, _ in outputs] == [["stopped at 11", "stopped at 7"]] * 2, outputs
