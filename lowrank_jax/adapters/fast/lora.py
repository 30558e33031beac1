"""LoRA as it runs best: products with hand-written gradients, and sites that read one input in two thin products."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Float

from lowrank_jax.adapters.base import AdapterSpec, Leaf
from lowrank_jax.adapters.fast.aligned import with_zeros
from lowrank_jax.adapters.fast.base import Fast
from lowrank_jax.core.types import Array
from lowrank_jax.ops.products import trained_matmul
from lowrank_jax.ops.saved import saved_product

# Where zeros in B stop being free: docs/performance_log.md, "Figures behind comments in the code".
JOINED_RANK = 256


def delta(leaf: Leaf, x: Float[Array, "*batch d_in"], spec: AdapterSpec) -> Float[Array, "*batch d_out"]:
    """x A B, with x A saved under the name "adapter" for `models.parts.stack.POLICIES`."""
    del spec
    a, b = with_zeros(leaf["a"].astype(x.dtype), 1), with_zeros(leaf["b"].astype(x.dtype), 0)
    return trained_matmul(saved_product(trained_matmul(x, a), "adapter"), b)


def join(leaves: Sequence[Leaf | None], columns: Sequence[int]) -> dict[str, Array]:
    """A = [A_1 A_2 ...] and B block-diagonal: x A B = [x A_1 B_1, x A_2 B_2, ...], with two thin products for all.

    Args:
      leaves: A [.., d, r_i] and B [.., r_i, n_i]; None leaves its columns zero.
      columns: n_i.
    """
    rows, first, total = [], 0, sum(columns)
    for leaf, width in zip(leaves, columns, strict=True):
        if leaf is not None:
            around = [(0, 0)] * (leaf["b"].ndim - 1) + [(first, total - first - width)]
            rows.append(jnp.pad(leaf["b"], around))
        first += width
    return {"a": jnp.concatenate([leaf["a"] for leaf in leaves if leaf], -1), "b": jnp.concatenate(rows, -2)}


def joins(specs: Sequence[AdapterSpec], columns: Sequence[int]) -> bool:
    """Whether the zeros of a block-diagonal B are free: up to JOINED_RANK its bytes bound the branch, not FLOPs."""
    del columns
    return sum(spec.rank for spec in specs) <= JOINED_RANK


FAST = Fast(delta, join=join, joins=joins, factors=("a", "b"))
