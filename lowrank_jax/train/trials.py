"""Many trials in one program: states stacked on a leading axis over one resident frozen base.

Trials differ in seed, learning rate, schedule, alpha (all arrays) and, for LoRA, in rank: A and B are padded with zeros
to the widest rank. x [A 0] [B; 0] = x A B, and both gradients of the padding are zero, so it stays zero under AdamW.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.trees import is_small
from lowrank_jax.core.types import Array, Objective, Tree
from lowrank_jax.train.state import TrainState
from lowrank_jax.train.step import make_step

TRIAL = "trial"
SHARED = "params"  # the part of a frozen tree that all trials share


@jax.jit
def _stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def stack(trees: Sequence[Any]) -> Any:
    """Stacks equal trees along a leading trial axis, in one program, as each program must be compiled."""
    return _stack(list(trees))


def take(tree: Any, index: int) -> Any:
    """Trial `index` of a stacked tree, by one program for all trials."""
    return _take(tree, np.int32(index))


@jax.jit
def _take(tree, index):
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), tree)


def widen(tree: Tree, shapes: Tree) -> dict[str, Any]:
    """Leaves padded with zeros at the end of each axis to the widest trial's shapes.

    Args:
      tree: arrays.
      shapes: the same paths, each leaf at least as large along every axis.

    Raises:
      UserError: other paths, or a leaf that does not fit: the trials cannot share a program.
    """
    wide, narrow = dict(flatten(shapes)), dict(flatten(tree))
    if wide.keys() != narrow.keys():
        raise UserError(f"trials train other leaves: {sorted(wide.keys() ^ narrow.keys())[:3]}; run them separately")
    for path, leaf in narrow.items():
        missing = [big - small for big, small in zip(wide[path].shape, leaf.shape, strict=True)]
        if min(missing, default=0) < 0:
            raise UserError(f"{path} of a trial is {leaf.shape}, the widest {wide[path].shape}; run them separately")
        narrow[path] = _pad(leaf, tuple((0, more) for more in missing)) if any(missing) else leaf
    return unflatten(narrow)


def _pad(leaf, width):
    if _is_near(leaf):  # each shape would be a program
        return jax.device_put(np.pad(np.asarray(leaf), width), leaf.sharding)
    return jnp.pad(leaf, width)


def _is_near(leaf):
    """Whether a leaf is best changed on the host and put back where it was."""
    return isinstance(leaf, jax.Array) and is_small(leaf) and leaf.sharding.is_fully_replicated


def narrow(tree: Tree, shapes: Tree) -> dict[str, Any]:
    """The inverse of `widen`: each leaf cut to its trial's shape."""
    own = {path: leaf.shape for path, leaf in flatten(shapes).items()}
    return unflatten({p: leaf if leaf.shape == own[p] else _cut(leaf, own[p]) for p, leaf in flatten(tree).items()})


def _cut(leaf, shape):
    part = tuple(slice(size) for size in shape)
    return jax.device_put(np.asarray(leaf)[part], leaf.sharding) if _is_near(leaf) else leaf[part]


def frozen_axes(frozen: Tree) -> dict[str, int | None]:
    """The prefix of a shared frozen tree for `jax.vmap`: None for the params, 0 for scales and adapters."""
    return {name: None if name == SHARED else 0 for name in frozen}


def share(frozen: Sequence[Tree]) -> dict[str, Any]:
    """One frozen tree from many: the first's params, which all share, and the rest stacked."""
    return {name: tree if name == SHARED else stack([one[name] for one in frozen]) for name, tree in frozen[0].items()}


def schedule_table(shape: optax.Schedule, steps: int, width: int) -> np.ndarray:
    """shape(0), ..., shape(steps - 1) as float32, then zeros up to `width`: a schedule as an array.

    Raises:
      ValueError: width below steps.
    """
    if width < steps:
        raise ValueError(f"a table of {width} for {steps} steps")
    return np.pad(
        np.asarray(jax.vmap(shape)(jnp.arange(steps)), np.float32) * np.ones(steps, np.float32), (0, width - steps)
    )


def make_trial_step(
    objective: Objective, optimizer: optax.GradientTransformation, accumulate: int = 1
) -> Callable[[TrainState, Tree, dict[str, Array], Array, Array], tuple[TrainState, dict[str, Any]]]:
    """`make_step` for one trial, with its schedule as a table; after its last step a trial does not change.

    Returns:
      step(state, frozen, batch, table [steps] float32, last [] int32) -> (state, metrics).
    """

    def step(state, frozen, batch, table, last):
        plain = make_step(objective, optimizer, lambda count: table[count], accumulate)
        new, metrics = plain(state, frozen, batch)
        active = state.step < last
        return jax.tree.map(lambda after, before: jnp.where(active, after, before), new, state), metrics

    return step


def trial_mesh(trials: int, devices: Sequence[Any]) -> Mesh:
    """A mesh of the one axis "trial" over the most devices that divide the trials evenly."""
    used = max(n for n in range(1, len(devices) + 1) if trials % n == 0)
    return jax.make_mesh((used,), (TRIAL,), axis_types=(AxisType.Auto,), devices=list(devices)[:used])


def together(step: Callable, axes: Any, mesh: Mesh, options: Any = None) -> Any:
    """The step of all trials at once, jitted: each device runs some trials and exchanges nothing with others.

    Args:
      step: of `make_trial_step`.
      axes: of `frozen_axes`.
      mesh: of `trial_mesh`.
      options: of `compiler_options`.
    """
    stacked = jax.vmap(step, in_axes=(0, axes, 0, 0, 0))
    if mesh.size > 1:
        trial, frozen = (
            PartitionSpec(TRIAL),
            {n: PartitionSpec() if a is None else PartitionSpec(TRIAL) for n, a in axes.items()},
        )
        stacked = jax.shard_map(
            stacked, mesh=mesh, in_specs=(trial, frozen, trial, trial, trial), out_specs=trial, check_vma=False
        )
    split = NamedSharding(mesh, PartitionSpec(TRIAL))
    return jax.jit(stacked, donate_argnums=0, out_shardings=split, compiler_options=options)


def place(tree: Any, mesh: Mesh, shared: bool = False) -> Any:
    """A tree on the trial mesh: stacked leaves split over it, shared ones whole on every device."""
    spec = PartitionSpec() if shared else PartitionSpec(TRIAL)
    return jax.device_put(tree, NamedSharding(mesh, spec))


def place_frozen(frozen: Tree, mesh: Mesh) -> dict[str, Any]:
    """`share`'s tree on the trial mesh."""
    return {
        name: place(tree, mesh, shared=axis is None)
        for (name, tree), axis in zip(frozen.items(), frozen_axes(frozen).values(), strict=True)
    }
