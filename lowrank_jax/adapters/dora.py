"""DoRA: y = x W' with W' = m (W + s A B) / ||W + s A B||, a magnitude m for each output (Liu et al., section 4).

The norm is that of each output's column of the kernel [d_in, d_out], and counts as a constant in the backward pass
(their section 4.3), as in PEFT.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from lowrank_jax.adapters import lora
from lowrank_jax.adapters.base import AdapterSpec, Family, Leaf
from lowrank_jax.adapters.leaves import inits
from lowrank_jax.core.types import Array, PRNGKey


def shapes(spec: AdapterSpec) -> dict[str, tuple[int, ...]]:
    """LoRA's A and B and a magnitude m [d_out]: (d_in + d_out) r + d_out parameters."""
    return {**lora.shapes(spec), "m": (spec.d_out,)}


def init(key: PRNGKey, spec: AdapterSpec, kernel: Float[Array, "d_in d_out"]) -> dict[str, Array]:
    """A and B as LoRA's, m = ||W + s A B|| of each output, which is ||W||: the identity."""
    ab, factor = lora.init(key, spec, kernel), lora.scale(spec)
    scaled = FAMILY.scale_leaf(ab, factor)
    return {**ab, "m": column_norms(inits.residual_kernel(kernel, spec, factor), scaled, spec)}


def column_norms(kernel: Float[Array, "d_in d_out"], leaf: Leaf, spec: AdapterSpec) -> Float[Array, " d_out"]:
    """||W + A B|| over d_in, in float32 (or wider)."""
    whole = kernel.astype(jnp.promote_types(jnp.float32, kernel.dtype)) + FAMILY.delta_kernel(leaf, spec)
    return jnp.linalg.norm(whole, axis=0)


def apply(
    leaf: Leaf, frozen: Leaf, x: Float[Array, "*batch d_in"], y: Float[Array, "*batch d_out"], spec: AdapterSpec
) -> Float[Array, "*batch d_out"]:
    """y + x (W' - W); with dropout this is PEFT's too, in which x W' - x W is of the dropped x.

    Args:
      leaf: A, B (scaled) and m of one layer.
      frozen: {"kernel": W [d_in, d_out]}.
      x: the branch's input.
      y: the module's output, x W and perhaps a bias, which is left as it is.
      spec: the site.
    """
    kernel = frozen["kernel"]
    return y + x @ (fold(kernel, leaf, spec) - kernel).astype(x.dtype)


def fold(kernel: Float[Array, "d_in d_out"], leaf: Leaf, spec: AdapterSpec) -> Float[Array, "d_in d_out"]:
    """W' = m (W + A B) / ||W + A B||, in float32 (or wider), the norm without a gradient."""
    kernel = kernel.astype(jnp.promote_types(jnp.float32, kernel.dtype))
    norms = jax.lax.stop_gradient(column_norms(kernel, leaf, spec))
    return leaf["m"] / jnp.maximum(norms, jnp.finfo(norms.dtype).tiny) * (kernel + FAMILY.delta_kernel(leaf, spec))


def unfold(
    merged: Float[Array, "d_in d_out"], leaf: Leaf, spec: AdapterSpec, norms: Float[Array, " d_out"]
) -> Float[Array, "d_in d_out"]:
    """W from the merged kernel: W' * norms / m - A B; a merged column has norm |m|, its own is lost.

    Args:
      merged: W'.
      leaf, spec: as in `fold`.
      norms: `column_norms` before the merge.
    """
    return merged.astype(jnp.float32) * (norms / leaf["m"]) - FAMILY.delta_kernel(leaf, spec)


FAMILY = Family(
    "dora",
    shapes,
    init,
    lora.delta,
    scaled=("b",),
    scale=lora.scale,
    apply=apply,
    fold=fold,
    unfold=unfold,
    needs_kernel=lambda _: True,
)
