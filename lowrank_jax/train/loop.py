"""The loop around the step: batches in, records, evaluations and checkpoints out, from any step to any step."""

import collections
import dataclasses
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Annotated, Any

import jax
import numpy as np

from lowrank_jax.checkpoints.manager import Checkpoints
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.ranges import Range, check_ranges
from lowrank_jax.train.signals import StopRequest
from lowrank_jax.train.state import TrainState
from lowrank_jax.train.tracking import Tracker

# Steps in flight before their metrics are read: enough to hide the host's work behind the device's.
PIPELINE_DEPTH = 4


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Length and rhythm of a run, in optimizer steps.

    Attributes:
      steps: length of the run; the schedule decays over it.
      epochs: the length in passes over the data instead, each with an evaluation at its end; see `over`. 0 for `steps`.
      stop_at: ends the run early with the schedule unchanged, for learning-rate trials; 0 for `steps`.
      batch_size: examples a step, over all devices.
      accumulate: micro-batches a step.
      chunk_tokens: positions whose float32 logits exist at a time in the loss; 0 for all.
      log_every: a record of the loss each so many steps.
      eval_every, eval_steps: evaluations at multiples of the one and at the others; the last step is always evaluated.
      profile_steps: "first:last" steps traced into the run's folder, "" for none.
    """

    steps: Annotated[int, Range(least=1)] = 100
    epochs: Annotated[int, Range(least=0)] = 0
    stop_at: Annotated[int, Range(least=0)] = 0
    batch_size: Annotated[int, Range(least=1)] = 64
    accumulate: Annotated[int, Range(least=1)] = 1
    chunk_tokens: Annotated[int, Range(least=0)] = 0
    log_every: Annotated[int, Range(least=1)] = 1
    eval_every: Annotated[int, Range(least=0)] = 0
    eval_steps: tuple[Annotated[int, Range(least=1)], ...] = ()
    profile_steps: str = ""

    def __post_init__(self):
        check_ranges(self, "train")
        if self.epochs:  # the rest depends on the steps, which `over` finds
            return
        if self.stop_at > self.steps:
            raise UserError(f"train.stop_at is {self.stop_at}; it must lie in [0, {self.steps}], the steps")
        if late := [s for s in self.eval_steps if s > self.steps]:
            raise UserError(f"train.eval_steps {late} lie beyond train.steps {self.steps}")
        if (traced := self.profile_range()) and traced[0] > self.last_step:
            raise UserError(f"train.profile_steps {self.profile_steps} lie beyond the last step, {self.last_step}")

    @property
    def last_step(self) -> int:
        """The step this run ends at."""
        return self.stop_at or self.steps

    def over(self, examples: int) -> "LoopConfig":
        """The config in steps alone: with `epochs`, epoch e ends at step e * examples / batch_size, rounded."""
        if not self.epochs:
            return self
        ends = [max(1, round(epoch * examples / self.batch_size)) for epoch in range(1, self.epochs + 1)]
        return dataclasses.replace(
            self, epochs=0, steps=ends[-1], eval_steps=tuple(sorted({*self.eval_steps, *ends} & {*range(ends[-1] + 1)}))
        )

    def profile_range(self) -> tuple[int, int] | None:
        """(first, last) of `profile_steps`."""
        if not self.profile_steps:
            return None
        first, _, last = self.profile_steps.partition(":")
        if not (first.isdigit() and last.isdigit() and 0 < int(first) < int(last)):
            raise UserError(f"train.profile_steps is {self.profile_steps!r}; write it as 10:15")
        return int(first), int(last)

    def evaluates_at(self, step: int) -> bool:
        """Whether the model is evaluated after `step` updates."""
        return (
            step == self.last_step or step in self.eval_steps or bool(self.eval_every and step % self.eval_every == 0)
        )


@dataclasses.dataclass
class Job:
    """Everything `fit` needs, already placed and compiled.

    Attributes:
      state, frozen: laid out on the mesh.
      step: compiled (state, frozen, batch) -> (state, metrics); donates the state.
      batches: iterator of host batches with get_state().
      place: host batch -> device batch.
      evaluate: (state, frozen) -> {name: value}.
      config: rhythm.
      checkpoints, checkpoint_every: where and how often (0: only at the end and on SIGTERM).
      tracker: records.
      profile_folder: where a trace goes.
      train_seconds: spent before a resume.
      renew: called before each record and checkpoint; raises where the run may be written no more.
    """

    state: TrainState
    frozen: Any
    step: Callable
    batches: Iterator
    place: Callable
    evaluate: Callable[[TrainState, Any], dict[str, float]]
    config: LoopConfig
    checkpoints: Checkpoints
    checkpoint_every: int
    tracker: Tracker
    profile_folder: str
    train_seconds: float = 0.0
    renew: Callable[[], None] = lambda: None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended: `finished`, `interrupted` (SIGTERM; resume it) or `diverged`, and the time in steps alone."""

    status: str
    state: TrainState
    train_seconds: float
    message: str = ""


class Diverged(UserError):
    """The loss or the gradient is not finite."""


def fit(job: Job) -> Outcome:
    """Runs `job` from its state's step to the config's last step, a SIGTERM, or a loss that is not finite."""
    config, state = job.config, job.state
    first = int(state.step)
    meter = _Meter(job, first)
    trace = _Trace(config.profile_range(), job.profile_folder)
    status, message = "finished", ""
    with StopRequest() as stop, meter.bar, trace:
        try:
            for done in range(first + 1, config.last_step + 1):
                trace.before(done)
                meter.start()
                state, metrics = job.step(state, job.frozen, job.place(next(job.batches)))
                meter.push(done, metrics)
                if trace.ends_with(done):
                    meter.drain()
                    trace.stop()
                if config.evaluates_at(done):
                    meter.drain()
                    values = job.evaluate(state, job.frozen)
                    job.tracker.log(done, {f"eval/{name}": value for name, value in values.items()})
                    meter.show(values)
                stopping = stop.requested(done) and done < config.last_step
                at_rest = done == config.last_step or stopping
                if at_rest or (job.checkpoint_every and done % job.checkpoint_every == 0):
                    meter.drain()
                    _save(job, state, done, meter.seconds)
                if stopping:
                    status, message = "interrupted", f"stopped by a signal after step {done}; run it again to resume"
                    break
        except Diverged as error:
            job.checkpoints.wait()
            saved = job.checkpoints.latest()
            good = f"the last good checkpoint is step {saved}" if saved else "no checkpoint was saved before it"
            status, message = "diverged", f"{error}; {good}; lower optimizer.learning_rate or raise the warm-up"
    job.checkpoints.wait()
    return Outcome(status, state, meter.seconds, message)


class _Trace:
    """A profile of steps [first, last], or of as many as this session runs; closed whatever ends the loop."""

    def __init__(self, steps: tuple[int, int] | None, folder: str):
        self.steps, self.folder, self.running = steps, folder, False

    def before(self, step: int):
        if self.steps and not self.running and self.steps[0] <= step <= self.steps[1]:
            jax.profiler.start_trace(self.folder)
            self.running = True

    def ends_with(self, step: int) -> bool:
        return self.running and step == self.steps[1]

    def stop(self):
        if self.running:
            self.running = False
            jax.profiler.stop_trace()

    def __enter__(self) -> "_Trace":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def _save(job: Job, state: TrainState, step: int, seconds: float) -> None:
    job.renew()
    rest = {"opt_state": state.opt_state, "step": state.step, "learning_rate": state.learning_rate, "key": state.key}
    cursor = {"batches": job.batches.get_state(), "train_seconds": seconds}
    job.checkpoints.save(step, state.trainable, rest, cursor)


@dataclasses.dataclass
class _Pending:
    """A step whose metrics are still to be read, and when it ended, once that is known."""

    step: int
    metrics: dict
    ended: float | None = None


class _Meter:
    """Reads metrics a few steps behind the device, records them, moves the bar and keeps the time of the steps."""

    def __init__(self, job: Job, first: int):
        from tqdm import tqdm

        self.job, self.pending, self.seconds = job, collections.deque(), job.train_seconds
        self.clock: float | None = None  # up to when time is counted
        self.marked = 0.0  # when the last step that is known to have ended did
        self.rate_mark = (self.seconds, 0.0)
        self.bar = tqdm(
            total=job.config.last_step,
            initial=first,
            unit="step",
            disable=jax.process_index() != 0,
            mininterval=0.2 if sys.stderr.isatty() else 10.0,
            dynamic_ncols=True,
        )
        self.tokens = 0.0
        self.shown: dict[str, str] = {}

    def start(self):
        """Starts the clock, if it stands still."""
        if self.clock is None:
            self.clock = self.marked = time.perf_counter()

    def push(self, step: int, metrics: dict):
        self.pending.append(_Pending(step, metrics))
        self._mark()
        if len(self.pending) > PIPELINE_DEPTH:
            self._read()

    def drain(self):
        """Reads what is in flight and stops the clock: evaluation and saving are not training time."""
        while self.pending:
            self._read()
            self._mark()
        if self.clock is not None:
            self.seconds += time.perf_counter() - self.clock
            self.clock = None

    def _mark(self):
        """Notes which steps have ended; those that are found together share the time since the one before them."""
        unmarked = (entry for entry in self.pending if entry.ended is None)
        ended = list(itertools.takewhile(lambda entry: entry.metrics["loss"].is_ready(), unmarked))
        now = time.perf_counter()
        for number, entry in enumerate(ended, 1):
            entry.ended = self.marked + (now - self.marked) * number / len(ended)
        self.marked = now if ended else self.marked

    def _read(self):
        entry = self.pending.popleft()
        step, values = entry.step, {name: np.asarray(value).item() for name, value in entry.metrics.items()}
        if entry.ended is None:  # it was waited for
            entry.ended = self.marked = time.perf_counter()
        self.seconds, self.clock = self.seconds + entry.ended - self.clock, entry.ended
        if not values.pop("finite"):
            raise Diverged(f"loss {values['loss']:g}, gradient norm {values['grad_norm']:g} at step {step}")
        self.tokens += values["tokens"]
        if step % self.job.config.log_every == 0 or step == self.job.config.last_step:
            elapsed, tokens = self.seconds - self.rate_mark[0], self.tokens - self.rate_mark[1]
            self.rate_mark = (self.seconds, self.tokens)
            rate = tokens / elapsed if elapsed > 0 else math.nan
            self.job.renew()
            self.job.tracker.log(step, {**values, "tokens_per_second": rate, "train_seconds": self.seconds})
            self.shown |= {"loss": f"{values['loss']:.4f}", "tok/s": f"{rate:,.0f}"}
            self.bar.set_postfix(self.shown, refresh=False)
        self.bar.update(1)

    def show(self, values: dict[str, float]):
        """Adds an evaluation's values to the bar."""
        self.shown |= {name: f"{value:.4g}" for name, value in values.items()}
        self.bar.set_postfix(self.shown)
