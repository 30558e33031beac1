"""Evaluations of a run: the config of each, when it is due, and the function that computes its scores."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.ranges import Range, check_ranges
from lowrank_jax.train.best import LAST
from lowrank_jax.train.rhythm import LoopConfig
from lowrank_jax.train.state import TrainState


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
