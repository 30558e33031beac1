"""MoRA's parameter-free maps: f_comp from d_in to the square's size p, f_decomp from p to d_out (section 4.2).

Equation numbers are those of Jiang et al., arXiv 2405.12130. Every map is linear and acts on the last axis. An f_comp
takes (x, p, options), an f_decomp (z, d_out).
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lowrank_jax.adapters.base import MoraConfig
from lowrank_jax.core.types import Array

ROTATION_BASE = 10000.0


def truncate(x: Float[Array, "*batch d_in"], size: int, options: MoraConfig) -> Float[Array, "*batch p"]:
    """c = x_{1..p} (Eq. 4)."""
    del options
    return x[..., :size]


def extend(z: Float[Array, "*batch p"], d_out: int) -> Float[Array, "*batch d_out"]:
    """y = [z; 0] (Eq. 5)."""
    return pad_to(z, d_out, "zero")


def sum_strided(x: Float[Array, "*batch d_in"], size: int, options: MoraConfig) -> Float[Array, "*batch p"]:
    """c_i = x_i + x_{i+p} + x_{i+2p} + ... (Eq. 6 with the official type 1's groups)."""
    return split(x, size, options).sum(-2)


def tile(z: Float[Array, "*batch p"], d_out: int) -> Float[Array, "*batch d_out"]:
    """y_i = z_{i mod p} (Eq. 7 with the official type 1's groups)."""
    copies = -(-d_out // z.shape[-1])
    return jnp.concatenate([z] * copies, axis=-1)[..., :d_out]


def sum_adjacent(x: Float[Array, "*batch d_in"], size: int, options: MoraConfig) -> Float[Array, "*batch p"]:
    """c_i = sum over the i-th run of neighbours; with q, m = divmod(d_in, p) the first m runs have q + 1 members."""
    del options
    q, m = divmod(x.shape[-1], size)
    lead = x.shape[:-1]
    long = x[..., : m * (q + 1)].reshape(*lead, m, q + 1).sum(-1)
    short = x[..., m * (q + 1) :].reshape(*lead, size - m, q).sum(-1)
    return jnp.concatenate([long, short], axis=-1)


def repeat(z: Float[Array, "*batch p"], d_out: int) -> Float[Array, "*batch d_out"]:
    """y = each z_i repeated: the first m entries q + 1 times, the rest q times, with q, m = divmod(d_out, p)."""
    q, m = divmod(d_out, z.shape[-1])
    return jnp.concatenate([jnp.repeat(z[..., :m], q + 1, axis=-1), jnp.repeat(z[..., m:], q, axis=-1)], axis=-1)


def split(x: Float[Array, "*batch d_in"], size: int, options: MoraConfig) -> Float[Array, "*batch n p"]:
    """x as n = ceil(d_in / p) blocks of p neighbours (Eq. 8); the padding completes the last one."""
    count = -(-x.shape[-1] // size)
    return pad_to(x, count * size, options.padding).reshape(*x.shape[:-1], count, size)


def split_and_rotate(x: Float[Array, "*batch d_in"], size: int, options: MoraConfig) -> Float[Array, "*batch n p"]:
    """The blocks of x, block i times R_i (Eq. 9)."""
    return rotate(split(x, size, options), options.layout)


def join(z: Float[Array, "*batch n p"], d_out: int) -> Float[Array, "*batch d_out"]:
    """Blocks side by side (Eqs. 8 and 9), cut to d_out, or the whole repeated up to it."""
    return tile(z.reshape(*z.shape[:-2], -1), d_out)


def pad_to(x: Float[Array, "*batch d"], length: int, padding: str) -> Float[Array, "*batch length"]:
    """Lengthens the last axis with its own head (`wrap`) or zeros (`zero`)."""
    missing = length - x.shape[-1]
    if missing == 0:
        return x
    tail = x[..., :missing] if padding == "wrap" else jnp.zeros((*x.shape[:-1], missing), x.dtype)
    return jnp.concatenate([x, tail], axis=-1)


def rotation_tables(size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of i * theta_j, theta_j = 10000^(-2j/p), for blocks i < n and j < p/2 (Eq. 10): [n, p/2]."""
    theta = ROTATION_BASE ** (-2.0 * np.arange(size // 2) / size)
    angles = np.arange(count)[:, None] * theta
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(blocks: Float[Array, "*batch n p"], layout: str) -> Float[Array, "*batch n p"]:
    """Block i times R_i, the rotation of pairs (u_j, v_j) by i * theta_j (Eqs. 9 to 11), in float32 at least."""
    cos, sin = rotation_tables(blocks.shape[-1], blocks.shape[-2])
    u, v = (part.astype(jnp.promote_types(part.dtype, jnp.float32)) for part in _pairs(blocks, layout))
    return _unpair(u * cos - v * sin, v * cos + u * sin, layout).astype(blocks.dtype)


def _pairs(x: Array, layout: str) -> tuple[Array, Array]:
    """The two coordinates of every rotated pair."""
    if layout == "half":
        u, v = jnp.split(x, 2, axis=-1)
        return u, v
    return x[..., 0::2], x[..., 1::2]


def _unpair(u: Array, v: Array, layout: str) -> Array:
    """The inverse of `_pairs`."""
    if layout == "half":
        return jnp.concatenate([u, v], axis=-1)
    return jnp.stack([u, v], axis=-1).reshape(*u.shape[:-1], 2 * u.shape[-1])
