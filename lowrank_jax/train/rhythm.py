"""How long a run is, and when it records and evaluates."""

import dataclasses
import re
from typing import Annotated

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.ranges import Range, check_ranges

# The choices where a 0 leaves them to the data: few rows are repeated until they are learnt, many are read a few times.
FITTED_BATCH, FITTED_STEPS, FITTED_PASSES = 64, 100, 3
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
