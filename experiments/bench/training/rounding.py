"""Products whose operands are rounded by rules that are chosen at run time, so that one program serves a whole study.

In float32, as the plain definitions: `ops.fp8` has what a run computes.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax.core.types import Array
from lowrank_jax.ops.fp8 import CODES, FIXED_SCALE, scale_of
from lowrank_jax.ops.quantized import Multiplier

E5M2 = jnp.float8_e5m2
BLOCK = 64  # entries along an axis that share a scale, or the largest power of two below it that divides the axis
Rule = Callable[[Array], Array]


def coded(x: Array, scale: Array | float, dtype: Any = CODES) -> Array:
    """x to codes of a scale, and back."""
    return (x / scale).astype(dtype).astype(jnp.float32) * scale


def _largest(x: Array, axes: int | tuple[int, ...] | None) -> Array:
    return jnp.abs(x).max(axes, keepdims=True)


def by(axes: int | tuple[int, ...] | None = None, dtype: Any = CODES) -> Rule:
    """FP8 in the least power of two that holds what shares a scale: the entries along `axes`, or all."""
    return lambda x: coded(x, scale_of(_largest(x, axes), dtype), dtype)


def _exact(x: Array) -> Array:
    """A scale that is no power of two: the largest entry is the largest code."""
    return coded(x, jnp.maximum(_largest(x, None) / float(jnp.finfo(CODES).max), 2.0**-100))


def _twice(x: Array) -> Array:
    """The sum of two codes, the second of what the first leaves."""
    first = by()(x)
    return first + by()(x - first)


def _in_blocks(x: Array) -> Array:
    blocks = x.reshape(*x.shape[:-1], -1, math.gcd(x.shape[-1], BLOCK))
    return by(-1)(blocks).reshape(x.shape)


def _in_tiles(x: Array) -> Array:
    rows, columns = (math.gcd(size, BLOCK) for size in x.shape)
    tiles = x.reshape(-1, rows, x.shape[1] // columns, columns)
    return by((1, 3))(tiles).reshape(x.shape)


def _stochastic(x: Array) -> Array:
    """Up or down, with the chances that leave the mean as it is."""
    scale = scale_of(_largest(x, None))
    exponent = jnp.floor(jnp.log2(jnp.maximum(jnp.abs(x / scale), float(jnp.finfo(CODES).tiny))))
    step = jnp.exp2(exponent - 3) * scale
    return coded(jnp.floor(x / step + jax.random.uniform(jax.random.key(0), x.shape)) * step, scale)


def _bfloat16(x: Array) -> Array:
    return x.astype(jnp.bfloat16).astype(jnp.float32)


def _same(x: Array) -> Array:
    return x


# Of inputs [..., n] and of gradients, of which one is chosen at run time; of weights [d_in, d_out].
VALUES: Mapping[str, Rule] = {
    "-": _same,
    "bfloat16": _bfloat16,
    "tensor": by(),
    "row": by(-1),
    "blocks": _in_blocks,
    "twice": _twice,
    "e5m2": by(dtype=E5M2),
    "fixed": lambda x: coded(x, FIXED_SCALE, E5M2),
    "stochastic": _stochastic,
}
WEIGHTS: Mapping[str, Rule] = {
    "-": _same,
    "bfloat16": _bfloat16,
    "tensor": by(),
    "any scale": _exact,
    "output": by(-2),
    "tiles": _in_tiles,
    "twice": _twice,
    "int8": lambda x: jnp.round(x / (step := _largest(x, -2) / 127)) * step,
}
PRECISE = ("-", "bfloat16")


@functools.partial(jax.tree_util.register_dataclass, data_fields=["ahead", "back", "x", "g"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Rounded(Multiplier):
    """A kernel and its products' rules, in place of the kernel in a parameter tree; a scan slices its parts.

    Attributes:
      ahead, back: W as the forward and the backward pass read it, [*stack, d_in, d_out] float32.
      x, g: numbers of rules in VALUES, int32 [*stack].
    """

    ahead: Any
    back: Any
    x: Any
    g: Any

    def times(self, x: Array, bound: Callable[[], Array] | None = None) -> Array:
        """See `Multiplier.times`."""
        del bound
        return multiply(x, self)

    @property
    def shape(self) -> tuple[int, ...]:
        """[*stack, d_in, d_out]."""
        return self.ahead.shape

    @property
    def ndim(self) -> int:
        """Axes of `shape`."""
        return self.ahead.ndim

    @property
    def dtype(self) -> Any:
        """Of the weights."""
        return self.ahead.dtype


@jax.custom_vjp
def multiply(x: Array, kernel: Rounded) -> Array:
    """x W of x rounded; its gradient is the rounded gradient's product with the backward pass's W."""
    return lax.switch(kernel.x, list(VALUES.values()), x) @ kernel.ahead


def _forward(x, kernel):
    return multiply(x, kernel), kernel


def _backward(kernel, g):
    return lax.switch(kernel.g, list(VALUES.values()), g) @ kernel.back.T, None


multiply.defvjp(_forward, _backward)
