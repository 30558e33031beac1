"""The loop around the step: batches in, records, evaluations and checkpoints out; a run is the loop of one trial."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from lowrank_jax.checkpoints.manager import Checkpoints
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.types import Decoded
from lowrank_jax.train.best import BEST, LAST, Best, losses_of
from lowrank_jax.train.evaluations import Evaluator
from lowrank_jax.train.meter import Meter, Trace
from lowrank_jax.train.progress import doing, showing
from lowrank_jax.train.rhythm import LoopConfig
from lowrank_jax.train.signals import Stopped, StopRequest
from lowrank_jax.train.state import TrainState
from lowrank_jax.train.tracking import Tracker

NO_BEST = (
    "its held-out loss was never a finite number, and there are no best weights to decode and export; lower "
    "optimizer.learning_rate, or look at the held-out rows"
)
UNMADE = "unmade"  # in a checkpoint's cursor


class Stream(Protocol):
    """Host batches, one after another, and where they are."""

    def __next__(self) -> dict[str, Any]:
        """The next batch."""
        ...

    def get_state(self) -> dict[str, Any]:
        """The cursor, as JSON-able numbers."""
        ...


@dataclasses.dataclass
class Job:
    """Everything `fit` needs, already placed and compiled; sequences have one entry a trial.

    Attributes:
      state, frozen: on the devices; of several trials, stacked on a leading axis and shared.
      step: compiled (state, frozen, batch) -> (state, metrics); donates the state.
      batches: iterator of host batches with get_state().
      place: host batch -> device batch.
      evaluators: what is evaluated, and when.
      configs: rhythm and last step.
      checkpoints, checkpoint_every: where and how often (0: only at the end and on SIGTERM).
      trackers: records.
      profile_folder: where a trace goes.
      first: steps done before.
      train_seconds: spent on them.
      unmade: names of evaluators that a signal kept from their evaluation after those steps.
      renew: called before each record and checkpoint; raises where the run may be written no more.
      best: the best weights so far, where an evaluator reads them.
      merge: of a run with restarts, (state, frozen) -> (state, frozen), which donates both; see `train.restart`.
      merges: (steps done) -> whether a merge comes before the next step, after a checkpoint is written.
    """

    state: TrainState
    frozen: Any
    step: Callable
    batches: Stream
    place: Callable
    evaluators: Sequence[Evaluator]
    configs: Sequence[LoopConfig]
    checkpoints: Checkpoints
    checkpoint_every: int
    trackers: Sequence[Tracker]
    profile_folder: str = ""
    first: int = 0
    train_seconds: float = 0.0
    unmade: Sequence[str] = ()
    renew: Callable[[], None] = lambda: None
    best: Best | None = None
    merge: Callable[[TrainState, Any], tuple[TrainState, Any]] | None = None
    merges: Callable[[int], bool] = lambda done: False

    def save(self, step: int, state: TrainState, seconds: float, unmade: Sequence[str] = ()) -> None:
        """A checkpoint of all trials, of the data's cursor, and of evaluations that are to be made first."""
        self.renew()
        rest = {"opt_state": state.opt_state, "step": state.step, "learning_rate": state.learning_rate}
        cursor = {"batches": self.batches.get_state(), "train_seconds": seconds}
        cursor |= {UNMADE: list(unmade)} if unmade else {}
        rest |= {"best": self.best.saved()} if self.best else {}
        rest |= {"frozen": self.frozen} if self.merge else {}
        self.checkpoints.save(step, state.trainable, {**rest, "key": state.key}, cursor)

    def evaluate(self, evaluator: Evaluator, state: TrainState, trials: Sequence[int], step: int) -> Sequence[Any]:
        """What an evaluator returns for the trials' weights, or for their best ones; may take new best ones before."""
        if evaluator.weights == LAST or self.best is None:
            values = evaluator.evaluate(state, self.frozen)
            if evaluator.decides and self.best is not None:
                self.best.see(state, step, losses_of(trials, values), self.frozen)
            return values
        values = evaluator.evaluate(*self.best.weights(state, self.frozen))
        if evaluator.texts:
            return values
        steps = [{"best_step": float(each)} for each in self.best.steps]
        return [
            one._replace(values=one.values | more) if isinstance(one, Decoded) else one | more
            for one, more in zip(values, steps, strict=True)
        ]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How the trials ended, one entry each: `finished`, `interrupted` (SIGTERM; resume it) or `diverged`, and why.

    Attributes:
      state, frozen: after the last step.
      train_seconds: time in steps alone, over all sessions.
    """

    statuses: tuple[str, ...]
    messages: tuple[str, ...]
    state: TrainState
    frozen: Any
    train_seconds: float


class Diverged(UserError):
    """The loss or the gradient is not finite."""


def fit(job: Job) -> Outcome:
    """Runs `job` from its first step to the last step of the longest trial, or to a SIGTERM.

    A trial whose loss or gradient is not finite is recorded no further; the others go on, and the loop ends when none
    is left. A signal ends an evaluation, which is made anew when the run goes on; with several processes, which would
    have to leave it together, it is completed first.
    """
    state, done, last = job.state, job.first, max(config.last_step for config in job.configs)
    last_good = functools.partial(_last_good, job.checkpoints)
    meter = Meter(job.configs, job.trackers, job.first, job.train_seconds, last_good, job.renew)
    ranges = [steps for config in job.configs if (steps := config.profile_range())]  # one trace serves all trials
    trace = Trace(ranges[0] if ranges else None, job.profile_folder)
    with StopRequest() as stop, meter.bar, showing(meter.bar), trace:
        evaluators = [dataclasses.replace(one, evaluate=stop.interrupts(_announced(one))) for one in job.evaluators]
        before = [one for one in evaluators if job.first == 0 or one.name in job.unmade]
        unmade = _evaluate(job, meter, state, done, before, at_end=True)
        _check_best(job, meter, done, unmade)
        for done in range(job.first + 1, 0 if unmade else last + 1):
            trace.before(done)
            meter.start()
            if job.merge is not None and job.merges(done - 1):
                state, job.frozen = job.merge(state, job.frozen)
            state, metrics = job.step(state, job.frozen, job.place(next(job.batches)))
            meter.push(done, metrics)
            if trace.ends_with(done):
                meter.drain()
                trace.stop()
            unmade = _evaluate(job, meter, state, done, evaluators)
            _check_best(job, meter, done, unmade)
            stopping = bool(unmade) or (stop.requested(done) and done < last)
            if stopping or done == last or (job.checkpoint_every and done % job.checkpoint_every == 0):
                meter.drain()
                if not meter.none_left:
                    job.save(done, state, meter.seconds, unmade)
            if stopping or meter.none_left:
                break
    job.checkpoints.wait()
    return _outcome(job, meter, state, done, unmade)


def _announced(evaluator: Evaluator) -> Callable:
    """An evaluator's function, whose first call says that it compiles: the bar stands still for long."""
    words = [f"first evaluation{' ' if evaluator.name else ''}{evaluator.name}, compiling"]

    def evaluate(*given: Any) -> Any:
        with doing(words.pop()) if words else contextlib.nullcontext():
            return evaluator.evaluate(*given)

    return evaluate


def _evaluate(
    job: Job, meter: Meter, state: TrainState, done: int, evaluators: Sequence[Evaluator], at_end: bool = False
) -> list[str]:
    """Makes and records the evaluations that are due after `done` updates.

    Args:
      at_end: records none before all are made.

    Returns:
      the names of those that a signal kept from being made.
    """
    made = []
    for place, evaluator in enumerate(evaluators):
        due = [i for i, config in enumerate(job.configs) if done <= config.last_step]
        due = [i for i in due if evaluator.due(job.configs[i], done)]
        if evaluator.weights == BEST and job.best is not None:  # there are none before a held-out loss
            due = [i for i in due if job.best.known(i)]
        if not due:
            continue
        meter.drain()
        if meter.none_left:
            return []
        try:
            made.append((evaluator, due, job.evaluate(evaluator, state, due, done)))
        except Stopped:
            return [one.name for one in evaluators[place:]]
        if not at_end:
            meter.record(done, *made.pop())
    for one in made:
        meter.record(done, *one)
    return []


def _check_best(job: Job, meter: Meter, done: int, unmade: Sequence[str]) -> None:
    """Trials that end without best weights count as diverged."""
    ending = [i for i, config in enumerate(job.configs) if done == config.last_step and not unmade]
    if ending and job.best is not None:
        meter.drain()
        meter.diverged = {i: NO_BEST for i in ending if not job.best.known(i)} | meter.diverged


def _outcome(job: Job, meter: Meter, state: TrainState, done: int, unmade: Sequence[str]) -> Outcome:
    statuses, messages = [], []
    for i, config in enumerate(job.configs):
        stopped = f"stopped by a signal after step {done}; run it again to resume"
        status = (
            "diverged"
            if i in meter.diverged
            else "finished"
            if done >= config.last_step + bool(unmade)
            else "interrupted"
        )
        statuses.append(status)
        messages.append({"diverged": meter.diverged.get(i, ""), "interrupted": stopped}.get(status, ""))
    return Outcome(tuple(statuses), tuple(messages), state, job.frozen, meter.seconds)


def _last_good(checkpoints: Checkpoints) -> str:
    checkpoints.wait()
    saved = checkpoints.latest()
    return f"the last good checkpoint is step {saved}" if saved else "no checkpoint was saved before it"
