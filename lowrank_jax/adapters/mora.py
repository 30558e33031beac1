"""MoRA: y = x W + f_decomp(f_comp(x) M), with a square M [p, p] of zeros (Jiang et al., section 4).

M is stored as a Flax kernel ([in, out]): the transpose of the matrix in the paper and in the official code.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from lowrank_jax.adapters import mora_maps as maps
from lowrank_jax.adapters.base import AdapterSpec, Family, Leaf
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.types import Array, PRNGKey
from lowrank_jax.ops.products import formed_gradient, trained_matmul

# scheme -> (f_comp, f_decomp); the names typeN are the official code's.
GROUPINGS = {
    "truncation": (maps.truncate, maps.extend),
    "sharing": (maps.sum_strided, maps.tile),
    "type1": (maps.sum_strided, maps.tile),
    "type2": (maps.sum_adjacent, maps.repeat),
    "type3": (maps.sum_adjacent, maps.tile),
    "type4": (maps.sum_strided, maps.repeat),
}
ROTATIONS = ("rotation", "type6")
# Rows of 16 bytes in bfloat16: r=8 gives p = 348 on 4,096 -> 11,008, for which cuBLAS has only its slow kernels.
ALIGNED = 8


def square_size(spec: AdapterSpec) -> int:
    """p = sqrt((d_in + d_out) r), rounded; even for rotation, whose coordinates come in pairs.

    Raises:
      UserError: p reaches the layer's input or passes its output: no room to compress, or columns nobody reads.
    """
    exact = math.sqrt((spec.d_in + spec.d_out) * spec.rank)
    size = int(exact + 0.5) if spec.mora.rounding == "half_up" else math.isqrt((spec.d_in + spec.d_out) * spec.rank)
    if spec.mora.compression in ROTATIONS:
        size = size // 2 * 2
    if size >= spec.d_in or size > spec.d_out:
        raise UserError(
            f"MoRA rank {spec.rank} needs a square of {size}, too large for a {spec.d_in} x {spec.d_out} kernel "
            f"(it must be below {spec.d_in} and at most {spec.d_out}); lower adapter.rank or exclude this target"
        )
    if size == 0:
        raise UserError(
            f"MoRA rank {spec.rank} gives an empty square on a {spec.d_in} x {spec.d_out} kernel; raise adapter.rank"
        )
    return size


def shapes(spec: AdapterSpec) -> dict[str, tuple[int, ...]]:
    """M [p, p]: about (d_in + d_out) r parameters, as LoRA of rank r."""
    size = square_size(spec)
    return {"m": (size, size)}


def init(key: PRNGKey, spec: AdapterSpec) -> dict[str, Array]:
    """M = 0. Unlike LoRA's A, its gradient is not zero there."""
    del key
    return {"m": jnp.zeros(shapes(spec)["m"], jnp.float32)}


def delta(leaf: Leaf, x: Array, spec: AdapterSpec, scale: Array | float) -> Array:
    """scale * f_decomp(f_comp(x) M); x [..., d_in] -> [..., d_out], or [..., k d_out] where k squares are joined."""
    m = leaf["m"] * scale
    size, options = m.shape[0], spec.mora
    if options.compression in GROUPINGS:
        compress, decompress = GROUPINGS[options.compression]
        parts = decompress(_product(compress(x, size, options.padding), m, "adapter"), spec.d_out)
    else:
        # Blocks whose output would be cut away at d_out are not computed: the official code computes and drops them.
        count = min(-(-spec.d_in // size), -(-spec.d_out // size))
        # The barrier is for XLA's GPU backend, which else turns what x is made of: gate and up, for `down`, instead of
        # their product, twice as much to read.
        blocks = maps.split_blocks(lax.optimization_barrier(x), size, count, options.padding)
        turned = options.compression in ROTATIONS
        z = _product(maps.rotate(blocks, options.layout), m, "rotated") if turned else _product(blocks, m)
        parts = maps.join_blocks(jnp.moveaxis(z, -2, -3), spec.d_out)
    return formed_gradient(parts.reshape(*x.shape[:-1], -1))


def _product(x: Array, m: Array, name: str | None = None) -> Array:
    """[x M_1, x M_2, ...] in x's dtype for M = [M_1 M_2 ...]; x [..., p], M [p, k p] -> [..., k, p].

    x and every square are lengthened with zeros to a multiple of ALIGNED, and the products cut.

    Args:
      name: of what the squares read, for `models.stack.POLICIES`.
    """
    size, missing = m.shape[0], -m.shape[0] % ALIGNED
    squares = m.reshape(size, -1, size)
    if missing:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
        squares = jnp.pad(squares, ((0, missing), (0, 0), (0, missing)))
    if name:
        x = checkpoint_name(x, name)
    y = trained_matmul(x, squares.reshape(size + missing, -1).astype(x.dtype))
    return y.reshape(*y.shape[:-1], squares.shape[1], size + missing)[..., :size]


def join(leaves: Sequence[Leaf | None], columns: Sequence[int]) -> dict[str, Array]:
    """M = [M_1 M_2 ...] for sites that read one compressed input; zeros for None."""
    del columns
    first = next(leaf["m"] for leaf in leaves if leaf)
    return {"m": jnp.concatenate([leaf["m"] if leaf else jnp.zeros_like(first) for leaf in leaves], axis=-1)}


def joins(specs: Sequence[AdapterSpec], columns: Sequence[int]) -> bool:
    """Whether all parts compress and decompress alike.

    Blocks (decoupling, rotation) come out by block and then by part, and are copied into the order of the columns, as
    the parts' outputs are where they are not joined. Their products are as large as the input, so none is made for a
    part without an adapter.
    """
    alike = {(square_size(spec), spec.mora) for spec in specs}
    whole = specs[0].mora.compression in GROUPINGS or len(specs) == len(columns)
    return whole and len(alike) == len(set(columns)) == 1


def apart(spec: AdapterSpec) -> bool:
    """Groups and truncation have a narrow inside; blocks are as wide as what they are added to, and copied anyway."""
    return spec.mora.compression in GROUPINGS


def prepare(leaf: Leaf, spec: AdapterSpec, scale: Array, dtype: Any) -> dict[str, Array]:
    """scale * M in `dtype`."""
    return {"m": (leaf["m"] * scale[..., None, None]).astype(dtype)}


def scale(spec: AdapterSpec) -> float:
    """1: the official code ignores alpha for MoRA."""
    del spec
    return 1.0


FAMILY = Family("mora", shapes, init, delta, prepare, scale, join=join, joins=joins, apart=apart)
