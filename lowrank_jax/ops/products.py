"""Products with hand-written backward passes, and barriers that make XLA compute a value once."""

import itertools
from collections.abc import Callable, Sequence

import jax
from jax import lax
from jaxtyping import Float

from lowrank_jax.core.types import Array
from lowrank_jax.ops.capability import platform


@jax.custom_vjp
def trained_matmul(x: Float[Array, "*rows d_in"], weight: Float[Array, "d_in d_out"]) -> Float[Array, "*rows d_out"]:
    """x W, with dL/dW = X^T G over the rows of x and dL/dy as matrices.

    jax sums over the axes of x [B, T, d_in] as they are; XLA's CPU backend then copies dL/dy into [d_out, B T] for each
    weight. Reshaping x before the product would cost a copy of the input that query, key and value share. Times:
    docs/performance_log.md, "Figures behind comments in the code".

    Args:
      x: [..., d_in].
      weight: [d_in, d_out], of x's dtype.
    """
    return x @ weight


def _forward(x, weight):
    return x @ weight, (x, weight)


def _backward(residuals, g):
    x, weight = residuals
    # The barrier is for XLA's GPU backend: the frozen product then adds this gradient to its own dL/dx as it writes it,
    # and the thin product need not read and write dL/dx again (0.2 GB a layer of LLaMA-2-7B at 8 x 512 tokens).
    rows, grows = (value.reshape(-1, value.shape[-1]) for value in (x, g))
    return lax.optimization_barrier(g @ weight.T), _over_rows(rows, grows)


def _over_rows(x, g):
    if platform() == "cpu" and x.shape[-1] > g.shape[-1]:
        # XLA's CPU backend makes a tall X^T G (A's gradient) at a quarter of G^T X's speed: [256, 8] over 1024 rows in
        # 0.21 and 0.06 ms on two cores. Without the barrier it turns the one back into the other.
        return lax.optimization_barrier(_over_rows(g, x)).T
    return lax.dot_general(x, g, (((0,), (0,)), ((), ())))


trained_matmul.defvjp(_forward, _backward)


@jax.custom_vjp
def materialize_gradient(y: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """y itself, with a barrier that makes its gradient one array, computed once.

    XLA's GPU backend may otherwise compute the gradient again inside every kernel that reads it, and for every element
    that such a kernel adds up (times: docs/performance_log.md, "Figures behind comments in the code").
    """
    return y


materialize_gradient.defvjp(lambda y: (y, None), lambda _, g: (lax.optimization_barrier(g),))


def materialize_product(
    fn: Callable[[Float[Array, "..."]], Float[Array, "..."]], x: Float[Array, "..."]
) -> Float[Array, "..."]:
    """fn(x), with barriers: it is computed before anything is added to it, and so is its gradient by x.

    XLA's GPU backend otherwise lets cuBLAS add the other term of a sum to the product fn(x), and writes that term in
    full first. Where the term is a small array tiled to the sum's width (MoRA's groups), the kernel that reads the sum
    tiles it for less (bytes: docs/performance_log.md, "Figures behind comments in the code").
    """
    return lax.optimization_barrier(fn(materialize_gradient(x)))


def side_by_side(y: Float[Array, "*rows d"], widths: Sequence[int]) -> list[Array]:
    """The columns of y [..., sum(widths)], cut into parts of these widths.

    Slices and not `jnp.split`, whose gradient is a concatenation: XLA's GPU backend fuses nothing else into that one,
    and reads the gradient again for its largest entry and its FP8 codes. A sum of padded slices is a kernel as others.
    """
    ends = itertools.accumulate(widths)
    return [y[..., end - width : end] for width, end in zip(widths, ends, strict=True)]
