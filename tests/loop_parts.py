"""Stand-ins for what the training loop is given: a clock, a step that counts, a recorder of what happens."""

import math

import jax.numpy as jnp

from lowrank_jax.train.evaluations import Evaluator
from lowrank_jax.train.loop import Job
from lowrank_jax.train.rhythm import LoopConfig
from lowrank_jax.train.state import TrainState


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def move(self, seconds):
        self.now += seconds


class Recorder:
    """Stands in for batches, checkpoints and tracker, and writes down what happens in order.

    Args:
      bad_step: from which on the loss is not finite.
      move: (seconds) of `clock`, which each step takes `seconds` of.
      at: step -> what is called in it.
    """

    def __init__(self, bad_step=0, clock=None, seconds=0.0, at=None):
        self.events, self.served, self.saved = [], 0, []
        self.bad_step, self.clock, self.seconds, self.at = bad_step, clock, seconds, at or {}

    def __iter__(self):
        return self

    def __next__(self):
        self.served += 1
        return self.served

    def get_state(self):
        return {"batches": self.served}

    def save(self, step, trainable, rest, cursor):
        self.events.append(("save", step))
        self.saved.append((step, int(trainable), int(rest["step"]), cursor))

    def wait(self):
        self.events.append(("wait", None))

    def latest(self):
        return max((step for step, *_ in self.saved), default=None)

    def log(self, step, values):
        self.events.append(("eval" if any(name.startswith("eval/") for name in values) else "log", step, values))

    def step(self, state, frozen, batch):
        """Adds one."""
        if self.clock:
            self.clock.move(self.seconds)
        number = int(state.step) + 1
        if number in self.at:
            self.at[number]()
        loss = math.nan if self.bad_step and number >= self.bad_step else 1.0 / number
        metrics = {"loss": loss, "grad_norm": 1.0, "tokens": 100.0, "finite": math.isfinite(loss)}
        state = state._replace(step=state.step + 1, trainable=state.trainable + frozen)
        return state, {name: jnp.asarray(value) for name, value in metrics.items()}

    def of(self, kind):
        return [event[1] for event in self.events if event[0] == kind]


def job(recorder, config, start=0, checkpoint_every=0, **more):
    state = TrainState(jnp.int32(start), jnp.int32(10 * start), {}, jnp.float32(1), jnp.zeros(2, jnp.uint32))
    recorder.served = start
    return Job(
        state=state, frozen=10, step=recorder.step, batches=recorder, place=lambda batch: batch, configs=[config],
        checkpoints=recorder, checkpoint_every=checkpoint_every, trackers=[recorder], first=start,
        **{"evaluators": [Evaluator("", LoopConfig.evaluates_at, score)], **more},
    )  # fmt: skip


def score(state, frozen):
    return [{"score": int(state.step) / 10}]
