"""A kernel with LoRA's A beside it: one product gives x W and x A, and (x A) B is added to x W as it is read."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from lowrank_jax.core.types import Array

# Above this rank a kernel is better kept in two parts (`ops.two_parts`). Each output takes r products outside the
# tensor cores and reads r numbers of B: for 256 rows of 3,072 outputs and rank 16, 25 MB of bfloat16 from the L2 cache.
# That is estimated, not measured, to take as long as one or two more GPU kernels.
LARGEST_RANK = 16
# Columns of the product are a multiple of this: in bfloat16 each row of the kernel begins a cache line of 128 bytes,
# and tiles of 64 columns are whole.
ALIGNED = 64


class Update(NamedTuple):
    """x A B, added to some columns of x W, of one layer or of stacked layers.

    Attributes:
      first: the first of these columns.
      a, b: [*stack, d_in, r] and [*stack, r, n], B multiplied by the scale.
    """

    first: int
    a: Any
    b: Any


@functools.partial(jax.tree_util.register_dataclass, data_fields=["parts", "b"], meta_fields=["columns", "firsts"])
@dataclasses.dataclass(frozen=True)
class Widened:
    """W + A B with the update kept apart. A leaf of a parameter tree, which a scan slices.

    Attributes:
      parts: [*stack, d_in, d_out + r_1 + r_2 + ...], W and each update's A side by side, then zeros up to `ALIGNED`.
      b: each update's B, [*stack, r_i, n_i].
      columns: d_out.
      firsts: each update's first column of x W, ascending; the updates' columns do not overlap.
    """

    parts: Any
    b: tuple[Any, ...]
    columns: int
    firsts: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of W, [*stack, d_in, d_out]."""
        return (*self.parts.shape[:-1], self.columns)

    @property
    def ndim(self) -> int:
        """Axes of `shape`."""
        return len(self.shape)

    def result(self, product: Float[Array, "*rows wide"]) -> Float[Array, "*rows d_out"]:
        """x W + x A B, of x [W A]; the sum is in float32 (or wider), and returned in the product's dtype.

        (x A) B is written as a sum over r: XLA computes it in the GPU kernel that reads x W, where a matrix product
        would be a kernel of its own.
        """
        wide = jnp.promote_types(jnp.float32, product.dtype)
        found, column, inside = [], 0, self.columns
        for first, b in zip(self.firsts, self.b, strict=True):
            rank, width = b.shape
            y = product[..., first : first + width].astype(wide)
            h = product[..., inside : inside + rank, None].astype(wide)
            y = y + jnp.sum(h * b.astype(wide), axis=-2)
            found += [product[..., column:first], y.astype(product.dtype)]
            column, inside = first + width, inside + rank
        return jnp.concatenate([*found, product[..., column : self.columns]], axis=-1)


@functools.partial(jax.jit, static_argnums=(1, 3))
def _widened(kernel: Any, firsts: tuple[int, ...], factors: Sequence[tuple[Any, Any]], dtype: Any) -> Widened:
    wide = [kernel, *(a for a, _ in factors)]
    columns = sum(part.shape[-1] for part in wide)
    wide.append(jnp.zeros((*kernel.shape[:-1], -columns % ALIGNED), dtype))
    parts = jnp.concatenate([part.astype(dtype) for part in wide], axis=-1)
    return Widened(parts, tuple(b.astype(dtype) for _, b in factors), kernel.shape[-1], firsts)


def widened(kernel: Float[Array, "*stack d_in d_out"], updates: Sequence[Update], dtype: Any) -> Widened:
    """The kernel with its updates, W, A and B each rounded to `dtype`, as a training step reads them.

    Args:
      updates: in any order, of different columns.
    """
    ordered = sorted(updates, key=lambda update: update.first)
    assert all(one.first + one.b.shape[-1] <= two.first for one, two in itertools.pairwise(ordered))
    firsts, factors = tuple(update.first for update in ordered), [(update.a, update.b) for update in ordered]
    return _widened(kernel, firsts, factors, jnp.dtype(dtype))
