"""Tokens a second where the host notices late that steps have ended: it was not woken, or was writing a record."""

import numpy as np
import pytest
from loop_parts import Recorder, job, score

from lowrank_jax.train.loop import Evaluator, LoopConfig, fit

SECONDS, TOKENS = 0.5, 100.0  # of a step
HOST = 1e-3  # what the host does for a step


class Later:
    """A step's metric, which is ready at `ended`; waiting for it sets the clock to `late` seconds after."""

    def __init__(self, value, ended, clock, late):
        self.value, self.ended, self.clock, self.late = value, ended, clock, late

    def is_ready(self):
        return self.clock() >= self.ended

    def __array__(self, dtype=None, copy=None):
        if not self.is_ready():
            self.clock.now = self.ended + self.late
        return np.asarray(self.value, dtype)


class Device(Recorder):
    """Runs one step after another, while the host goes on without waiting.

    Args:
      late: step -> seconds that the host wakes up too late from waiting for it.
      busy: step -> seconds that its record takes.
    """

    def __init__(self, clock, late=None, busy=None):
        super().__init__(clock=clock)
        self.late, self.busy, self.free = late or {}, busy or {}, 0.0

    def step(self, state, frozen, batch):
        self.clock.move(HOST)
        self.free = max(self.free, self.clock()) + SECONDS
        metrics = {"loss": 1.0, "grad_norm": 1.0, "tokens": TOKENS, "finite": True}
        late = self.late.get(batch, 0.0)
        found = {name: Later(value, self.free, self.clock, late) for name, value in metrics.items()}
        return state._replace(step=state.step + 1), found

    def log(self, step, values):
        super().log(step, values)
        self.clock.move(self.busy.get(step, 0.0))

    def rates(self):
        return {event[1]: event[2]["tokens_per_second"] for event in self.events if event[0] == "log"}


@pytest.mark.parametrize("start", [0, 8], ids=["new", "resumed"])
@pytest.mark.parametrize("busy", [0.2, 0.45, 0.93, 1.9, 2.49])
@pytest.mark.parametrize("kind", ["late", "busy"])
def test_no_rate_is_far_above_the_devices(clock, kind, busy, start):
    """A late host sees some steps end together and the next just after them: its rate was 2,000 times the true one."""
    at = dict.fromkeys((start + 1, start + 9, start + 10, start + 23), busy)  # 9: the first after the evaluation
    device = Device(clock, **{kind: at})
    evaluators = [Evaluator("", LoopConfig.evaluates_at, score)]
    config = LoopConfig(steps=start + 30, eval_steps=(start + 8,))
    outcome = fit(job(device, config, start, evaluators=evaluators))
    rates = device.rates()
    assert [*rates] == [*range(start + 1, start + 31)]
    true = TOKENS / SECONDS
    assert max(rates.values()) <= true * 10 / 9, rates  # ten steps, of which the first was seen up to a step late
    assert min(rates.values()) >= TOKENS / (SECONDS + busy + 2 * HOST)
    assert rates[start + 8] == pytest.approx(true, rel=0.4)
    # All of the time in steps is counted, whatever share of it each step is given.
    assert 30 * SECONDS <= outcome.train_seconds <= 30 * SECONDS + 4 * busy + 31 * HOST


@pytest.mark.parametrize("every", [1, 4, 25])
def test_a_rate_is_of_the_steps_since_the_last_record_or_of_ten(clock, every):
    """Steps get slower: a record of few steps has the mean of the last ten, one of many that of all of them."""
    recorder = Recorder(clock=clock)
    recorder.at = {step: lambda step=step: clock.move(step) for step in range(1, 51)}
    fit(job(recorder, LoopConfig(steps=50, log_every=every)))
    rates = {event[1]: event[2]["tokens_per_second"] for event in recorder.events if event[0] == "log"}
    for step, rate in rates.items():
        count = min(step, max(10, every))
        assert rate == pytest.approx(TOKENS * count / sum(range(step - count + 1, step + 1))), step
