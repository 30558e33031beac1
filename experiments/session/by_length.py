"""A step for batches of several lengths: one program for each."""

from collections.abc import Callable
from typing import Any

from lowrank_jax.train.progress import doing


def by_length(jitted: Any, compiled: dict[int, Any]) -> Callable:
    """A step for batches of every length: tokens [..., T] pick the program, which is compiled at its first batch.

    Meanwhile the progress bar says that it compiles; with rows of several lengths some steps of the first epoch are
    slow for this.

    Args:
      jitted: of the step, whose last arguments from the third on are batch-like.
      compiled: T -> program; grows.
    """

    def step(state, frozen, batch, *more):
        length = batch["tokens"].shape[-1]
        if length not in compiled:
            with doing(f"compiling for length {length}"):
                compiled[length] = jitted.lower(state, frozen, batch, *more).compile()
        return compiled[length](state, frozen, batch, *more)

    return step
