"""Zeros that make the narrow side of an adapter as wide as a GPU's kernels like it."""

import jax.numpy as jnp

from lowrank_jax.core.types import Array
from lowrank_jax.ops.capability import platform

# Rows of 16 bytes in bfloat16. cuBLAS has only slow kernels for others, and XLA pads to this width what a product
# reads: for LoRA of rank 4 the products x A and their gradients, in every layer.
ALIGNED = 8


def missing(size: int) -> int:
    """How many numbers a row of `size` lacks."""
    return -size % ALIGNED


def with_zeros(leaf: Array, axis: int) -> Array:
    """The leaf with zeros at the end of its narrow axis, on a GPU; they change no product, and have no gradient."""
    more = missing(leaf.shape[axis])
    if not more or platform() != "gpu":
        return leaf
    width = [(0, 0)] * leaf.ndim
    width[axis] = (0, more)
    return jnp.pad(leaf, width)
