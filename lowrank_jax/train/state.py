"""What a step changes: the trainable tree, the optimizer's state, the step, the peak rate and the dropout key."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lowrank_jax.core.paths import unknown_name
from lowrank_jax.core.trees import FROZEN
from lowrank_jax.core.types import Array, Rules, Tree

# Which leaves of {"params", "adapters", "scales"} are trained, by name. Anything else is a list of (path, bool) rules.
TRAINABLE: dict[str, Rules] = {
    "adapters": (("adapters/.*", True), FROZEN),
    "full": (("params/.*", True), FROZEN),
    "bitfit": (("params/(.*/)?bias", True), FROZEN),
    "head": (("params/head/.*", True), FROZEN),
    "adapters+head": (("adapters/.*", True), ("params/head/.*", True), FROZEN),
}


class TrainState(NamedTuple):
    """A pytree; every leaf may carry a leading trial axis under vmap.

    Attributes:
      step: [] int32, updates made.
      trainable: float32 masters.
      opt_state: optax state over `trainable` alone.
      learning_rate: [] float32, the peak rate.
      key: [2] uint32, folded with the step for dropout.
    """

    step: Array
    trainable: Tree
    opt_state: Any
    learning_rate: Array
    key: Array


def trainable_rules(choice: str | Rules) -> Rules:
    """The rules called `choice`, or the rules themselves.

    Raises:
      UserError: no rules of that name.
    """
    if not isinstance(choice, str):
        return tuple((pattern, keep) for pattern, keep in choice)
    if choice not in TRAINABLE:
        raise unknown_name("trainable", choice, TRAINABLE)
    return TRAINABLE[choice]


def init_state(trainable: Tree, optimizer: optax.GradientTransformation, learning_rate: float, seed: int) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=trainable,
        opt_state=optimizer.init(trainable),
        learning_rate=jnp.asarray(learning_rate, jnp.float32),
        key=jax.random.PRNGKey(seed),
    )
