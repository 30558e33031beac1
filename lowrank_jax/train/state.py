"""The training state: the trainable tree, the optimizer's state, the step, the peak rate and the dropout key."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import unknown_name
from lowrank_jax.core.trees import FROZEN
from lowrank_jax.core.types import Array, Rules, Tree

# The uppermost segment of a stack that is cut once: any that does not begin at layer 0 (`layer_cuts`).
_TOP = (r"params/layers_[1-9]\d*_\d+/.*", True)
_HEAD = (r"params/head/.*", True)

# Which leaves of {"params", "adapters", "scales"} are trained, by name. Anything else is a list of (path, bool) rules.
TRAINABLE: dict[str, Rules] = {
    "adapters": (("adapters/.*", True), FROZEN),
    "full": (("params/.*", True), FROZEN),
    "bitfit": (("params/(.*/)?bias", True), FROZEN),
    "head": (_HEAD, FROZEN),
    "adapters+head": (("adapters/.*", True), _HEAD, FROZEN),
    "bitfit+head": (("params/(.*/)?bias", True), _HEAD, FROZEN),
    "ft-top2": (_TOP, FROZEN),
    "ft-top2+head": (_TOP, _HEAD, FROZEN),
}
TOP_LAYERS = {"ft-top2": 2, "ft-top2+head": 2}  # the number of layers trained; the others are frozen


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
    """The rules named `choice`, or `choice` itself where it is a list of rules.

    Raises:
      UserError: no rules of that name.
    """
    if not isinstance(choice, str):
        return tuple((pattern, keep) for pattern, keep in choice)
    if choice not in TRAINABLE:
        raise unknown_name("trainable", choice, TRAINABLE)
    return TRAINABLE[choice]


def check_choice(choice: str | Rules, trainable: Tree, frozen: Tree) -> None:
    """Refuses rules that train none of the adapters, or that are for adapters where there are none.

    The user's own rules may freeze some of the adapters' leaves (every A, say), but not all.

    Args:
      choice: the rules' name, or the rules.
      trainable, frozen: the two parts of {"params", "adapters", "scales"} by the rules.

    Raises:
      UserError: a contradiction, with the two ways out.
    """
    named = isinstance(choice, str)
    trained, still = bool(trainable.get("adapters")), bool(frozen.get("adapters"))
    shown = f"trainable={choice!r}" if named else "trainable's rules"
    if still and (named or not trained):
        remedy = "set adapter.method=none to train without them, or trainable=adapters (adapters+head) to train them"
        raise UserError(f"config.{shown} would leave the adapters as they start; {remedy}")
    if named and choice.startswith("adapters") and not trained:
        rest = choice.partition("+")[2]
        raise UserError(f"config.{shown} and there are no adapters; set adapter.method, or trainable={rest or 'full'}")


def layer_cuts(choice: str | Rules, layers: int) -> tuple[int, ...]:
    """Where `choice` needs the stack of layers cut (`layouts.segments`): () for most, (layers - 2,) for "ft-top2".

    Raises:
      UserError: the model has no layer below those that are to be trained.
    """
    if not isinstance(choice, str) or choice not in TOP_LAYERS:
        return ()
    top = TOP_LAYERS[choice]
    if layers <= top:
        raise UserError(f'trainable "{choice}" leaves nothing of {layers} layers to freeze; use "full"')
    return (layers - top,)


def init_state(trainable: Tree, optimizer: optax.GradientTransformation, learning_rate: float, seed: int) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=trainable,
        opt_state=optimizer.init(trainable),
        learning_rate=jnp.asarray(learning_rate, jnp.float32),
        key=jax.random.PRNGKey(seed),
    )
