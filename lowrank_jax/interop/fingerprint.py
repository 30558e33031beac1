"""A tree's fingerprint: tells whether an adapter or a checkpoint was made for this base."""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowrank_jax.core.paths import flatten, unflatten

Sample = tuple[tuple[int, ...], bytes]


def fingerprint(params: Any) -> str:
    """Hex sha256 over each leaf's path, shape and 16 evenly strided values in bfloat16, so copies in float32 and in
    bfloat16 agree. Reads 16 values a leaf; works on sharded and on numpy arrays.

    Args:
      params: the tree below "params".
    """
    return digest({path: sample(leaf) for path, leaf in flatten(params).items()})


def sample(leaf: Any) -> Sample:
    """What the fingerprint reads of one leaf: its shape and 16 values."""
    indices = np.linspace(0, math.prod(leaf.shape) - 1, 16).astype(np.int64)
    points = tuple(axis.astype(np.int32) for axis in np.unravel_index(indices, leaf.shape))
    return tuple(leaf.shape), _values_at(leaf, points).astype(np.float32).astype(jnp.bfloat16).tobytes()


def digest(samples: Mapping[str, Sample]) -> str:
    """The fingerprint of a tree from the `sample` of each leaf by path, taken before the leaf was changed."""
    found = hashlib.sha256()
    for path, (shape, values) in flatten(unflatten(samples)).items():  # in the order of a tree's leaves
        found.update(f"{path}{shape}".encode())
        found.update(values)
    return found.hexdigest()


def _values_at(leaf: Any, points: tuple[np.ndarray, ...]) -> np.ndarray:
    if not isinstance(leaf, jax.Array):
        return leaf[points]
    sharding = leaf.sharding
    if isinstance(sharding, jax.sharding.NamedSharding):  # replicated, so that every process of a pod can read them
        sharding = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return np.asarray(jax.jit(_gather, out_shardings=sharding)(leaf, points))


def _gather(leaf, points):
    return leaf[points]
