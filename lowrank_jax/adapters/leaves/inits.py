"""LoRA's starts: random A with B = 0, or factors of the kernel itself, which leave a residual as the frozen base.

PiSSA, OLoRA and LoftQ start A B from the kernel W; what is frozen is then `residual_kernel`, with
residual + scale A B = W (LoftQ: W up to what rank r misses of the quantisation's error). All three are functions of W
alone, so the residual can be made again from the published base at any time, as PEFT does on loading.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from lowrank_jax.adapters.base import AdapterSpec
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.types import Array, PRNGKey
from lowrank_jax.ops.quantized import BLOCK, LEVELS, TINY, nearest_level

FROM_KERNEL = ("pissa", "olora", "loftq")
LOFTQ_STEPS = 5  # quantise, then factorise what that lost, in turn: the LoftQ paper's T


def check(spec: AdapterSpec) -> None:
    """Raises UserError on a start that the spec cannot have."""
    if spec.config.init == "orthogonal" and spec.rank % 2:
        raise UserError(f"adapter.init 'orthogonal' needs an even rank, not {spec.rank}; change adapter.rank")


def changes_base(spec: AdapterSpec) -> bool:
    """Whether the frozen kernel is `residual_kernel` rather than the published one."""
    return spec.config.init in FROM_KERNEL


def start(
    key: PRNGKey, spec: AdapterSpec, scale: float, kernel: Float[Array, "d_in d_out"] | None = None
) -> dict[str, Array]:
    """A [d_in, r] and B [r, d_out] in float32.

    * kaiming_uniform: A ~ U(-1/sqrt(d_in), 1/sqrt(d_in)), B = 0 (loralib).
    * gaussian: A ~ N(0, init_std^2), B = 0 (Hu et al., 4.1).
    * orthogonal: A = X Q_1 / 10, B = Q_2^T Y / 10 with Gaussian X, Y and Q_1, Q_2 the odd and even rows of a random
      orthogonal matrix, so A B = 0 (PEFT).
    * asylora: A has orthonormal columns, B = 0 (Zhu et al.): A spans the columns of a Gaussian matrix, and so is drawn
      like the first r right singular vectors of a random matrix, which the authors take. A QR decomposition gives it;
      signs that make R's diagonal positive give every orthonormal A the same chance.
    * asylora_uncentred: the same with the constant vector as A's first column. MoRA's code decomposes a matrix of
      numbers in [0, 1) and keeps their mean of 1/2, which makes the first singular vector nearly constant; AsyLoRA's
      authors subtract the mean.
    * pissa: A = U sqrt(S / scale), B = sqrt(S / scale) V^T from the r largest singular values of W (Meng et al., 3).
    * olora: A = R^T, B = Q^T, the first r of each, from W^T = Q R (Büyükakyüz, 2); the scale is not divided out.
    * loftq: as pissa, of W minus its 4-bit rounding, in turn `LOFTQ_STEPS` times (Li et al., algorithm 1).

    Args:
      key: for the first five.
      spec: static description of the kernel.
      scale: what multiplies A B.
      kernel: W [d_in, d_out], for the last three.

    Raises:
      UserError: the start is made from the kernel and there is none.
    """
    rank = spec.rank
    zero = jnp.zeros((rank, spec.d_out), jnp.float32)
    if spec.config.init in FROM_KERNEL:
        if kernel is None:
            raise UserError(
                f"adapter.init {spec.config.init!r} starts from the kernels; give them: create(plan, key, params)"
            )
        a, b, _ = _from_kernel(kernel.astype(jnp.float32), spec, scale)
        return {"a": a, "b": b}
    if spec.config.init == "gaussian":
        return {"a": spec.config.init_std * jax.random.normal(key, (spec.d_in, rank), jnp.float32), "b": zero}
    if spec.config.init == "orthogonal":
        keys = jax.random.split(key, 3)
        q, _ = jnp.linalg.qr(jax.random.normal(keys[0], (rank, rank), jnp.float32))
        x = jax.random.normal(keys[1], (spec.d_in, rank // 2), jnp.float32)
        y = jax.random.normal(keys[2], (rank // 2, spec.d_out), jnp.float32)
        with jax.default_matmul_precision("highest"):
            return {"a": x @ q[0::2] / 10, "b": q[1::2].T @ y / 10}
    if spec.config.init in ("asylora", "asylora_uncentred"):
        drawn = jax.random.normal(key, (spec.d_in, rank), jnp.float32)
        q, r = jnp.linalg.qr(drawn if spec.config.init == "asylora" else drawn.at[:, 0].set(1))
        return {"a": q * jnp.where(jnp.diagonal(r) < 0, -1.0, 1.0), "b": zero}
    bound = 1 / math.sqrt(spec.d_in)
    return {"a": jax.random.uniform(key, (spec.d_in, rank), jnp.float32, -bound, bound), "b": zero}


def residual_kernel(kernel: Float[Array, "d_in d_out"], spec: AdapterSpec, scale: float) -> Float[Array, "d_in d_out"]:
    """The frozen kernel in float32: W - scale A B for pissa and olora, 4-bit values for loftq, otherwise W itself."""
    kernel = kernel.astype(jnp.float32)
    return _from_kernel(kernel, spec, scale)[2] if changes_base(spec) else kernel


def round_nf4(kernel: Float[Array, "d_in d_out"]) -> Float[Array, "d_in d_out"]:
    """Every weight to the nearest of 16 levels times its block's largest magnitude, in float32.

    Blocks are `BLOCK` neighbours along d_in, then on to the next output: the order of a torch weight in memory.
    """
    flat = kernel.astype(jnp.float32).T.reshape(-1)
    blocks = jnp.pad(flat, (0, -flat.size % BLOCK)).reshape(-1, BLOCK)
    largest = jnp.maximum(jnp.abs(blocks).max(1, keepdims=True), TINY)
    nearest = jnp.asarray(LEVELS, jnp.float32)[nearest_level(blocks / largest)]
    return (nearest * largest).reshape(-1)[: flat.size].reshape(kernel.shape[::-1]).T


def _from_kernel(kernel: Array, spec: AdapterSpec, scale: Any) -> tuple[Array, Array, Array]:
    """(A, B, residual) of the starts in `FROM_KERNEL`."""
    with jax.default_matmul_precision("highest"):
        if spec.config.init == "olora":
            q, r = jnp.linalg.qr(kernel.T)
            a, b = r[: spec.rank].T, q[:, : spec.rank].T
            return a, b, kernel - scale * a @ b
        if spec.config.init == "pissa":
            a, b = _top(kernel, spec.rank, scale)
            return a, b, kernel - scale * a @ b
        a, b = jnp.zeros((spec.d_in, spec.rank)), jnp.zeros((spec.rank, spec.d_out))
        for _ in range(LOFTQ_STEPS):
            rounded = round_nf4(kernel - scale * a @ b)
            a, b = _top(kernel - rounded, spec.rank, scale)
        return a, b, rounded


def _top(matrix: Array, rank: int, scale: Any) -> tuple[Array, Array]:
    """(A, B) with scale A B the best approximation of `matrix` at this rank, the singular values shared evenly."""
    u, s, vt = jnp.linalg.svd(matrix, full_matrices=False)
    root = jnp.sqrt(s[:rank] / scale)
    return u[:, :rank] * root, root[:, None] * vt[:rank]
