"""MoRA: y = x W + f_decomp(f_comp(x) M), with a square M [p, p] of zeros (Jiang et al., section 4).

M is stored as a Flax kernel ([in, out]): the transpose of the matrix in the paper and in the official code.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Float

from lowrank_jax.adapters import mora_maps as maps
from lowrank_jax.adapters.base import AdapterSpec, Family, Leaf
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.types import Array, PRNGKey

# compression -> (f_comp, f_decomp); the names typeN are the official code's.
MAPS = {
    "truncation": (maps.truncate, maps.extend),  # Eqs. 4 and 5
    "sharing": (maps.sum_strided, maps.tile),  # Eqs. 6 and 7
    "decoupling": (maps.split, maps.join),  # Eq. 8
    "rotation": (maps.split_and_rotate, maps.join),  # Eqs. 9 to 11
    "type1": (maps.sum_strided, maps.tile),
    "type2": (maps.sum_adjacent, maps.repeat),
    "type3": (maps.sum_adjacent, maps.tile),
    "type4": (maps.sum_strided, maps.repeat),
    "type6": (maps.split_and_rotate, maps.join),
}
ROTATIONS = ("rotation", "type6")
GROUP = "group"  # the leaf's number: whose turn it is in `AdapterSpec.cycle`


def square_size(spec: AdapterSpec) -> int:
    """p = sqrt((d_in + d_out) r), rounded; even for rotation, whose coordinates come in pairs.

    Raises:
      UserError: p reaches the layer's input or passes its output: nothing to compress, or columns that nobody reads.
        The official code runs such shapes up to p = 2 d_in, where its wrapped padding ends.
    """
    exact = math.sqrt((spec.d_in + spec.d_out) * spec.rank)
    options = spec.config.mora
    size = int(exact + 0.5) if options.rounding == "half_up" else math.isqrt((spec.d_in + spec.d_out) * spec.rank)
    if options.compression in ROTATIONS:
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


def delta(leaf: Leaf, x: Float[Array, "*batch d_in"], spec: AdapterSpec) -> Float[Array, "*batch d_out"]:
    """f_decomp(f_comp(x) M).

    f_comp(x) is c [..., p] for truncation and sharing, of which one product z = c M gives y; for decoupling and
    rotation it is the blocks [..., n, p] of x, and M multiplies each. With a cycle of groupings (ReMoRA, appendix B),
    the leaf says which one's maps these are.

    Args:
      leaf: M, scaled; with a cycle, the number of its present grouping.
      x: [..., d_in]; the product is in its dtype.
      spec: the site.
    """

    def by(compression):
        compress, decompress = MAPS[compression]
        m = leaf["m"].astype(x.dtype)
        c = compress(x, len(m), spec.config.mora)
        return decompress(c @ m, spec.d_out)

    if spec.cycle:
        return jax.lax.switch(leaf[GROUP], [functools.partial(by, name) for name in spec.cycle])
    return by(spec.config.mora.compression)


def numbers(spec: AdapterSpec) -> tuple[str, ...]:
    """The number of the present grouping, where several take turns."""
    return (GROUP,) if spec.cycle else ()


# The scale stays 1, the default: the official code ignores alpha for MoRA.
FAMILY = Family("mora", shapes, init, delta, scaled=("m",), numbers=numbers)
