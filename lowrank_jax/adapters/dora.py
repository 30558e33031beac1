"""DoRA: y = x (W + s A B) m / ||W + s A B||, a magnitude per output beside LoRA's direction (Liu et al., section 4).

The norm is that of each output's column of the kernel [d_in, d_out], and counts as a constant in the backward pass
(their section 4.3), as in PEFT. A B is never formed in the step: ||W + s A B||^2 = ||W||^2 + 2 s <A^T W, B>
+ s^2 <A^T A B, B>, sums over d_in and r, at the cost of r more rows through the kernel.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lowrank_jax.adapters import inits, lora
from lowrank_jax.adapters.base import AdapterSpec, Family, Leaf
from lowrank_jax.core.types import Array, PRNGKey

HIGHEST = jax.lax.Precision.HIGHEST  # accelerators round float32 operands otherwise, and m / norm scales all of y


def shapes(spec: AdapterSpec) -> dict[str, tuple[int, ...]]:
    """LoRA's A and B and a magnitude m [d_out]: (d_in + d_out) r + d_out parameters."""
    return {**lora.shapes(spec), "m": (spec.d_out,)}


def init(key: PRNGKey, spec: AdapterSpec, kernel: Array) -> dict[str, Array]:
    """A and B as LoRA's, m = ||W + s A B|| of each output, which is ||W||: the identity."""
    ab = lora.init(key, spec, kernel)
    factor = scale(spec)
    return {**ab, "m": column_norms(inits.residual_kernel(kernel, spec, factor), ab, factor)}


def column_norms(kernel: Array, leaf: Leaf, scale: Array | float) -> Array:
    """||W + scale A B|| over d_in: [d_out] in float32 (or wider).

    A kernel in bfloat16 meets A and B in bfloat16, as in the branch, and is not widened as a whole.
    """
    wide = jnp.promote_types(jnp.float32, leaf["a"].dtype)
    a, b = leaf["a"].astype(kernel.dtype), (leaf["b"] * scale).astype(wide)
    cross = _dot(a.T, kernel, wide)
    square = _dot(_dot(a.T, a, wide), b, wide)
    norms = jnp.sum(jnp.square(kernel.astype(wide)), axis=0) + jnp.sum((2 * cross + square) * b, axis=0)
    return jnp.sqrt(jnp.maximum(norms, 0))


def apply(leaf: Leaf, frozen: Leaf, x: Array, y: Array, spec: AdapterSpec, scale: Array | float) -> Array:
    """y + (g - 1) x W + g x A (scale B) with g = m / ||W + scale A B||; a bias in y is left as it is.

    Args:
      leaf: {"a", "b", "m"} of one layer.
      frozen: {"kernel": W [d_in, d_out], "product": x W}; with dropout PEFT scales the product of the dropped input.
      x: the branch's input [..., d_in].
      y: the module's output [..., d_out].
    """
    gain = checkpoint_name(_gain(leaf, frozen["kernel"], scale), "adapter")
    branch = lora.delta(leaf, x, spec, scale)
    return y + (gain - 1).astype(y.dtype) * frozen["product"] + gain.astype(y.dtype) * branch


def prepare(leaf: Leaf, spec: AdapterSpec, scale: Array, dtype: Any) -> dict[str, Array]:
    """A and scale * B in `dtype`; m as it is: rounded to bfloat16 it would shift all of y by up to 0.4%."""
    return {**lora.prepare(leaf, spec, scale, dtype), "m": leaf["m"]}


def fold(kernel: Array, leaf: Leaf, spec: AdapterSpec, scale: Array | float) -> Array:
    """The merged kernel g (W + scale A B), in float32."""
    kernel = kernel.astype(jnp.float32)
    return _gain(leaf, kernel, scale) * (kernel + FAMILY.delta_kernel(leaf, spec, scale))


def unfold(merged: Array, leaf: Leaf, spec: AdapterSpec, scale: Array | float, norms: Array) -> Array:
    """W from the merged kernel: merged * norms / m - scale A B; a merged column has norm |m|, its own is lost.

    Args:
      norms: `column_norms` before the merge [d_out].
    """
    return merged.astype(jnp.float32) * (norms / leaf["m"]) - FAMILY.delta_kernel(leaf, spec, scale)


def _gain(leaf: Leaf, kernel: Array, scale: Array | float) -> Array:
    """m / ||W + scale A B||, the norm without a gradient."""
    norms = jax.lax.stop_gradient(column_norms(kernel, leaf, scale))
    return leaf["m"] / jnp.maximum(norms, jnp.finfo(norms.dtype).tiny)


def _dot(a: Array, b: Array, dtype: Any) -> Array:
    return jnp.matmul(a, b, precision=HIGHEST, preferred_element_type=dtype)


scale = lora.scale
FAMILY = Family(
    "dora", shapes, init, lora.delta, prepare, scale, apply=apply, fold=fold, unfold=unfold, needs_kernel=lambda _: True
)
