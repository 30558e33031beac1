"""Rows of a batch that stay on their devices: a constraint on inputs and outputs of products with divided weights."""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Shaped

from lowrank_jax.core.types import Array

# (mesh, its axes that divide a batch) while a step is traced whose weights are divided along one of those axes.
_BATCH: contextvars.ContextVar[tuple[Mesh, tuple[str, ...]] | None] = contextvars.ContextVar("batch", default=None)


def rows(x: Shaped[Array, "B ..."]) -> Shaped[Array, "B ..."]:
    """x with its first axis divided over the batch axes of `rows_stay`, and its cotangent too; x itself outside of it.

    mesh.fsdp divides batch and weights along one axis. Left alone, XLA may divide a product by features and put the
    whole batch on every device: of an embedding whose table is divided by features it does, and all layers follow.
    An axis that the mesh does not divide is left alone.
    """
    found = _BATCH.get()
    if found is None or len(x) % math.prod(found[0].shape[axis] for axis in found[1]):
        return x
    mesh, axes = found
    spec = PartitionSpec(axes, *(PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def whole(x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """x on every device, gathered here; x itself outside of `rows_stay`.

    For what all layers read a little of: gathered where each layer reads it, it would be a small transfer a layer.
    """
    found = _BATCH.get()
    return x if found is None else jax.lax.with_sharding_constraint(x, NamedSharding(found[0], PartitionSpec()))


def is_divided() -> bool:
    """Whether a step is traced whose weights are divided along an axis of the batch: a layer gathers what it reads."""
    return _BATCH.get() is not None


@contextlib.contextmanager
def rows_stay(mesh: Mesh, axes: tuple[str, ...]) -> Iterator[None]:
    """While a function is traced: what `rows` is given stays divided over these axes of the mesh."""
    token = _BATCH.set((mesh, axes))
    try:
        yield
    finally:
        _BATCH.reset(token)


def with_rows_in_place(function: Callable[..., Any], mesh: Mesh, axes: tuple[str, ...]) -> Callable[..., Any]:
    """The function, traced inside `rows_stay`."""

    @functools.wraps(function)
    def inside(*args, **kwargs):
        with rows_stay(mesh, axes):
            return function(*args, **kwargs)

    return inside
