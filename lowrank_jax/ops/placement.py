"""Keeps the rows of a batch on their devices, by constraining inputs and outputs of products with divided weights."""

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
    """Inside `rows_stay`: x with its first axis, and its cotangent's, divided over the batch axes. Elsewhere: x.

    mesh.fsdp divides batch and weights along one axis of the mesh. Without a constraint XLA may divide a product by
    features and put the whole batch on every device: it does for an embedding whose table is divided by features, and
    all layers follow. An x whose rows the mesh does not divide evenly is left alone.
    """
    found = _BATCH.get()
    if found is None or len(x) % math.prod(found[0].shape[axis] for axis in found[1]):
        return x
    mesh, axes = found
    spec = PartitionSpec(axes, *(PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def whole(x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """Inside `rows_stay`: x, gathered once on every device. Elsewhere: x.

    For arrays of which every layer reads a small part: otherwise each layer would make a small transfer of its own.
    """
    found = _BATCH.get()
    return x if found is None else jax.lax.with_sharding_constraint(x, NamedSharding(found[0], PartitionSpec()))


def is_divided() -> bool:
    """Whether the step being traced has weights divided along a batch axis, so that each layer gathers its own."""
    return _BATCH.get() is not None


@contextlib.contextmanager
def rows_stay(mesh: Mesh, axes: tuple[str, ...]) -> Iterator[None]:
    """While open, `rows` and `whole` constrain what is traced, over these batch axes of the mesh."""
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
