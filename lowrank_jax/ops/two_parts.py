"""A kernel as the sum of two of half its precision: 16 bits of a weight through products of bfloat16."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from lowrank_jax.core.types import Array


@functools.partial(jax.tree_util.register_dataclass, data_fields=["parts"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class TwoParts:
    """W = W_1 + W_2, W_1 = W rounded and W_2 = W - W_1 rounded; a leaf of a parameter tree, which a scan slices.

    What bfloat16 rounds away of W (a part in 2^9) is mostly larger than an adapter's update. With both parts a part in
    2^18 is lost.

    Attributes:
      parts: [*stack, d_in, 2 d_out], W_1 beside W_2: x W is one product, and the sum of its halves.
    """

    parts: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Of W, [*stack, d_in, d_out]."""
        *stack, rows, columns = self.parts.shape
        return (*stack, rows, columns // 2)

    @property
    def ndim(self) -> int:
        """Axes of `shape`."""
        return len(self.shape)


@functools.partial(jax.jit, static_argnums=1)
def two_parts(kernel: Float[Array, "*stack d_in d_out"], dtype: Any) -> TwoParts:
    """A float32 kernel in two parts of `dtype`."""
    # The barrier keeps XLA from taking the rounding there and back for nothing.
    first = jax.lax.optimization_barrier(kernel.astype(dtype))
    second = (kernel.astype(jnp.float32) - first.astype(jnp.float32)).astype(dtype)
    return TwoParts(jnp.concatenate([first, second], axis=-1))


def sum_of_halves(product: Float[Array, "*rows 2*d_out"]) -> Float[Array, "*rows d_out"]:
    """x W_1 + x W_2, of x [W_1, W_2]."""
    first, second = jnp.split(product, 2, axis=-1)
    return first + second
