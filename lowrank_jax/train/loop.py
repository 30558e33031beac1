"""The loop around the step: batches in, records, evaluations and checkpoints out; a run is the loop of one trial."""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Protocol

from lowrank_jax.checkpoints.manager import Checkpoints
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.ranges import Range, check_ranges
from lowrank_jax.core.types import Decoded
from lowrank_jax.train.best import BEST, LAST, Best, losses_of
from lowrank_jax.train.meter import Meter, Trace
from lowrank_jax.train.signals import Stopped, StopRequest
from lowrank_jax.train.state import TrainState
from lowrank_jax.train.tracking import Tracker

# The choices where a 0 leaves them to the data: few rows are repeated until they are learnt, many are read a few times.
FITTED_BATCH, FITTED_STEPS, FITTED_PASSES = 64, 100, 3
NO_BEST = (
    "its held-out loss was never a finite number, and there are no best weights to decode and export; lower "
    "optimizer.learning_rate, or look at the held-out rows"
)
UNMADE = "unmade"  # in a checkpoint's cursor
MOST_EPOCHS = 100_000  # an evaluation step is listed for each


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Length and rhythm of a run, in optimizer steps.

    Attributes:
      steps: length of the run; the schedule decays over it. 0 chooses it from the data: FITTED_PASSES passes and at
        least FITTED_STEPS steps; see `over`.
      epochs: the length in passes over the data instead, each with an evaluation at its end; see `over`. 0 for `steps`.
      stop_at: ends the run early with the schedule unchanged, for learning-rate trials; 0 for `steps`.
      batch_size: examples a step, over all devices. 0 chooses it from the data: all, at most FITTED_BATCH.
      accumulate: micro-batches a step.
      chunk_tokens: positions whose float32 logits exist at a time in the loss; 0 for all.
      label_smoothing: e of a next-token loss (1 - e) (-log p(target)) + e mean over the vocabulary of -log p; the
        held-out loss is without it.
      log_every: a record of the loss each so many steps.
      eval_every, eval_steps: evaluations at multiples of the one and at the others; the last step is always evaluated.
      profile_steps: "first:last" steps traced into the run's folder, "" for none.
    """

    steps: Annotated[int, Range(least=0)] = 100
    epochs: Annotated[int, Range(least=0, most=MOST_EPOCHS)] = 0
    stop_at: Annotated[int, Range(least=0)] = 0
    batch_size: Annotated[int, Range(least=0)] = 64
    accumulate: Annotated[int, Range(least=1)] = 1
    chunk_tokens: Annotated[int, Range(least=0)] = 0
    label_smoothing: Annotated[float, Range(least=0, below=1)] = 0.0
    log_every: Annotated[int, Range(least=1)] = 1
    eval_every: Annotated[int, Range(least=0)] = 0
    eval_steps: tuple[Annotated[int, Range(least=1)], ...] = ()
    profile_steps: str = ""

    def __post_init__(self):
        check_ranges(self, "train")
        default = LoopConfig.__dataclass_fields__["steps"].default
        if self.epochs and self.steps not in (0, default):
            raise UserError(
                f"train.steps={self.steps} and train.epochs={self.epochs} both give the length; set one of them to 0"
            )
        if self.epochs or not self.steps:  # the rest depends on the steps, which `over` finds
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

    def over(self, examples: int, multiple: int = 1) -> "LoopConfig":
        """The config in steps, not epochs, with the values that are left to the data.

        With `epochs`, epoch e ends at step e * examples / batch_size, rounded.

        Args:
          examples: how many the training data have.
          multiple: a batch must be a multiple of it: `accumulate` times the devices that share a batch.
        """
        size = self.batch_size or max(multiple, min(examples, FITTED_BATCH) // multiple * multiple)
        if not self.epochs:
            steps = self.steps or max(FITTED_STEPS, -(-FITTED_PASSES * examples // size))
            return dataclasses.replace(self, steps=steps, batch_size=size)
        ends = [max(1, round(epoch * examples / size)) for epoch in range(1, self.epochs + 1)]
        evaluated = sorted(step for step in {*self.eval_steps, *ends} if step <= ends[-1])
        return dataclasses.replace(self, epochs=0, steps=ends[-1], batch_size=size, eval_steps=tuple(evaluated))

    def profile_range(self) -> tuple[int, int] | None:
        """(first, last) of `profile_steps`."""
        if not self.profile_steps:
            return None
        found = re.fullmatch(r"([0-9]{1,10}):([0-9]{1,10})", self.profile_steps)
        if not found or not 0 < int(found[1]) < int(found[2]):
            raise UserError(f"train.profile_steps is {self.profile_steps[:40]!r}; write it as 10:15")
        return int(found[1]), int(found[2])

    def evaluates_at(self, step: int) -> bool:
        """Whether the model is evaluated after `step` updates."""
        at_end, in_turn = step == self.last_step, bool(self.eval_every and step % self.eval_every == 0)
        return step > 0 and (at_end or in_turn or step in self.eval_steps)


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """An entry of a run's `evals`: an evaluation by a name of its own, and its rhythm.

    Attributes:
      type: one of the evaluations that the task's form has (`forms`); "" is the task's own.
      every, steps: after multiples of the one and after the others, in optimizer steps.
      at_end: after the last step.
      at_start: before the first step: of an adapter that starts at zero, the score of the base.
      with_train: also whenever `LoopConfig` evaluates: by eval_every, by eval_steps, at the end of an epoch.
      weights: `last`, as they are at that step, or `best`, those of the lowest held-out loss so far (measured by
        evaluations of the types "likelihood" and "choices"), which the run then keeps, exports and is loaded with.
    """

    type: str = ""
    every: Annotated[int, Range(least=0)] = 0
    steps: tuple[Annotated[int, Range(least=1)], ...] = ()
    at_end: bool = True
    at_start: bool = False
    with_train: bool = False
    weights: Literal["last", "best"] = LAST

    def __post_init__(self):
        check_ranges(self, "evals")

    @property
    def options(self) -> Any:
        """The options of the evaluation; None where its type has none."""
        return None

    def due(self, train: LoopConfig, step: int) -> bool:
        """Whether it is time after `step` updates; 0 is before the first."""
        if step == 0:
            return self.at_start
        at_end = self.at_end and step == train.last_step
        beside = self.with_train and train.evaluates_at(step)
        return at_end or beside or step in self.steps or bool(self.every and step % self.every == 0)

    def check_due(self, where: str, train: LoopConfig) -> None:
        """Refuses steps beyond the run's, and an entry that is never due.

        Args:
          where: the entry's name in messages.
          train: in steps, not epochs; see `LoopConfig.over`.

        Raises:
          UserError: names the entry.
        """
        if late := [step for step in self.steps if step > train.steps]:
            raise UserError(f"{where}.steps {late} lie beyond the last step, {train.steps}")
        often = 0 < self.every <= train.steps
        if not (self.at_end or self.at_start or self.with_train or self.steps or often):
            every = f"every {self.every} of {train.steps} steps" if self.every else "no every, no steps"
            raise UserError(f"{where} is never due ({every}, at_end=False); set every, steps, at_start or at_end")


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """One of a run's evaluations.

    Attributes:
      name: stands before its metrics' names; "" stands for none.
      due: (a trial's LoopConfig, step) -> whether that trial is evaluated after so many updates.
      evaluate: (state, frozen) -> {metric: value} of each trial, or `Decoded`; with `texts`, each trial's list of
        {name: text}.
      texts: whether it gives texts, which are written to samples.jsonl, and not metrics.
      weights: LAST or BEST; see `EvalConfig`.
      decides: whether its loss says which weights are best.
    """

    name: str
    due: Callable[[LoopConfig, int], bool]
    evaluate: Callable[[TrainState, Any], Sequence[Any]]
    texts: bool = False
    weights: str = LAST
    decides: bool = False

    def keys(self, values: dict[str, float]) -> dict[str, float]:
        """The values under the names that the records have."""
        prefix = f"eval/{self.name}/" if self.name else "eval/"
        return {f"{prefix}{name}": value for name, value in values.items()}


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
    with StopRequest() as stop, meter.bar, trace:
        evaluators = [dataclasses.replace(one, evaluate=stop.interrupts(one.evaluate)) for one in job.evaluators]
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
