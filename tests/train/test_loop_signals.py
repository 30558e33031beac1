"""The loop by itself when SIGINT or SIGTERM comes: what it says, which steps it still makes, what it saves."""

import os
import signal

import jax.numpy as jnp
import numpy as np
import pytest
from loop_parts import Recorder, job, score

from lowrank_jax.train.evaluations import Evaluator
from lowrank_jax.train.loop import fit
from lowrank_jax.train.rhythm import LoopConfig
from lowrank_jax.train.signals import AGAIN, STOPPING

pytestmark = pytest.mark.usefixtures("clock")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_answered_saves_and_leaves(number, capfd):
    recorder = Recorder(at={4: lambda: os.kill(os.getpid(), number)})
    outcome = fit(job(recorder, LoopConfig(steps=50), checkpoint_every=10))
    assert outcome.statuses == ("interrupted",)
    assert {signal.SIGTERM: STOPPING, signal.SIGINT: STOPPING + AGAIN}[number] + "\n" in capfd.readouterr().err
    assert "after step 4; run it again to resume" in outcome.messages[0]
    assert recorder.of("log") == [1, 2, 3, 4]
    assert [(step, value) for step, value, *_ in recorder.saved] == [(4, 40)]
    assert recorder.of("eval") == []


class Slow:
    """A loss that the device has not computed yet: who reads it waits."""

    shape, ndim, dtype = (), 0, jnp.float32

    def __init__(self, value, wait):
        self.value, self.wait = value, wait

    def is_ready(self):
        return False

    def __array__(self, dtype=None, copy=None):
        self.wait()
        return np.asarray(self.value, dtype)


@pytest.mark.parametrize(("device", "host", "made"), [(2.0, 0.0, 7), (2.0, 0.1, 11), (0.3, 0.0, 11)])
def test_a_signal_waits_for_the_running_step_alone_where_steps_are_slow(clock, device, host, made):
    """Where the device would wait for the host, or steps are short, four more are under way."""
    recorder = Recorder(clock=clock, seconds=host)
    step = recorder.step

    def slow(state, frozen, batch):
        def wait():
            clock.move(device)
            if batch == 7:
                os.kill(os.getpid(), signal.SIGINT)

        state, metrics = step(state, frozen, batch)
        return state, metrics | {"loss": Slow(metrics["loss"], wait)}

    recorder.step = slow
    assert fit(job(recorder, LoopConfig(steps=50))).statuses == ("interrupted",)
    assert (recorder.of("save"), recorder.served) == ([made], made)


def test_a_signal_in_the_last_step_finishes_a_run_without_evaluations():
    recorder = Recorder(at={6: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    assert fit(job(recorder, LoopConfig(steps=6), evaluators=[])).statuses == ("finished",)
    assert recorder.of("save") == [6]


@pytest.mark.parametrize("last", [6, 9])
def test_an_evaluation_that_a_signal_ends_is_made_first_when_the_run_goes_on(last):
    """And those after it, but not the one before; at the end of the run as in the middle of it."""
    asked, signals = [], [signal.SIGTERM]

    def evaluator(name):
        def evaluate(state, frozen):
            asked.append((name, int(state.step)))
            if signals and name == "b":
                os.kill(os.getpid(), signals.pop())
            return score(state, frozen)

        return Evaluator(name, lambda config, step: step == 6, evaluate)

    config, evaluators = LoopConfig(steps=last), [evaluator(name) for name in "abc"]
    first, second = Recorder(), Recorder()
    assert fit(job(first, config, evaluators=evaluators)).statuses == ("interrupted",)
    ((step, *_, cursor),) = first.saved
    assert (step, cursor["unmade"]) == (6, ["b", "c"])
    assert fit(job(second, config, start=6, evaluators=evaluators, unmade=cursor["unmade"])).statuses == ("finished",)
    assert asked == [("a", 6), ("b", 6), ("b", 6), ("c", 6)]
    assert (first.of("eval"), second.of("eval")) == ([6], [6, 6])
    assert second.of("log") == [*range(7, last + 1)]
    assert not any("unmade" in cursor for *_, cursor in second.saved)
