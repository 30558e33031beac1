"""Splitting a variable tree into trainable and frozen halves, and measuring it."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import first_match, flatten, unflatten
from lowrank_jax.core.types import Rules, Tree

SMALL = 2**16  # values: a leaf of no more is read and written on the host; a program for it takes 30 ms to compile
FROZEN = (".*", False)
ADAPTERS_ONLY: Rules = (("adapters/.*", True), FROZEN)
EVERYTHING: Rules = (("scales/.*", False), (".*", True))


def partition(variables: Tree, rules: Rules = ADAPTERS_ONLY) -> tuple[dict, dict]:
    """Splits `variables` by path into (trainable, frozen); `combine` is the inverse up to the cast.

    Args:
      variables: nested dicts; leaves are arrays or ShapeDtypeStructs.
      rules: ordered (regular expression, bool); the first that matches a whole path decides. Every path must match.

    Returns:
      trainable, with its floating leaves cast to float32 masters (Adam on bfloat16 leaves does not learn: an update of
        1e-4 of a weight is below bfloat16's resolution of 4e-3). Every trainable leaf is a copy, as the step donates it
        and would delete the caller's array. And frozen, the caller's own arrays.

    Raises:
      UserError: a path matches no rule, no path is trainable, or a trainable kernel is quantised.
    """
    trainable, frozen = {}, {}
    for path, leaf in flatten(variables).items():
        decision = first_match(rules, path)
        if decision is None:
            raise UserError(f"no trainable rule matches {path!r}; end the rules with ('.*', False) to freeze the rest")
        if decision:
            if is_coded(leaf):
                remedy = "set base.quantize=none, or train adapters"
                raise UserError(f"{path} is stored as {leaf.kind} codes and cannot be trained; {remedy}")
            trainable[path] = as_master(leaf)
        else:
            frozen[path] = leaf
    if not trainable:
        raise UserError(f"nothing to train: no path matches {[p for p, keep in rules if keep]}")
    return unflatten(trainable), unflatten(frozen)


def combine(*trees: Tree) -> dict:
    """Merges trees with disjoint paths into one.

    Raises:
      ValueError: a path is in two of the trees.
    """
    merged: dict[str, Any] = {}
    for tree in trees:
        flat = flatten(tree)
        if overlap := merged.keys() & flat.keys():
            raise ValueError(f"paths in more than one tree: {sorted(overlap)[:5]}")
        merged.update(flat)
    return unflatten(merged)


def as_master(leaf: Any) -> Any:
    """A copy of a leaf (array or ShapeDtypeStruct) with its sharding, in float32 if it is floating."""
    dtype = jnp.dtype(jnp.float32) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
    if leaf.dtype == dtype and not isinstance(leaf, jax.ShapeDtypeStruct):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer):
            return jax.device_put(leaf, leaf.sharding, may_alias=False)  # compiles nothing, unlike `copy`
        return leaf.copy()  # astype to the same dtype may return the array itself
    return cast_leaf(leaf, dtype)


def cast(tree: Tree, dtype: Any) -> Any:
    """The tree with every floating leaf cast to `dtype`."""
    return jax.tree.map(lambda x: cast_leaf(x, dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def cast_leaf(leaf: Any, dtype: Any) -> Any:
    """One array or ShapeDtypeStruct in another dtype."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)
    return leaf.astype(dtype)


def is_small(leaf: Any) -> bool:
    """Whether an array of floating point is best read on the host: at most SMALL values, all of them within reach."""
    if not isinstance(leaf, np.ndarray | jax.Array):  # parts that are joined as they are read, say
        return False
    known = jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize <= 4  # others jax converts in its own way
    return known and leaf.size <= SMALL and getattr(leaf, "is_fully_addressable", True)


def is_coded(leaf: Any) -> bool:
    """Whether a leaf is a quantised weight (`ops.quantized.Quantized`) and not an array."""
    return hasattr(leaf, "codes")


def count(tree: Any) -> int:
    """Number of scalars in any pytree; a quantised kernel counts its weights."""
    leaves = jax.tree.leaves(tree, is_leaf=is_coded)
    return sum(math.prod(leaf.shape) for leaf in leaves)


def nbytes(tree: Any) -> int:
    """Bytes of any pytree's leaves; of a quantised kernel, those of its codes and scales."""
    return sum(math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))
