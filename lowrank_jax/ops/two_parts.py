"""A kernel as the sum of two of a smaller dtype: bfloat16 products that keep 16 bits of each weight."""

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
    """W = W_1 + W_2: W_1 is W rounded, W_2 is W - W_1 rounded. A leaf of a parameter tree, which a scan slices.

    Rounding W to bfloat16 changes it by up to 1 part in 2^9, which is often more than an adapter's update. Both parts
    together differ from W by up to 1 part in 2^18.

    Attributes:
      parts: [*stack, d_in, 2 d_out], W_1 and W_2 side by side: x W is the sum of the halves of one product.
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

    def result(self, product: Float[Array, "*rows 2*d_out"]) -> Float[Array, "*rows d_out"]:
        """x W_1 + x W_2, of x [W_1, W_2]."""
        first, second = jnp.split(product, 2, axis=-1)
        return first + second


@functools.partial(jax.jit, static_argnums=1)
def two_parts(kernel: Float[Array, "*stack d_in d_out"], dtype: Any) -> TwoParts:
    """A float32 kernel in two parts of `dtype`."""
    # Without the barrier XLA may drop the casts to `dtype` and back, and W_2 would be 0.
    first = jax.lax.optimization_barrier(kernel.astype(dtype))
    second = (kernel.astype(jnp.float32) - first.astype(jnp.float32)).astype(dtype)
    return TwoParts(jnp.concatenate([first, second], axis=-1))
