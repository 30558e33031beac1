"""The loop around a step of many trials: batches of each in, records of each out, one checkpoint of all."""

import collections
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from lowrank_jax.checkpoints.manager import Checkpoints
from lowrank_jax.data.pipeline import Batch, Batches
from lowrank_jax.train.loop import PIPELINE_DEPTH, LoopConfig
from lowrank_jax.train.signals import StopRequest
from lowrank_jax.train.state import TrainState
from lowrank_jax.train.tracking import Tracker


@dataclasses.dataclass
class TrialsJob:
    """Everything `fit_trials` needs, already placed and compiled; sequences have one entry a trial.

    Attributes:
      state, frozen: stacked and shared, on the trial mesh.
      step: (state, frozen, batch) -> (state, metrics); donates the state.
      batches: the trials' streams; trials of one seed may share one.
      place: host batch [trials, B, ...] -> device batch.
      evaluate: (state, frozen) -> [{name: value}].
      configs: rhythm and last step, in steps.
      checkpoints, checkpoint_every: where and how often (0: only at the end and on SIGTERM).
      trackers: records.
      first: steps done before.
      train_seconds: spent on them.
      renew: called before each record and checkpoint; raises where the runs may be written no more.
    """

    state: TrainState
    frozen: Any
    step: Callable
    batches: Sequence[Batches]
    place: Callable
    evaluate: Callable[[TrainState, Any], list[dict[str, float]]]
    configs: Sequence[LoopConfig]
    checkpoints: Checkpoints
    checkpoint_every: int
    trackers: Sequence[Tracker]
    first: int = 0
    train_seconds: float = 0.0
    renew: Callable[[], None] = lambda: None


@dataclasses.dataclass(frozen=True)
class TrialsOutcome:
    """How the trials ended: `finished`, `diverged` or `interrupted`, one each, and the seconds of all their steps."""

    statuses: tuple[str, ...]
    messages: tuple[str, ...]
    state: TrainState
    train_seconds: float


def stacked_batch(batches: Sequence[Batches], number: int, bucketed: bool) -> Batch:
    """Batch `number` of every trial, [trials, B, ...], padded to the longest of them; equal streams are read once."""
    streams = {id(stream): stream for stream in batches}
    length = max(stream.length(number) for stream in streams.values()) if bucketed else None
    read = {key: stream.batch(number, length) for key, stream in streams.items()}
    return {name: np.stack([read[id(stream)][name] for stream in batches]) for name in read[id(batches[0])]}


def fit_trials(job: TrialsJob, bucketed: bool = False) -> TrialsOutcome:
    """Runs all trials from their common step to the last step of the longest, or to a SIGTERM.

    A trial whose loss or gradient is not finite is marked as diverged and recorded no further; the others go on.

    Args:
      bucketed: the batches have several lengths.
    """
    from tqdm import tqdm

    lasts = [config.last_step for config in job.configs]
    records = _Records(job)
    with (
        StopRequest() as stop,
        ThreadPoolExecutor(2, "trials") as pool,
        tqdm(
            total=max(lasts),
            initial=job.first,
            unit="step",
            mininterval=0.2 if sys.stderr.isatty() else 10.0,
            dynamic_ncols=True,
        ) as bar,
    ):
        ahead: collections.deque = collections.deque()
        state, done = job.state, job.first
        for done in range(job.first + 1, max(lasts) + 1):
            while len(ahead) <= PIPELINE_DEPTH and done - 1 + len(ahead) < max(lasts):
                ahead.append(pool.submit(stacked_batch, job.batches, done - 1 + len(ahead), bucketed))
            records.start()
            state, metrics = job.step(state, job.frozen, job.place(ahead.popleft().result()))
            records.push(done, metrics)
            bar.update(1)
            due = [i for i, config in enumerate(job.configs) if done <= lasts[i] and config.evaluates_at(done)]
            if due:
                records.drain()
                values = job.evaluate(state, job.frozen)
                for i in due:
                    records.log(i, done, {f"eval/{name}": value for name, value in values[i].items()})
            bar.set_postfix(records.shown(), refresh=False)
            stopping = stop.requested(done) and done < max(lasts)
            if stopping or done == max(lasts) or (job.checkpoint_every and done % job.checkpoint_every == 0):
                records.drain()
                _save(job, state, done, records.seconds)
            if stopping or len(records.diverged) == len(lasts):
                break
        for future in ahead:
            future.cancel()
    records.drain()
    job.checkpoints.wait()
    statuses = tuple(
        "diverged" if i in records.diverged else "finished" if done >= last else "interrupted"
        for i, last in enumerate(lasts)
    )
    messages = tuple(records.diverged.get(i, "") for i in range(len(lasts)))
    return TrialsOutcome(statuses, messages, state, records.seconds)


def _save(job: TrialsJob, state: TrainState, step: int, seconds: float) -> None:
    job.renew()
    rest = {"opt_state": state.opt_state, "step": state.step, "learning_rate": state.learning_rate, "key": state.key}
    job.checkpoints.save(step, state.trainable, rest, {"train_seconds": seconds})


class _Records:
    """Reads metrics a few steps behind the device and writes them to the trials' trackers."""

    def __init__(self, job: TrialsJob):
        self.job, self.pending = job, collections.deque()
        self.seconds, self.clock = job.train_seconds, None
        self.diverged: dict[int, str] = {}
        self.tokens = np.zeros(len(job.configs))
        self.marks = [(job.train_seconds, 0.0)] * len(job.configs)
        self.losses: np.ndarray | None = None

    def start(self) -> None:
        """Starts the clock, if it stands still."""
        if self.clock is None:
            self.clock = time.perf_counter()

    def push(self, step: int, metrics: dict) -> None:
        """Keeps a step's metrics until the device has gone PIPELINE_DEPTH steps on."""
        self.pending.append((step, metrics))
        if len(self.pending) > PIPELINE_DEPTH:
            self._read()

    def drain(self) -> None:
        """Reads what is in flight and stops the clock: evaluation and saving are not training time."""
        while self.pending:
            self._read()
        self.clock = None

    def log(self, trial: int, step: int, values: dict[str, float]) -> None:
        """A record of one trial, unless it diverged before."""
        if trial not in self.diverged:
            self.job.renew()
            self.job.trackers[trial].log(step, values)

    def shown(self) -> dict[str, str]:
        """What the progress bar says: the losses' range."""
        if self.losses is None:
            return {}
        return {
            "loss": f"{np.nanmin(self.losses):.4f}..{np.nanmax(self.losses):.4f}",
            "diverged": str(len(self.diverged)),
        }

    def _read(self) -> None:
        step, metrics = self.pending.popleft()
        values = {name: np.asarray(jax.device_get(value)) for name, value in metrics.items()}
        now = time.perf_counter()
        self.seconds, self.clock = self.seconds + now - self.clock, now
        self.losses, finite = values["loss"], values.pop("finite")
        self.tokens += values["tokens"]
        for i, config in enumerate(self.job.configs):
            if step > config.last_step or i in self.diverged:
                continue
            mine = {name: value[i].item() for name, value in values.items()}
            if not finite[i]:
                self.diverged[i] = (
                    f"loss {mine['loss']:g}, gradient norm {mine['grad_norm']:g} at step {step}; "
                    "lower optimizer.learning_rate or raise the warm-up"
                )
            elif step % config.log_every == 0 or step == config.last_step:
                seconds, tokens = self.seconds - self.marks[i][0], self.tokens[i] - self.marks[i][1]
                self.marks[i] = (self.seconds, self.tokens[i])
                rate = tokens / seconds if seconds > 0 else float("nan")
                self.log(i, step, {**mine, "tokens_per_second": rate, "train_seconds": self.seconds})
