"""The weights of the best held-out loss so far, of each trial: kept beside the state, and in its checkpoints."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowrank_jax.core.types import Array, Tree
from lowrank_jax.train.state import TrainState

LOSS = "loss"  # the metric that decides
LAST, BEST = "last", "best"  # which weights an evaluation reads


def keeps_best(evals: Mapping[str, Any]) -> bool:
    """Whether one of a config's `evals` reads the best weights."""
    return any(entry.weights == BEST for entry in evals.values())


class Best:
    """The best trainable tree so far; at first the run's beginning, with an infinite loss.

    Attributes:
      trainable: as that of the state; of several trials stacked.
      frozen: with restarts, the frozen tree that the best weights belong to: a second copy of it; otherwise None.
      loss, steps: float32 and int32 [trials], the held-out loss and the updates of each trial's best weights.

    Args:
      state: whose leaves are copied, as a step donates them.
      trials: how many; a run is one.
      frozen: given where merges change it.
    """

    def __init__(self, state: TrainState, trials: int, frozen: Tree | None = None):
        now = (state.trainable, frozen)
        places = jax.tree.map(lambda leaf: leaf.sharding, now)
        self._take = jax.jit(_take, donate_argnums=0, out_shardings=places)
        copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=places)
        self.trainable, self.frozen = copy(now)
        self.loss, self.steps = np.full(trials, np.inf, np.float32), np.zeros(trials, np.int32)

    def see(self, state: TrainState, step: int, losses: Mapping[int, float], frozen: Tree | None = None) -> None:
        """Takes the weights of the trials whose loss is lower than any before.

        Args:
          state: the current one.
          step: updates so far.
          losses: trial -> held-out loss; trials that are not evaluated now are left out.
          frozen: the current frozen tree.
        """
        better = np.zeros(len(self.loss), bool)
        for trial, loss in losses.items():
            better[trial] = loss < self.loss[trial]  # a loss that is no number is not
        if not better.any():
            return
        self.loss = np.where(better, [np.float32(losses.get(i, np.inf)) for i in range(len(better))], self.loss)
        self.steps = np.where(better, np.int32(step), self.steps).astype(np.int32)
        old, new = (self.trainable, self.frozen), (state.trainable, None if self.frozen is None else frozen)
        self.trainable, self.frozen = self._take(old, new, better if state.step.ndim else better[0])

    def known(self, trial: int) -> bool:
        """Whether a trial had a finite held-out loss; before, there are no best weights."""
        return bool(np.isfinite(self.loss[trial]))

    def weights(self, state: TrainState, frozen: Tree) -> tuple[TrainState, Tree]:
        """(state, frozen) with the best weights in them."""
        return state._replace(trainable=self.trainable), frozen if self.frozen is None else self.frozen

    def saved(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        kept = {} if self.frozen is None else {"frozen": self.frozen}
        return {"trainable": self.trainable, "loss": self.loss, "steps": self.steps, **kept}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Takes back what `saved` gave."""
        self.trainable, self.frozen = saved["trainable"], saved.get("frozen")
        self.loss, self.steps = np.asarray(saved["loss"]), np.asarray(saved["steps"])

    def record(self, trial: int) -> dict[str, float]:
        """{"step", "loss"} of a trial's best weights."""
        return {"step": int(self.steps[trial]), LOSS: float(self.loss[trial])}


def abstract_best(trainable: Tree, trials: int, frozen: Tree | None = None) -> dict[str, Any]:
    """The shapes of `Best.saved`, from those of the trainable tree and, with restarts, of the frozen one."""
    kept = {} if frozen is None else {"frozen": frozen}
    return {"trainable": trainable, "loss": np.zeros(trials, np.float32), "steps": np.zeros(trials, np.int32), **kept}


def _take(old: Tree, new: Tree, better: Array) -> Tree:
    """`new` where a trial is better, [] or [trials], otherwise `old`."""

    def chosen(before: Array, now: Array) -> Array:
        return jnp.where(jnp.reshape(better, better.shape + (1,) * (now.ndim - better.ndim)), now, before)

    return jax.tree.map(chosen, old, new)


def losses_of(trials: Sequence[int], values: Sequence[Mapping[str, float]]) -> dict[int, float]:
    """Trial -> its held-out loss."""
    return {trial: values[trial][LOSS] for trial in trials}


def loaded(saved: Mapping[str, Any], last: Tree, frozen: Tree, step: int) -> tuple[Tree, Tree, int]:
    """(trainable, frozen, their step) that a checkpoint is loaded with: the best, if there is one yet, or the last.

    Args:
      saved: of `Best.saved`, of one trial.
      last, frozen, step: the checkpoint's own.
    """
    if not np.isfinite(saved["loss"][0]):
        return last, frozen, step
    return saved["trainable"], saved.get("frozen", frozen), int(saved["steps"][0])
