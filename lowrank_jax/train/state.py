"""The training state: the trainable tree, the optimizer's state, the step, the peak rate and the dropout key."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import first_match, flatten, unknown_name
from lowrank_jax.core.trees import FROZEN
from lowrank_jax.core.types import Array, Rules, Tree

# The uppermost segment of a stack that is cut once: any that does not begin at layer 0 (`layer_cuts`).
_TOP = (r"params/layers_[1-9]\d*_\d+/.*", True)
_HEAD = (r"params/head/.*", True)

# Which leaves of {"params", "adapters", "scales"} are trained, by name. Others are lists of (path, bool) rules.
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
    """Refuses rules that contradict the adapters or the model: the run would be recorded as what it is not.

    The user's own rules may freeze a part of each adapter (every A, say), but not all of one.

    Args:
      choice: the rules' name, or the rules.
      trainable, frozen: the two parts of {"params", "adapters", "scales"} by the rules.

    Raises:
      UserError: adapters that would stay as they start, rules for adapters where there are none, or a rule that is for
        no leaf there is; with the ways out.
    """
    named, rules = isinstance(choice, str), trainable_rules(choice)
    still, moved = (set(flatten(tree.get("adapters", {}))) for tree in (frozen, trainable))
    shown = f"config.trainable={choice!r}" if named else "config.trainable's rules"
    if still and (named or not moved):
        remedy = "set adapter.method=none to train without them, or trainable=adapters (adapters+head) to train them"
        raise UserError(f"{shown} would leave the adapters as they start; {remedy}")
    wanted = any(keep and pattern.startswith("adapters/") for pattern, keep in rules)
    if wanted and not moved:
        rest = (str(choice).partition("+")[2] or "full") if named else "rules without adapters/"
        raise UserError(f"{shown} and there are no adapters; set adapter.method, or trainable={rest}")
    sites = [{path.rpartition("/")[0] for path in paths} for paths in (still, moved)]
    if rest := sorted(sites[0] - sites[1]):
        raise UserError(f"{shown} would leave the adapter at {rest[0]} as it starts; name it in adapter.exclude")
    paths = [*flatten(trainable), *flatten(frozen)]
    if dead := [p for p, keep in rules if keep and not any(first_match([(p, True)], path) for path in paths)]:
        raise UserError(f"{shown} has {dead[0]!r}, which is no leaf of this model; leave that part out")


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
