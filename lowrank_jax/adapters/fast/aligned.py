"""Pads the narrow side of an adapter with zeros, to a width for which a GPU has fast kernels."""

import jax.numpy as jnp

from lowrank_jax.core.types import Array
from lowrank_jax.ops.capability import platform

# Numbers in 16 bytes of bfloat16. cuBLAS has only slow kernels for rows that are no multiple of it, hence XLA pads what
# a product reads: for LoRA of rank 4 each x A and its gradient, in every layer.
ALIGNED = 8


def padding(size: int) -> int:
    """How many zeros a row of `size` numbers needs to become a multiple of ALIGNED."""
    return -size % ALIGNED


def with_zeros(leaf: Array, axis: int) -> Array:
    """The leaf; on a GPU with zeros at the end of its narrow axis, which change no product and are not trained."""
    more = padding(leaf.shape[axis])
    if not more or platform() != "gpu":
        return leaf
    width = [(0, 0)] * leaf.ndim
    width[axis] = (0, more)
    return jnp.pad(leaf, width)
