"""MoRA's parameter-free maps: f_comp from d_in to the square's size p, f_decomp from p to d_out (section 4.2).

Equation numbers are those of Jiang et al., arXiv 2405.12130. Every map is linear and acts on the last axis.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lowrank_jax.core.types import Array

ROTATION_BASE = 10000.0
RUN = 16  # 4,096 columns are one run of squares of 256 or 348 (r=8), 11,008 are two and a rest


def pad_to(x: Array, length: int, padding: str) -> Array:
    """Lengthens the last axis with its own head (`wrap`) or zeros (`zero`)."""
    missing = length - x.shape[-1]
    if missing == 0:
        return x
    tail = x[..., :missing] if padding == "wrap" else jnp.zeros((*x.shape[:-1], missing), x.dtype)
    return jnp.concatenate([x, tail], axis=-1)


def truncate(x: Array, size: int, padding: str) -> Array:
    """c = x_{1..p} (Eq. 4)."""
    del padding
    return x[..., :size]


def extend(z: Array, d_out: int) -> Array:
    """y = [z; 0] (Eq. 5)."""
    return pad_to(z, d_out, "zero")


def sum_strided(x: Array, size: int, padding: str) -> Array:
    """c_i = x_i + x_{i+p} + x_{i+2p} + ... (Eq. 6 with the official type 1's groups)."""
    blocks = -(-x.shape[-1] // size)
    return _sum_blocks(pad_to(x, blocks * size, padding).reshape(*x.shape[:-1], blocks, size), blocks)


def sum_adjacent(x: Array, size: int, padding: str) -> Array:
    """c_i = sum over the i-th run of neighbours; with q, m = divmod(d_in, p) the first m runs have q + 1 members."""
    del padding
    q, m = divmod(x.shape[-1], size)
    lead = x.shape[:-1]
    long = x[..., : m * (q + 1)].reshape(*lead, m, q + 1).sum(-1)
    short = x[..., m * (q + 1) :].reshape(*lead, size - m, q).sum(-1)
    return jnp.concatenate([long, short], axis=-1)


def tile(z: Array, d_out: int) -> Array:
    """y_i = z_{i mod p} (Eq. 7 with strided groups)."""
    copies = -(-d_out // z.shape[-1])
    return _copies(z, copies).reshape(*z.shape[:-1], copies * z.shape[-1])[..., :d_out]


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
    sums = [sum(runs[..., i, :] for i in range(RUN)).sum(-2)] if whole else []
    return sum(sums + [wide[..., i, :] for i in range(whole, count)]).astype(blocks.dtype)


_sum_blocks.defvjp(lambda blocks, count: (_sum_blocks(blocks, count), None), lambda count, _, g: (_copies(g, count),))


def repeat(z: Array, d_out: int) -> Array:
    """y = each z_i repeated: the first m entries q + 1 times, the rest q times, with q, m = divmod(d_out, p)."""
    q, m = divmod(d_out, z.shape[-1])
    return jnp.concatenate([jnp.repeat(z[..., :m], q + 1, axis=-1), jnp.repeat(z[..., m:], q, axis=-1)], axis=-1)


def split_blocks(x: Array, size: int, count: int, padding: str) -> Array:
    """The first `count` blocks of p neighbours: [..., d_in] -> [..., count, p]."""
    kept = x if count * size >= x.shape[-1] else x[..., : count * size]
    return pad_to(kept, count * size, padding).reshape(*x.shape[:-1], count, size)


def join_blocks(z: Array, d_out: int) -> Array:
    """Blocks side by side, cut to d_out, or the whole repeated up to it: [..., count, p] -> [..., d_out]."""
    return tile(z.reshape(*z.shape[:-2], -1), d_out)


def rotation_tables(size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of i * theta_j, theta_j = 10000^(-2j/p), for blocks i < count and j < p/2 (Eq. 10): [count, p/2]."""
    theta = ROTATION_BASE ** (-2.0 * np.arange(size // 2) / size)
    angles = np.arange(count)[:, None] * theta
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(blocks: Array, layout: str) -> Array:
    """Block i turned by R_i, in float32 at least (Eq. 9); [..., n, p]."""
    cos, sin = rotation_tables(blocks.shape[-1], blocks.shape[-2])
    u, v = (half.astype(jnp.promote_types(half.dtype, jnp.float32)) for half in _halves(blocks, layout))
    return _unhalve(u * cos - v * sin, v * cos + u * sin, layout).astype(blocks.dtype)


def _halves(x: Array, layout: str) -> tuple[Array, Array]:
    """The two coordinates of every rotated pair."""
    if layout == "half":
        return tuple(jnp.split(x, 2, axis=-1))
    return x[..., 0::2], x[..., 1::2]


def _unhalve(u: Array, v: Array, layout: str) -> Array:
    """The inverse of `_halves`."""
    if layout == "half":
        return jnp.concatenate([u, v], axis=-1)
    return jnp.stack([u, v], axis=-1).reshape(*u.shape[:-1], 2 * u.shape[-1])
