"""Kernels stored as 8- or 4-bit codes, and products with them: the frozen base of QLoRA (Dettmers et al., 2305.14314).

FP8 codes (`ops.fp8`) are of the same class, and multiplied as they are where the device can.

qwix (0.1.8, jax 0.10.2) has the same codes, and the tests compare with it. It lacks what a frozen base needs: the
gradient of its product saves the dequantised kernel for the backward pass (under a scan those of all layers); it does
not quantise the scales (4.5 bits a weight instead of 4.13); and an input width must be a multiple of the block. Here
`multiply` saves only the codes.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten, unknown_name
from lowrank_jax.core.types import Array, Tree
from lowrank_jax.ops import fp8
from lowrank_jax.ops.fp8 import Fp8Config

NONE, INT8, NF4, FP8 = "none", "int8", "nf4", "fp8"
QUANTIZE = (NONE, INT8, NF4, FP8)
BLOCK = 64  # weights along d_in that share one scale in nf4
GROUP = 256  # scales along d_out whose codes share one smallest and one largest scale
LEVELS = (  # of nf4: quantiles of a normal distribution, scaled to [-1, 1], with an exact zero (appendix E)
    *(-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0.0),
    *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
)
TINY = float(np.finfo(np.float32).tiny)


class Multiplier:
    """A kernel that is no array of its shape: a model's Linear leaves the product to it."""

    def times(self, x: Array, bound: Callable[[], Array] | None = None) -> Array:
        """x W.

        Args:
          x: [..., d_in].
          bound: makes a number that no entry of x exceeds.
        """
        raise NotImplementedError


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["codes", "scales", "steps", "least", "turned", "whole"],
    meta_fields=["kind", "rows", "dtype", "recipe"],
)
@dataclasses.dataclass(frozen=True)
class Quantized(Multiplier):
    """One kernel [*stack, d_in, d_out] as codes; a leaf of a parameter tree, whose parts a scan slices like arrays.

    * int8: W = codes * scales, one scale an output.
    * nf4: W = LEVELS[codes] * (least + scales * steps)^4, the scale of `BLOCK` weights itself an 8-bit code.
    * fp8: W = codes * scales, codes read as 8-bit floats (`fp8.numbers`), one scale a kernel, a power of two.

    Attributes:
      codes: int8, or of fp8 uint8, [*stack, d_in, d_out]; or uint8 [*stack, ceil(d_in / BLOCK) * BLOCK / 2, d_out],
        row 2i in the low four bits of row i and row 2i + 1 in the high ones.
      scales: float32 [*stack, 1, d_out], or of fp8 [*stack, 1, 1]; or uint8 [*stack, ceil(d_in / BLOCK), d_out].
      steps: None; or float32 [*stack, ceil(d_in / BLOCK), ceil(d_out / GROUP)].
      least: None; or the same shape, the fourth root of the group's smallest scale.
      kind: "int8", "nf4" or "fp8".
      rows: d_in.
      dtype: of the kernel before quantisation.
      turned: None; or of fp8 the codes once more, [*stack, d_out, d_in], where `recipe` keeps them.
      recipe: of fp8, how products are computed.
      whole: None; or of fp8 the kernel itself, where `recipe` keeps it.
    """

    codes: Any
    scales: Any
    steps: Any
    least: Any
    kind: str
    rows: int
    dtype: Any
    turned: Any = None
    recipe: Fp8Config = fp8.RECIPE
    whole: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        """[*stack, d_in, d_out]."""
        return (*self.codes.shape[:-2], self.rows, self.codes.shape[-1])

    @property
    def ndim(self) -> int:
        """Axes of `shape`."""
        return len(self.shape)

    def times(self, x: Array, bound: Callable[[], Array] | None = None) -> Array:
        """See `Multiplier.times`; `bound` is read where `recipe` says so."""
        return multiply(x, self, bound() if bound is not None and self.recipe.activations == "bound" else None)

    @property
    def splits(self) -> bool:
        """Whether a layout may cut the kernel into layers and columns, and join it with others: FP8 codes alone."""
        return self.kind == FP8

    def columns(self, low: int, high: int) -> "Quantized":
        """The kernel W[:, low:high] of FP8 codes, which keeps the whole kernel's scale."""
        turned = None if self.turned is None else self.turned[..., low:high, :]
        whole = None if self.whole is None else self.whole[..., low:high]
        return dataclasses.replace(self, codes=self.codes[..., low:high], turned=turned, whole=whole)

    def beside(self, others: Sequence["Quantized"]) -> "Quantized":
        """[W W_1 W_2 ...] of FP8 kernels with the same inputs, in one scale: the largest.

        Scales are powers of two, so codes change by that factor without rounding, except the few that it makes
        smaller than 2^-6: they lose what is below 2^-19 of the joined kernel's largest weight.
        """
        parts = (self, *others)
        scales = functools.reduce(jnp.maximum, [part.scales for part in parts])

        def join(axis, name):
            each = [fp8.numbers(getattr(part, name)).astype(jnp.float32) * (part.scales / scales) for part in parts]
            return jnp.concatenate([fp8.bits(one.astype(fp8.CODES)) for one in each], axis)

        turned = None if self.turned is None else join(-2, "turned")
        whole = None if self.whole is None else jnp.concatenate([part.whole for part in parts], -1)
        return dataclasses.replace(self, codes=join(-1, "codes"), scales=scales, turned=turned, whole=whole)


def check_kind(kind: str, recipe: Fp8Config = fp8.RECIPE) -> None:
    """Raises UserError on a name that is not in QUANTIZE, or another one than fp8 with an unusual recipe."""
    if kind not in QUANTIZE:
        raise unknown_name("base.quantize", kind, QUANTIZE)
    if recipe != fp8.RECIPE and kind != FP8:
        raise UserError(f"base.fp8 is for base.quantize=fp8, and it is {kind}; leave base.fp8 out")


def quantize(kernel: Float[Array, "*stack d_in d_out"], kind: str, recipe: Fp8Config = fp8.RECIPE) -> Quantized:
    """The nearest codes of a kernel (QLoRA, section 2 and equation 1; nf4 and double quantisation: section 3).

    int8: scale = max|w| / 127 over d_in. nf4: scale = max|w| over `BLOCK` neighbours along d_in; the fourth
    roots of the scales are stored as 256 even steps from the smallest to the largest of each `GROUP` of them. The paper
    stores 8-bit floats, less the layer's mean. Even steps of the scales themselves would leave one step or none
    for the other scales of a group with a weight of 250 standard deviations: an error of 0.2, not 0.09. fp8: the
    largest weight lies between 224 and 448.

    Args:
      kernel: [*stack, d_in, d_out]; stacked layers are quantised one after the other, which keeps only one in float32.
      kind: "int8", "nf4" or "fp8".
      recipe: of fp8.
    """
    makers = {INT8: _int8, NF4: _nf4, FP8: functools.partial(_fp8, recipe=recipe)}
    one = functools.partial(makers[kind], dtype=jnp.dtype(kernel.dtype))
    stack = kernel.shape[:-2]
    if not stack:
        return one(kernel)
    layers = jax.lax.map(one, kernel.reshape(-1, *kernel.shape[-2:]))
    return jax.tree.map(lambda part: part.reshape(*stack, *part.shape[1:]), layers)


def dequantize(kernel: Quantized, dtype: Any = None) -> Float[Array, "*stack {kernel.rows} d_out"]:
    """The kernel [*stack, d_in, d_out] that the codes stand for, computed in float32 and cast to `dtype` (its own)."""
    dtype = kernel.dtype if dtype is None else dtype
    if kernel.whole is not None:
        return kernel.whole.astype(dtype)
    if kernel.kind in (INT8, FP8):
        codes = kernel.codes if kernel.kind == INT8 else fp8.numbers(kernel.codes)
        return (codes.astype(jnp.float32) * kernel.scales).astype(dtype)
    *stack, _, d_out = kernel.codes.shape
    halves = kernel.codes.reshape(*stack, -1, BLOCK // 2, 1, d_out)
    codes = (halves >> jnp.array([[0], [4]], jnp.uint8)) & 15
    levels = jnp.asarray(LEVELS, jnp.float32)[codes.reshape(*stack, -1, BLOCK, d_out)]
    weights = levels * block_scales(kernel)[..., None, :]
    return weights.reshape(*stack, -1, d_out)[..., : kernel.rows, :].astype(dtype)


def block_scales(kernel: Quantized) -> Float[Array, "*stack blocks d_out"]:
    """The scales of a nf4 kernel's blocks, float32 [*stack, ceil(d_in / BLOCK), d_out]."""
    least, steps = (_for_each_scale(part, kernel.scales.shape[-1]) for part in (kernel.least, kernel.steps))
    return (least + kernel.scales.astype(jnp.float32) * steps) ** 4


def _for_each_scale(groups: Array, d_out: int) -> Array:
    return jnp.repeat(groups, GROUP, axis=-1)[..., :d_out]


@jax.custom_vjp
def multiply(
    x: Float[Array, "*rows {kernel.rows}"], kernel: Quantized, bound: Float[Array, ""] | None = None
) -> Float[Array, "*rows d_out"]:
    """x W in x's dtype: [..., d_in] -> [..., d_out]. The backward pass dequantises again; W gets no gradient.

    Of FP8 codes, x is rounded too, and the gradient in the backward pass; see `ops.fp8`, `bound` too.
    """
    if kernel.kind == FP8 and kernel.whole is None:
        return fp8.product(x, kernel.codes, kernel.scales, kernel.recipe, kernel.turned, bound)
    return x @ dequantize(kernel, x.dtype)


def _forward(x, kernel, bound):
    return multiply(x, kernel, bound), kernel


def _backward(kernel, g):
    if kernel.kind == FP8 and fp8.has_fp8():
        return fp8.gradient(g, kernel.codes, kernel.scales, kernel.recipe), None, None
    # Without a loop around it (scan_unroll = layers) XLA would keep the forward pass's W for this one.
    kernel, g = jax.lax.optimization_barrier((kernel, g))
    if kernel.kind == FP8:
        return fp8.gradient(g, kernel.codes, kernel.scales, kernel.recipe), None, None
    return g @ dequantize(kernel, g.dtype).T, None, None


multiply.defvjp(_forward, _backward)


def dense(leaf: Any, dtype: Any = None) -> Any:
    """A leaf as an array: dequantised if it is quantised; in `dtype`, or its own."""
    if isinstance(leaf, Quantized):
        return dequantize(leaf, dtype)
    return leaf if dtype is None else leaf.astype(dtype)


def dense_tree(tree: Tree) -> dict[str, Any]:
    """The tree with its quantised kernels as arrays in their original dtypes; other leaves are the caller's own."""
    return unflatten({path: _dense_stack(leaf) for path, leaf in flatten(tree).items()})


def _dense_stack(leaf: Any) -> Any:
    return jax.jit(dequantize)(leaf) if isinstance(leaf, Quantized) else leaf


def _int8(kernel: Float[Array, "d_in d_out"], dtype: Any) -> Quantized:
    kernel = kernel.astype(jnp.float32)
    scales = jnp.maximum(jnp.abs(kernel).max(-2, keepdims=True), TINY) / 127
    return Quantized(jnp.round(kernel / scales).astype(jnp.int8), scales, None, None, INT8, kernel.shape[-2], dtype)


def _fp8(kernel: Float[Array, "d_in d_out"], dtype: Any, recipe: Fp8Config) -> Quantized:
    codes, scale = fp8.to_fp8(kernel)
    codes = fp8.bits(codes)
    turned = codes.T if recipe.transposed == "kept" else None
    whole = kernel if recipe.forward == "weights" else None
    return Quantized(codes, scale.reshape(1, 1), None, None, FP8, kernel.shape[-2], dtype, turned, recipe, whole)


def _nf4(kernel: Float[Array, "d_in d_out"], dtype: Any) -> Quantized:
    rows, d_out = kernel.shape
    blocks = jnp.pad(kernel.astype(jnp.float32), ((0, -rows % BLOCK), (0, 0))).reshape(-1, BLOCK, d_out)
    largest = jnp.maximum(jnp.abs(blocks).max(1), TINY)
    roots = jnp.sqrt(jnp.sqrt(largest))
    grouped = jnp.pad(roots, ((0, 0), (0, -d_out % GROUP)), mode="edge").reshape(len(roots), -1, GROUP)
    least = grouped.min(-1)
    steps = jnp.maximum(grouped.max(-1) - least, TINY) / 255
    scales = (roots - _for_each_scale(least, d_out)) / _for_each_scale(steps, d_out)
    scales = jnp.round(scales).astype(jnp.uint8)
    codes = nearest_level(blocks / largest[:, None]).reshape(-1, 2, d_out)
    packed = codes[:, 0] | (codes[:, 1] << 4)
    return Quantized(packed, scales, steps, least, NF4, rows, dtype)


def nearest_level(x: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
    """uint8 number of the entry of LEVELS that is nearest to each x in [-1, 1]; of two equally near, the lower."""
    levels = np.asarray(LEVELS, np.float32)
    # Fifteen comparisons, which fuse into one pass; a binary search would be a loop over the whole layer.
    above = [(x > middle).astype(jnp.uint8) for middle in (levels[1:] + levels[:-1]) / 2]
    return functools.reduce(jnp.add, above)
