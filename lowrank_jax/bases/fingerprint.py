"""The fingerprint of a parameter tree, which tells whether an adapter or a checkpoint was made for this base."""

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
    """Hex sha256 over each leaf's path, shape and 16 evenly strided values in bfloat16.

    Copies in float32 and in bfloat16 have the same fingerprint. Reads 16 values a leaf; works on sharded and on numpy
    arrays.

    Args:
      params: the tree below "params".
    """
    flat = flatten(params)
    values = _values({path: (leaf, _points(leaf.shape)) for path, leaf in flat.items()})
    return digest({path: _sample(leaf, values[path]) for path, leaf in flat.items()})


def sample(leaf: Any) -> Sample:
    """What enters the fingerprint of one leaf: its shape and 16 values."""
    return _sample(leaf, _values({"": (leaf, _points(leaf.shape))})[""])


def _points(shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    indices = np.linspace(0, math.prod(shape) - 1, 16).astype(np.int64)
    return tuple(axis.astype(np.int32) for axis in np.unravel_index(indices, shape))


def _sample(leaf: Any, values: np.ndarray) -> Sample:
    return tuple(leaf.shape), values.astype(np.float32).astype(jnp.bfloat16).tobytes()


def digest(samples: Mapping[str, Sample]) -> str:
    """The fingerprint of a tree from the `sample` of each leaf by path, taken before the leaf was changed."""
    found = hashlib.sha256()
    for path, (shape, values) in flatten(unflatten(samples)).items():  # in the order of a tree's leaves
        found.update(f"{path}{shape}".encode())
        found.update(values)
    return found.hexdigest()


def _values(leaves: Mapping[str, tuple[Any, tuple[np.ndarray, ...]]]) -> dict[str, np.ndarray]:
    """The values of each leaf at its points; those on devices by one program, as each program must be compiled."""
    values = {path: leaf[points] for path, (leaf, points) in leaves.items() if not isinstance(leaf, jax.Array)}
    held = {path: given for path, given in leaves.items() if path not in values}
    if held:
        shardings = {path: _whole(leaf.sharding) for path, (leaf, _) in held.items()}
        read = jax.jit(_gather, out_shardings=shardings)(held)
        values |= {path: np.asarray(x) for path, x in read.items()}
    return values


def _whole(sharding: Any) -> Any:
    """Replicated, so that every process of a pod can read the values."""
    if isinstance(sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return sharding


def _gather(leaves):
    return {path: leaf[points] for path, (leaf, points) in leaves.items()}
