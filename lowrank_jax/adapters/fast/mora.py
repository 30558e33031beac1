"""MoRA as it runs best: squares in sizes that kernels like, sites that read one input in one product, barriers."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float

from lowrank_jax.adapters import mora_maps as plain
from lowrank_jax.adapters.base import AdapterSpec, Leaf
from lowrank_jax.adapters.fast import mora_maps as maps
from lowrank_jax.adapters.fast.aligned import padding
from lowrank_jax.adapters.fast.base import Fast
from lowrank_jax.adapters.mora import GROUP, ROTATIONS, square_size
from lowrank_jax.core.types import Array
from lowrank_jax.ops.products import materialize_gradient, trained_matmul

# compression -> (f_comp, f_decomp), for those that compress x to one vector of the square's size
GROUPINGS = {
    "truncation": (plain.truncate, plain.extend),
    "sharing": (maps.sum_strided, maps.tile),
    "type1": (maps.sum_strided, maps.tile),
    "type2": (plain.sum_adjacent, plain.repeat),
    "type3": (plain.sum_adjacent, maps.tile),
    "type4": (maps.sum_strided, plain.repeat),
}


def delta(leaf: Leaf, x: Float[Array, "*batch d_in"], spec: AdapterSpec) -> Float[Array, "*batch d_out"]:
    """f_decomp(f_comp(x) M), or [y_1 y_2 ...] of width k d_out for k joined squares M = [M_1 M_2 ...]."""
    m, options = leaf["m"], spec.config.mora
    size = m.shape[0]
    if spec.cycle:
        parts = _by_turn(leaf, x, spec)
    elif options.compression in GROUPINGS:
        compress, decompress = GROUPINGS[options.compression]
        parts = decompress(_product(compress(x, size, options), m, "adapter"), spec.d_out)
    else:
        # Blocks whose output would be cut away at d_out are not computed: the official code computes and drops them.
        count = min(-(-spec.d_in // size), -(-spec.d_out // size))
        # Without the barrier XLA's GPU backend rotates what x is made of: gate and up, for `down`, instead of their
        # product, twice as much to read.
        blocks = maps.split(lax.optimization_barrier(x), size, count, options.padding)
        turned = options.compression in ROTATIONS
        z = _product(plain.rotate(blocks, options.layout), m, "rotated") if turned else _product(blocks, m)
        parts = maps.join(jnp.moveaxis(z, -2, -3), spec.d_out)
    return materialize_gradient(parts.reshape(*x.shape[:-1], -1))


def _by_turn(leaf: Leaf, x: Array, spec: AdapterSpec) -> Array:
    """[..., k, d_out] by the grouping whose turn it is.

    All of a cycle's maps are computed, two sums of the input's neighbours and two tilings, and the leaf's number picks
    among them: there is one product, and no branch for which a device would wait in every layer.
    """
    sums, tilings = zip(*(GROUPINGS[name] for name in spec.cycle), strict=True)
    turn = leaf[GROUP]
    compressed = {f: f(x, leaf["m"].shape[0], spec.config.mora) for f in dict.fromkeys(sums)}
    z = _product(_picked(compressed, sums, turn), leaf["m"], "adapter")
    return _picked({f: f(z, spec.d_out) for f in dict.fromkeys(tilings)}, tilings, turn)


def _picked(values: Mapping[Any, Array], cycle: Sequence[Any], turn: Array) -> Array:
    """values[cycle[turn]]."""
    (_, first), *others = values.items()
    for key, value in others:
        mine = jnp.asarray([key is other for other in cycle])[turn]
        first = jnp.where(mine, value, first)
    return first


def _product(x: Array, m: Array, name: str | None = None) -> Array:
    """[x M_1, x M_2, ...] in x's dtype for M = [M_1 M_2 ...]; x [..., p], M [p, k p] -> [..., k, p].

    x and every square are lengthened with zeros to a multiple of `aligned.ALIGNED`, and the zeros cut off
    the products. An example: r=8 on 4,096 -> 11,008 gives p = 348.

    Args:
      x, m: see above.
      name: of what the squares read, for `models.parts.stack.POLICIES`.
    """
    size, more = m.shape[0], padding(m.shape[0])
    squares = m.reshape(size, -1, size)
    if more:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, more)])
        squares = jnp.pad(squares, ((0, more), (0, 0), (0, more)))
    if name:
        x = checkpoint_name(x, name)
    y = trained_matmul(x, squares.reshape(size + more, -1).astype(x.dtype))
    return y.reshape(*y.shape[:-1], squares.shape[1], size + more)[..., :size]


def join(leaves: Sequence[Leaf | None], columns: Sequence[int]) -> dict[str, Array]:
    """M = [M_1 M_2 ...] for sites that read one compressed input; zeros for None."""
    del columns
    first = next(leaf for leaf in leaves if leaf)
    joined = jnp.concatenate([leaf["m"] if leaf else jnp.zeros_like(first["m"]) for leaf in leaves], axis=-1)
    return {**first, "m": joined}  # all sites of a plan are at the same turn


def joins(specs: Sequence[AdapterSpec], columns: Sequence[int]) -> bool:
    """Whether all parts compress and decompress alike.

    Blocks (decoupling, rotation) come out by block and then by part, and are copied into the order of the columns, as
    the parts' outputs are where they are not joined. Their products are as large as the input, so none is made for a
    part without an adapter.
    """
    alike = {(square_size(spec), spec.config.mora, spec.cycle) for spec in specs}
    whole = tiled(specs[0]) or len(specs) == len(columns)
    return whole and len(alike) == len(set(columns)) == 1


def tiled(spec: AdapterSpec) -> bool:
    """Groups and truncation have a small inside; blocks are as wide as what they are added to, and copied anyway."""
    return spec.config.mora.compression in GROUPINGS


FAST = Fast(delta, join=join, joins=joins, tiled=tiled)
