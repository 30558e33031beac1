"""Products of 8-bit floats: an input and a gradient rounded to FP8 at run time, beside a frozen kernel of FP8 codes.

The product is written as one of dequantised operands. XLA's GPU backend turns it into cuBLASLt's FP8 product, with both
scales inside, on devices that have one (compute capability 8.9 and up); elsewhere it runs as it is written.
"""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.types import Array
from lowrank_jax.ops.capability import compute_capability

CODES = jnp.float8_e4m3fn  # 1 sign, 4 exponent and 3 mantissa bits: normal from 2^-6 to 448
FIXED = "fixed"
# Of "fixed" gradients: those of each token's own loss, as objectives are sums (`core.types.Objective`). e5m2 has all
# its bits from 2^-18 to 3,584, and some from 2^-20; larger gradients become infinite, and the step changes nothing.
FIXED_SCALE = 2.0**-4
GRADIENTS = {"e4m3": CODES, "e5m2": jnp.float8_e5m2, FIXED: jnp.float8_e5m2}
SMALLEST = 2.0**-100  # a scale, whose inverse float32 and bfloat16 have too
CAPABLE = 8.9  # compute capability of the first GPUs with FP8 products


@dataclasses.dataclass(frozen=True)
class Fp8Config:
    """How products with an FP8 base are computed.

    Attributes:
      activations: what shares one scale: the whole input of a product ("tensor"), or each token ("row"), which leaves
        a token beside one of 1,000 times its size exact, and costs one more pass over each output. "bound" is "tensor"
        where the caller knows no bound of the input's entries; where it does, behind a norm, nothing is measured.
      gradients: "e4m3" keeps 4 significant bits of a gradient, "e5m2" 3 and a range of 2^32 instead of 2^18. "fixed" is
        "e5m2" in one scale for all (FIXED_SCALE): no gradient is read for its largest entry.
      transposed: cuBLAS reads each kernel along the axis that it sums over, so that one of both passes needs it
        transposed: in each step ("step"), or once, as a second copy of the codes ("kept").
      keep: names of the kernels that stay in the base's dtype, for example ("down",).
      forward: "codes"; or "weights", which are kept too: the loss is that of an unquantised base, and the backward pass
        alone, whose rounding does not add up from layer to layer as the forward pass's does, multiplies codes.
    """

    activations: Literal["tensor", "row", "bound"] = "tensor"
    gradients: Literal["e4m3", "e5m2", "fixed"] = "e4m3"
    transposed: Literal["step", "kept"] = "step"
    keep: tuple[str, ...] = ()
    forward: Literal["codes", "weights"] = "codes"

    def __post_init__(self):
        if self.forward == "weights" and (self.activations, self.transposed) != ("tensor", "step"):
            raise UserError("base.fp8.forward=weights rounds no activations; leave activations and transposed out")


RECIPE = Fp8Config()


def scale_of(largest: Float[Array, "*shape"], dtype: Any = CODES) -> Float[Array, "*shape"]:
    """The least power of two, float32, by which `largest` divided is no more than the dtype's greatest number.

    A power of two is exact in bfloat16, and changes no rounding: FP8 has as many significant bits at any size.
    """
    quotient = largest.astype(jnp.float32) / float(jnp.finfo(dtype).max)
    bits = lax.bitcast_convert_type(jnp.maximum(quotient, SMALLEST), jnp.uint32)
    return lax.bitcast_convert_type((bits + jnp.uint32(0x007FFFFF)) & jnp.uint32(0x7F800000), jnp.float32)


def bits(codes: Array) -> Array:
    """FP8 numbers as uint8, bit by bit: how kernels are kept.

    XLA's CPU backend widens slices of FP8 arrays, a whole stack of layers before its loop; those of bytes it leaves.
    """
    return lax.bitcast_convert_type(codes, jnp.uint8)


def numbers(codes: Array) -> Array:
    """The FP8 numbers of `bits`."""
    return lax.bitcast_convert_type(codes, CODES)


def to_fp8(
    x: Float[Array, "*rows n"], dtype: Any = CODES, by_row: bool = False, largest: Float[Array, ""] | None = None
) -> tuple[Array, Array]:
    """(codes in `dtype`, float32 scale, [] or [..., 1] by row) of which the product is x rounded.

    Args:
      largest: the largest entry, or a bound of it, which takes what it is larger from the range of 2^18. None:
        measured.
    """
    if largest is None:
        largest = jnp.abs(x).max(-1, keepdims=True) if by_row else jnp.abs(x).max()
    scale = scale_of(largest, dtype)
    return (x.astype(jnp.float32) * (1 / scale)).astype(dtype), scale


def product(
    x: Float[Array, "*rows d_in"],
    codes: Array,
    scale: Array,
    recipe: Fp8Config,
    turned: Any = None,
    bound: Float[Array, ""] | None = None,
) -> Array:
    """x W in x's dtype, of x rounded to FP8 by its largest entry.

    Args:
      x: of any floating dtype.
      codes, scale: W [d_in, d_out] = numbers(codes) * scale, one scale [1, 1].
      recipe: see Fp8Config.
      turned: the codes [d_out, d_in], where they are kept.
      bound: None; or what no entry of x exceeds by more than its dtype's rounding, read where `recipe` says so.
    """
    operand, axis = (codes, 0) if turned is None else (turned, 1)
    largest = None if recipe.activations != "bound" else bound
    return _product(x, *to_fp8(x, CODES, recipe.activations == "row", largest), operand, axis, scale)


def gradient(g: Float[Array, "*rows d_out"], codes: Array, scale: Array, recipe: Fp8Config) -> Array:
    """g W^T in g's dtype, of the gradient rounded to FP8 by its largest entry: `product`'s by x."""
    dtype = GRADIENTS[recipe.gradients]
    if recipe.gradients != FIXED:
        return _product(g, *to_fp8(g, dtype), codes, 1, scale)
    rounded = (g.astype(jnp.float32) * (1 / FIXED_SCALE)).astype(dtype)
    return _product(g, rounded, FIXED_SCALE, codes, 1, scale)


def has_fp8(device: Any = None) -> bool:
    """Whether a device, by default the first, multiplies FP8 codes, by XLA's program for what `product` writes."""
    return compute_capability(device) >= CAPABLE


def _product(x: Array, rounded: Array, own: Array | float, codes: Array, axis: int, scale: Array) -> Array:
    # float16 ends at 65,504, below a sum of products of codes.
    wide = jnp.float32 if x.dtype == jnp.float16 else x.dtype
    # The kernel's scale stands before the sum and x's behind it: XLA takes both into the FP8 product, and under vmap,
    # where x has a scale a trial, the product stays one of FP8 codes. A number stands before it: behind it XLA would
    # multiply the whole sum once more.
    kernel = numbers(codes).astype(wide) * scale.reshape(()).astype(wide)
    left = rounded.astype(wide)
    dims = (((x.ndim - 1,), (axis,)), ((), ()))
    if isinstance(own, float | int):
        return lax.dot_general(left * own, kernel, dims, preferred_element_type=wide).astype(x.dtype)
    y = lax.dot_general(left, kernel, dims, preferred_element_type=wide)
    return (y * own.astype(wide)).astype(x.dtype)
