"""Reads the metrics of steps behind the device and writes them to the trials' records; times steps, and traces some."""

import collections
import dataclasses
import itertools
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import jax
import numpy as np

from lowrank_jax.core.types import SHOWN, Decoded

# Steps in flight before their metrics are read: enough to hide the host's work behind the device's.
PIPELINE_DEPTH = 4
# Of steps of at least so many seconds, none is in flight where the host's work is at most this share of one: a run that
# is asked to stop would have to wait for all of them, and the device loses no more than that share.
SLOW_SECONDS, HIDDEN = 1.0, 0.005
# Fewest steps that a rate is taken over: the host may see a step's end a step late, which is a tenth of ten steps.
RATE_STEPS = 10
MOST = 200  # most characters of a text in the log


@dataclasses.dataclass
class _Pending:
    """A step whose metrics are still to be read, and when it ended, once that is known."""

    step: int
    metrics: dict
    ended: float | None = None


class Meter:
    """The records of all trials, a progress bar, and the time of the steps alone.

    Attributes:
      seconds: spent in steps, over all sessions.
      diverged: trial -> why it is recorded no further.
      bar: the progress bar, a context manager.

    Args:
      configs: of each trial: `last_step` and `log_every`.
      trackers: of each trial.
      first: steps done before.
      seconds: spent on them.
      last_good: says which checkpoint a diverged trial could go on from.
      renew: called before each record; raises where the run may be written no more.
    """

    def __init__(
        self,
        configs: Sequence[Any],
        trackers: Sequence[Any],
        first: int,
        seconds: float,
        last_good: Callable[[], str],
        renew: Callable[[], None],
    ):
        from tqdm import tqdm

        self.configs, self.trackers, self.seconds = configs, trackers, seconds
        self._last_good, self._renew = last_good, renew
        self.diverged: dict[int, str] = {}
        self._pending: collections.deque[_Pending] = collections.deque()
        self._clock: float | None = None  # up to when time is counted
        self._marked = 0.0  # when the last step that is known to have ended did
        self._begun, self._waited = 0.0, 0.0  # when this turn of the loop began, and how long it has waited for steps
        self._depth = 0
        self._tokens = np.zeros(len(configs))
        self._marks = [(seconds, 0.0)] * len(configs)  # (seconds, tokens) at each trial's last record
        # (seconds, tokens of all trials) after each of the last steps, and at this session's start.
        self._recent = collections.deque([(seconds, self._tokens.copy())], maxlen=RATE_STEPS)
        self._shown: dict[str, str] = {}
        self.bar = tqdm(
            total=max(config.last_step for config in configs),
            initial=first,
            unit="step",
            disable=jax.process_index() != 0,
            mininterval=0.2 if sys.stderr.isatty() else 10.0,
            dynamic_ncols=True,
        )

    @property
    def none_left(self) -> bool:
        """Whether every trial diverged."""
        return len(self.diverged) == len(self.configs)

    def start(self) -> None:
        """Starts the clock, if it stands still."""
        if self._clock is None:
            self._clock = self._marked = time.perf_counter()
        self._begun, self._waited = time.perf_counter(), 0.0

    def push(self, step: int, metrics: dict) -> None:
        """Takes a step's metrics, [] of one trial or [trials], and reads those of `_depth` steps before."""
        self._pending.append(_Pending(step, metrics))
        self._mark()
        while len(self._pending) > self._depth and not self.none_left:
            self._read()
        turn = time.perf_counter() - self._begun
        hidden = self._waited >= SLOW_SECONDS and turn - self._waited <= HIDDEN * turn
        self._depth = 0 if hidden else PIPELINE_DEPTH

    def drain(self) -> None:
        """Reads what is in flight and stops the clock: evaluation and saving are not training time."""
        while self._pending and not self.none_left:
            self._read()
        if self._clock is not None:
            self.seconds += time.perf_counter() - self._clock
            self._clock = None

    def log(self, trial: int, step: int, values: dict[str, float]) -> None:
        """A record of one trial, unless it diverged before."""
        if trial not in self.diverged:
            self._renew()
            self.trackers[trial].log(step, values)

    def record(self, step: int, evaluator: Any, trials: Sequence[int], values: Sequence[Any]) -> None:
        """Records an evaluation of these trials, and shows its scores.

        Args:
          step: updates so far.
          evaluator: a `train.evaluations.Evaluator`.
          trials: the trials that are evaluated at this step.
          values: what it returned, of all trials.
        """
        if evaluator.texts:
            self.write(trials, step, evaluator.name, values)
            return
        scores = [one.values if isinstance(one, Decoded) else one for one in values]
        for trial in trials:
            if isinstance(values[trial], Decoded):
                self.decoded(trial, step, evaluator.name, values[trial].texts)
            self.log(trial, step, evaluator.keys(scores[trial]))
        self.show(scores)

    def write(self, trials: Sequence[int], step: int, name: str, texts: Sequence[Sequence[Mapping[str, str]]]) -> None:
        """Records an evaluation's texts for each trial that did not diverge before, and shows the first of them.

        Args:
          trials: the trials that are evaluated at this step.
          step: updates so far.
          name: of the evaluation.
          texts: of all trials.
        """
        live = [trial for trial in trials if trial not in self.diverged]
        for trial in live:
            self._renew()
            recorded = [{key: value for key, value in text.items() if key != SHOWN} for text in texts[trial]]
            self.trackers[trial].samples(step, name, recorded)
        if live and not self.bar.disable:
            first = texts[live[0]][0]
            self.bar.write(f"step {step}, {name}:{_beside(first.get(SHOWN, first['prompt']), first['continuation'])}")

    def decoded(self, trial: int, step: int, name: str, texts: Sequence[Mapping[str, Any]]) -> None:
        """Records the texts that an evaluation has scored of one trial, unless it diverged before."""
        if trial not in self.diverged:
            self._renew()
            self.trackers[trial].decoded(step, name, texts)

    def show(self, values: Sequence[dict[str, float]]) -> None:
        """Adds an evaluation's values to the bar: of one trial, or the range of several."""
        names = dict.fromkeys(name for one in values for name in one)
        found = {name: _range([one[name] for one in values if name in one], ".4g") for name in names}
        # The bar's own "loss" is the training loss.
        self._shown |= {"held-out loss" if name == "loss" else name: value for name, value in found.items()}
        self.bar.set_postfix(self._shown)

    def _mark(self, first: bool = False) -> None:
        """Notes which steps have ended; those that are found together share the time since the one before them.

        Args:
          first: whether the first that is not noted has ended for sure: its values have been read, for which one of
            several devices is enough.
        """
        unmarked = [entry for entry in self._pending if entry.ended is None]
        ended = unmarked[:first]
        ended += itertools.takewhile(lambda entry: entry.metrics["loss"].is_ready(), unmarked[first:])
        now = time.perf_counter()
        for number, entry in enumerate(ended, 1):
            entry.ended = self._marked + (now - self._marked) * number / len(ended)
        self._marked = now if ended else self._marked

    def _read(self) -> None:
        entry = self._pending[0]
        begun = time.perf_counter()
        values = {name: np.atleast_1d(np.asarray(value)) for name, value in entry.metrics.items()}
        self._waited += time.perf_counter() - begun
        if entry.ended is None:  # it was waited for; more steps may have ended before this process was woken
            self._mark(first=True)
        self._pending.popleft()
        assert self._clock is not None  # `start` came before
        assert entry.ended is not None  # marked above
        self.seconds, self._clock = self.seconds + entry.ended - self._clock, entry.ended
        finite = values.pop("finite")
        for trial, config in enumerate(self.configs):
            if entry.step > config.last_step or trial in self.diverged:
                continue
            mine = {name: value[trial].item() for name, value in values.items()}
            if not finite[trial]:
                what = f"loss {mine['loss']:g}, gradient norm {mine['grad_norm']:g} at step {entry.step}"
                remedy = "lower optimizer.learning_rate or raise the warm-up"
                self.diverged[trial] = f"{what}; {self._last_good()}; {remedy}"
                continue
            self._tokens[trial] += mine["tokens"]
            if entry.step % config.log_every == 0 or entry.step == config.last_step:
                self.log(trial, entry.step, {**mine, **self._rate(trial), "train_seconds": self.seconds})
        self._recent.append((self.seconds, self._tokens.copy()))
        self._shown["loss"] = _range(values["loss"], ".4f")
        if self.diverged:
            self._shown["diverged"] = str(len(self.diverged))
        self.bar.set_postfix(self._shown, refresh=False)
        self.bar.update(1)

    def _rate(self, trial: int) -> dict[str, float]:
        """Tokens a second since the trial's last record, or over the last RATE_STEPS steps, whichever is longer."""
        begun, before = self._recent[0]
        begun, before = min(self._marks[trial], (begun, float(before[trial])))
        seconds, tokens = self.seconds - begun, self._tokens[trial] - before
        self._marks[trial] = (self.seconds, float(self._tokens[trial]))
        rate = float(tokens) / seconds if seconds > 0 else math.nan
        self._shown["tok/s"] = f"{rate:,.0f}"
        return {"tokens_per_second": rate}


class Trace:
    """A profile of steps [first, last], or of as many as this session runs; closed whatever ends the loop."""

    def __init__(self, steps: tuple[int, int] | None, folder: str):
        self.steps, self.folder, self.running = steps, folder, False

    def before(self, step: int):
        if self.steps and not self.running and self.steps[0] <= step <= self.steps[1]:
            jax.profiler.start_trace(self.folder)
            self.running = True

    def ends_with(self, step: int) -> bool:
        return self.running and self.steps is not None and step == self.steps[1]

    def stop(self):
        if self.running:
            self.running = False
            jax.profiler.stop_trace()

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def _beside(prompt: str, continuation: str) -> str:
    """Prompt => continuation: on the same line and in quotes, or, where one has several lines, below it and indented.

    The end of a long prompt and the beginning of a long continuation are shown. No control character of a text reaches
    the terminal.
    """
    prompt = prompt if len(prompt) <= MOST else f"...{prompt[-MOST:]}"
    continuation = continuation if len(continuation) <= MOST else f"{continuation[:MOST]}..."
    if "\n" not in prompt + continuation:
        return f" {prompt!r} => {continuation!r}"
    lines = [*prompt.rstrip("\n").split("\n"), *f"=> {continuation}".split("\n")]
    return "".join(f"\n    {''.join(c if c.isprintable() else repr(c)[1:-1] for c in line)}" for line in lines)


def _range(values: Any, form: str) -> str:
    """The value, or the least and the greatest of several."""
    if not np.any(np.isfinite(values)):
        return "not finite"
    low, high = np.nanmin(values), np.nanmax(values)
    return format(low, form) if len(values) == 1 else f"{low:{form}}..{high:{form}}"
