"""DoRA as it runs best: no second kernel is made in a step, neither A B nor W + A B.

||W + A B||^2 = ||W||^2 + 2 <A^T W, B> + <A^T A B, B>, sums over d_in and r, at the cost of r more rows through the
kernel.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float

from lowrank_jax.adapters.base import AdapterSpec, Leaf
from lowrank_jax.adapters.fast import lora
from lowrank_jax.adapters.fast.base import Fast
from lowrank_jax.core.types import Array

HIGHEST = jax.lax.Precision.HIGHEST  # accelerators round float32 operands otherwise, and m / norm scales all of y


def apply(
    leaf: Leaf, frozen: Leaf, x: Float[Array, "*batch d_in"], y: Float[Array, "*batch d_out"], spec: AdapterSpec
) -> Float[Array, "*batch d_out"]:
    """y + (g - 1) x W + g x A B with g = m / ||W + A B||; a bias in y is left as it is.

    Args:
      leaf: A, B (scaled) and m of one layer.
      frozen: {"kernel": W [d_in, d_out], "product": x W}; with dropout PEFT scales the product of the dropped input.
      x: the branch's input.
      y: the module's output.
      spec: the site.
    """
    gain = checkpoint_name(_gain(leaf, frozen["kernel"]), "adapter")
    branch = lora.delta(leaf, x, spec)
    return y + (gain - 1).astype(y.dtype) * frozen["product"] + gain.astype(y.dtype) * branch


def column_norms(kernel: Float[Array, "d_in d_out"], leaf: Leaf) -> Float[Array, " d_out"]:
    """||W + A B|| over d_in, in float32 (or wider).

    A kernel in bfloat16 meets A and B in bfloat16, as in the branch, and is not widened as a whole.
    """
    wide = jnp.promote_types(jnp.float32, leaf["a"].dtype)
    a, b = leaf["a"].astype(kernel.dtype), leaf["b"].astype(wide)
    cross = _dot(a.T, kernel, wide)
    square = _dot(_dot(a.T, a, wide), b, wide)
    norms = jnp.sum(jnp.square(kernel.astype(wide)), axis=0) + jnp.sum((2 * cross + square) * b, axis=0)
    return jnp.sqrt(jnp.maximum(norms, 0))


def _gain(leaf: Leaf, kernel: Array) -> Array:
    """m / ||W + A B||, the norm without a gradient."""
    norms = jax.lax.stop_gradient(column_norms(kernel, leaf))
    return leaf["m"] / jnp.maximum(norms, jnp.finfo(norms.dtype).tiny)


def _dot(a: Array, b: Array, dtype: Any) -> Array:
    return jnp.matmul(a, b, precision=HIGHEST, preferred_element_type=dtype)


# m stays float32: rounded to bfloat16 it would shift all of y by up to 0.4%.
FAST = Fast(lora.delta, apply=apply, float32=("m",))
