"""The singular values of every site's update, which show how many directions an adapter uses."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowrank_jax.adapters.base import AdapterSpec, Family
from lowrank_jax.adapters.leaves.merge import leaves_of, over_layers
from lowrank_jax.adapters.plan import Plan, flat_params, weight_of
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.types import Array, Tree
from lowrank_jax.ops.quantized import dense

FACTORS = {"a", "b"}  # leaves of a family whose update is their product


def spectrum(variables: Tree, plan: Plan) -> dict[str, np.ndarray]:
    """Singular values s_1 >= s_2 >= ... of each layer's Delta W = U diag(s) V^T, which `merge` adds to the weight.

    The rank of an update is the number of its s that are not 0: at most r for LoRA, up to the size of its square (or
    more, where the square is applied to each block) for MoRA. MoRA (section 6) counts the s above 0.1; LoRA (section 7)
    compares the directions that belong to the largest.

    LoRA's A [d_in, r] and B [r, d_out] are never multiplied: with QR, A = Q_A R_A and B^T = Q_B R_B, the s of A B are
    those of R_A R_B^T [r, r]. Other families' updates are formed, one layer at a time.

    Args:
      variables: {"params", "adapters", "scales"}.
      plan: the plan that created them.

    Returns:
      {path of the site: s [*stack, min(d_in, d_out)] float32}; LoRA's are 0 after the first r.

    Raises:
      UserError: a bottleneck family, which changes no weight.
    """
    return {path: np.asarray(values) for path, values in singular_values(variables, plan).items()}


def singular_values(variables: Tree, plan: Plan) -> dict[str, Array]:
    """What `spectrum` returns, on the device; may be traced."""
    if stuck := sorted({site.family.name for site in plan.sites if not site.family.merges}):
        raise UserError(f"{' and '.join(stuck)} changes no weight, and has no singular values; take lora, dora or mora")
    params, found = flat_params(variables["params"], "spectrum"), {}
    for site in plan.sites:
        leaf, scale = leaves_of(variables, site)
        # Only a family that changes the sum (DoRA) reads the frozen weight.
        weight = None if site.family.fold is None else weight_of(site, params)
        found[site.path] = _of_site(leaf, scale, weight, site.family, site.spec)
    return found


@functools.partial(jax.jit, static_argnums=(3, 4))
def _of_site(leaf: dict[str, Array], scale: Array, weight: Any, family: Family, spec: AdapterSpec) -> Array:
    def of_layer(layer):
        leaf, weight = layer
        with jax.default_matmul_precision("highest"):
            if family.fold is not None:
                whole = dense(weight, jnp.float32)
                return _values(family.fold(whole, leaf, spec) - whole)
            if leaf.keys() != FACTORS:
                return _values(family.delta_kernel(leaf, spec))
            upper_a, upper_b = (jnp.linalg.qr(side, mode="r") for side in (leaf["a"], leaf["b"].T))
            values = _values(upper_a @ upper_b.T)
            return jnp.pad(values, (0, min(spec.d_in, spec.d_out) - len(values)))

    return over_layers(of_layer, spec, family.scale_leaf(leaf, scale), weight)


def _values(matrix: Array) -> Array:
    return jnp.linalg.svd(matrix.astype(jnp.float32), compute_uv=False)
