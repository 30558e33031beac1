"""The named layers that models are made of: Linear, Embedding, RMSNorm, LayerNorm, and activations by HF's names."""

import functools
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.types import Array
from lowrank_jax.ops.placement import rows
from lowrank_jax.ops.quantized import Multiplier, dense
from lowrank_jax.ops.saved import behind_barrier
from lowrank_jax.ops.two_parts import TwoParts
from lowrank_jax.ops.widened import Widened

KERNEL_INIT = nn.initializers.lecun_normal()
EMBEDDING_INIT = nn.initializers.normal(0.02)


def exact_gelu(x: Array) -> Array:
    """x Phi(x), by the error function."""
    return nn.gelu(x, approximate=False)


ACTIVATIONS = {  # HF's names
    "gelu": exact_gelu,
    "gelu_new": nn.gelu,  # by tanh
    "gelu_pytorch_tanh": nn.gelu,
    "relu": nn.relu,
    "silu": nn.silu,
}


def parameter(module: nn.Module, name: str, start: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    """The module's parameter, which starts as start(key, shape, dtype).

    A given leaf of the right shape is returned at once: `module.param` would trace `start` in each call to compare
    shapes, which was a sixth of the time that tracing a model takes.

    Raises:
      ScopeParamShapeError: a given leaf of another shape, from Flax.
    """
    given = module.get_variable("params", name)
    if getattr(given, "shape", None) == shape:
        return given
    return module.param(name, start, shape, dtype)


class Linear(nn.Module):
    """y = x W (+ b): the one layer that adapters attach to, through `nn.intercept_methods` and the module's path.

    A quantised kernel (`ops.quantized`) is dequantised here, one layer of a scan at a time. With a kernel in two parts
    (`ops.two_parts`) the product is twice as wide; with one that has its adapter beside it (`ops.widened`), a little.

    Attributes:
      features: width of the output.
      use_bias: adds a bias [features].
      dtype: type of the product's operands.
      param_dtype: type the kernel [in, features] is created in.
      float32_output: accumulate into float32 and return it (logits); otherwise the output is `dtype`.
    """

    features: int
    use_bias: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    float32_output: bool = False

    @nn.compact
    def __call__(self, x: Array, bound: Callable[[], Array] | None = None) -> Array:
        """x W (+ b); `bound` makes a number that no entry of x exceeds, see `ops.quantized.Multiplier`."""
        kernel = self.get_variable("params", "kernel")
        if not isinstance(kernel, Multiplier | TwoParts | Widened):  # these are no single array of the kernel's shape
            kernel = parameter(self, "kernel", KERNEL_INIT, (x.shape[-1], self.features), self.param_dtype)
        x = rows(x.astype(self.dtype))
        read = kernel.parts if isinstance(kernel, TwoParts | Widened) else kernel
        if self.float32_output:
            y = cast(Array, matmul_float32(x, dense(read, self.dtype), 0))
        else:
            y = read.times(x, bound) if isinstance(read, Multiplier) else x @ read.astype(self.dtype)
        if isinstance(kernel, TwoParts | Widened):
            y = kernel.result(y)
        if self.use_bias:
            bias = parameter(self, "bias", nn.initializers.zeros_init(), (self.features,), self.param_dtype)
            y = y + bias.astype(y.dtype)
        return rows(y)


def check_joined_bias(module: nn.Module, name: str) -> None:
    """Makes sure, in a fused model's call, that the Linear `name` has its joined bias.

    Raises:
      UserError: it has none, because the biases are trained, and trained leaves are not joined.
    """
    held = module.get_variable("params", name)
    if held is not None and "bias" not in held:
        raise UserError(f"the biases of {name} are trained, and base.fused joins frozen ones; set it to false")


def dropout(module: nn.Module, x: Array, rate: float) -> Array:
    """x with entries zeroed at `rate` and the others divided by 1 - rate; x itself in calls without a "dropout" key."""
    if not rate or not module.has_rng("dropout"):
        return x
    keep = jax.random.bernoulli(module.make_rng("dropout"), 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


class Embedding(nn.Module):
    """A table [vocab_size, features]: read by row, or multiplied from the right as a tied head."""

    vocab_size: int
    features: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def setup(self):
        self.embedding = parameter(
            self, "embedding", EMBEDDING_INIT, (self.vocab_size, self.features), self.param_dtype
        )

    def __call__(self, tokens: Array) -> Array:
        """tokens int [...] -> [..., features]; an id outside the table gives NaN, not a wrong row: a run stops."""
        return rows(jnp.take(self.embedding, tokens, axis=0, mode="fill").astype(self.dtype))

    def logits(self, x: Array) -> Array:
        """x E^T: [..., features] -> float32 [..., vocab_size]."""
        return rows(matmul_float32(rows(x.astype(self.dtype)), self.embedding.astype(self.dtype), 1))


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * scale, computed in float32 and returned in `dtype`.

    With `offset` the parameter is called "offset" and starts at 0, and 1 + offset takes the place of scale.

    With `apart` the mean is computed before its readers: XLA's GPU backend then takes it where x is summed, and writes
    y and y's FP8 codes in one kernel. Otherwise each has its own kernel, which computes the mean again.
    """

    eps: float
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    offset: bool = False
    apart: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        name, start = (
            ("offset", nn.initializers.zeros_init()) if self.offset else ("scale", nn.initializers.ones_init())
        )
        scale = parameter(self, name, start, (x.shape[-1],), self.param_dtype).astype(jnp.float32)
        x = x.astype(jnp.float32)
        factor = lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)
        x = x * (behind_barrier(factor) if self.apart else factor)
        return (x * (1 + scale if self.offset else scale)).astype(self.dtype)

    def bound(self) -> Array:
        """What no entry of the norm's output exceeds, whatever its input: sqrt(width) max|scale|."""
        scale = self.get_variable("params", "offset" if self.offset else "scale").astype(jnp.float32)
        return scale.size**0.5 * jnp.abs(1 + scale if self.offset else scale).max()


class LayerNorm(nn.Module):
    """y = (x - mean(x)) / sqrt(var(x) + eps) * scale + bias, computed in float32 and returned in `dtype`."""

    eps: float
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = parameter(self, "scale", nn.initializers.ones_init(), (x.shape[-1],), self.param_dtype)
        bias = parameter(self, "bias", nn.initializers.zeros_init(), (x.shape[-1],), self.param_dtype)
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)
        return (x * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul_float32(x: Array, weight: Array, axis: int) -> Array:
    """x [..., in] times weight ([in, out] for axis 0, [out, in] for axis 1), accumulated and returned in float32.

    The cotangent is cast to bfloat16 when the operands are: jax would multiply float32 by bfloat16, which XLA widens
    to a float32 product, about ten times slower on tensor cores. float16 keeps the wide product: a mean loss's
    cotangents are below its range.
    """
    return lax.dot_general(x, weight, (((x.ndim - 1,), (axis,)), ((), ())), preferred_element_type=jnp.float32)


def _matmul_forward(x, weight, axis):
    return matmul_float32(x, weight, axis), (x, weight)


def _matmul_backward(axis, residuals, g):
    x, weight = residuals
    wide = jnp.bfloat16 if x.dtype == jnp.bfloat16 else jnp.float32
    g, operand, table = g.astype(wide), x.astype(wide), weight.astype(wide)
    dx = lax.dot_general(g, table, (((g.ndim - 1,), (1 - axis,)), ((), ())))
    rows = tuple(range(x.ndim - 1))
    left, right = (operand, g) if axis == 0 else (g, operand)
    dweight = lax.dot_general(left, right, ((rows, rows), ((), ())))
    return dx.astype(x.dtype), dweight.astype(weight.dtype)


matmul_float32.defvjp(_matmul_forward, _matmul_backward)
