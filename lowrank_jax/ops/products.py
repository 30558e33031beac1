"""x W for a trained W, whose weight gradient is one product over all rows; and values formed before they are read."""

from collections.abc import Callable

import jax
from jax import lax

from lowrank_jax.core.types import Array


@jax.custom_vjp
def trained_matmul(x: Array, weight: Array) -> Array:
    """x W, with dL/dW = X^T G over the rows of x and dL/dy as matrices.

    jax sums over the axes of x [B, T, d_in] as they are; XLA's CPU backend then copies dL/dy into [d_out, B T] for each
    weight. A step of pico-llama (8 x 128 tokens, LoRA r=8 at seven sites) takes 340 ms of CPU time so, 243 with this
    product. Reshaping x before the product would do too, but each site would save a copy of the input that query, key
    and value share.

    Args:
      x: [..., d_in].
      weight: [d_in, d_out], of x's dtype.
    """
    return x @ weight


def _forward(x, weight):
    return x @ weight, (x, weight)


def _backward(residuals, g):
    x, weight = residuals
    # The barrier is for XLA's GPU backend: the frozen product's dL/dx then adds this one to itself as it is written,
    # instead of being read and written again by the thin product (0.2 GB a layer of LLaMA-2-7B at 8 x 512 tokens).
    rows, grows = (value.reshape(-1, value.shape[-1]) for value in (x, g))
    return lax.optimization_barrier(g @ weight.T), _over_rows(rows, grows)


def _over_rows(x, g):
    if jax.default_backend() == "cpu" and x.shape[-1] > g.shape[-1]:
        # XLA's CPU backend makes a tall X^T G (A's gradient) at a quarter of G^T X's speed: [256, 8] over 1024 rows in
        # 0.21 and 0.06 ms on two cores. Without the barrier it turns the one back into the other.
        return lax.optimization_barrier(_over_rows(g, x)).T
    return lax.dot_general(x, g, (((0,), (0,)), ((), ())))


trained_matmul.defvjp(_forward, _backward)


@jax.custom_vjp
def formed_gradient(y: Array) -> Array:
    """y, whose gradient is an array before anything reads it.

    For XLA's GPU backend, which else may compute a gradient again inside every kernel that reads it, and for every
    element that such a kernel adds up. That of query, key and value is a rotation away from what attention returns:
    summed by MoRA's sharing 256 us a layer, where reading what the frozen product reads takes 40 (LLaMA-2-7B shape,
    8 x 512 tokens, one H100).
    """
    return y


formed_gradient.defvjp(lambda y: (y, None), lambda _, g: (lax.optimization_barrier(g),))


def formed_apart(fn: Callable[[Array], Array], x: Array) -> Array:
    """fn(x), which is an array before anything is added to it, and so is its gradient by x.

    For XLA's GPU backend, which else lets cuBLAS add to a product what the sum's other term is, written in full before.
    Where that term is something narrow repeated, whatever reads the sum had better add it: MoRA's sharing moves 203
    instead of 223 GB a step so (LLaMA-2-7B shape, 8 x 512 tokens, by the compiled program).
    """
    return lax.optimization_barrier(fn(formed_gradient(x)))
