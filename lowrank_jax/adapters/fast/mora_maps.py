"""MoRA's maps between a vector and its blocks as they run best; equations and the other maps are in `mora_maps`."""

import functools
from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Float

from lowrank_jax.adapters.base import MoraConfig
from lowrank_jax.adapters.mora_maps import pad_to
from lowrank_jax.core.types import Array

RUN = 16  # 4,096 columns are one run of squares of 256 or 348 (r=8), 11,008 are two and a rest


def sum_strided(x: Float[Array, "*batch d_in"], size: int, options: MoraConfig) -> Float[Array, "*batch p"]:
    """c_i = x_i + x_{i+p} + x_{i+2p} + ..."""
    blocks = -(-x.shape[-1] // size)
    return _sum_blocks(pad_to(x, blocks * size, options.padding).reshape(*x.shape[:-1], blocks, size), blocks)


def tile(z: Float[Array, "*batch p"], d_out: int) -> Float[Array, "*batch d_out"]:
    """y_i = z_{i mod p}."""
    copies = -(-d_out // z.shape[-1])
    return cast(Array, _copies(z, copies)).reshape(*z.shape[:-1], copies * z.shape[-1])[..., :d_out]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _copies(z: Array, count: int) -> Array:
    """[..., p] -> [..., n, p]; the adjoint of `_sum_blocks`."""
    return jnp.broadcast_to(z[..., None, :], (*z.shape[:-1], count, z.shape[-1]))


_copies.defvjp(lambda z, count: (_copies(z, count), None), lambda count, _, g: (_sum_blocks(g, count),))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _sum_blocks(blocks: Array, count: int) -> Array:
    """[..., n, p] -> [..., p], summed in float32 at least; the adjoint of `_copies`.

    RUN blocks are added by name and only their sums by a reduction, whose kernel on a GPU reads one column a thread.
    """
    *lead, _, size = blocks.shape
    wide = blocks.astype(jnp.promote_types(blocks.dtype, jnp.float32))
    whole = count // RUN * RUN
    runs = wide[..., :whole, :].reshape(*lead, whole // RUN, RUN, size)
    sums = [cast(Array, sum(runs[..., i, :] for i in range(RUN))).sum(-2)] if whole else []
    return cast(Array, sum(sums + [wide[..., i, :] for i in range(whole, count)])).astype(blocks.dtype)


_sum_blocks.defvjp(lambda blocks, count: (_sum_blocks(blocks, count), None), lambda count, _, g: (_copies(g, count),))


def split(x: Float[Array, "*batch d_in"], size: int, count: int, padding: str) -> Float[Array, "*batch n p"]:
    """The first `count` blocks of p neighbours."""
    kept = x if count * size >= x.shape[-1] else x[..., : count * size]
    return pad_to(kept, count * size, padding).reshape(*x.shape[:-1], count, size)


def join(z: Float[Array, "*batch n p"], d_out: int) -> Float[Array, "*batch d_out"]:
    """Blocks side by side, cut to d_out, or the whole repeated up to it."""
    return tile(z.reshape(*z.shape[:-2], -1), d_out)
