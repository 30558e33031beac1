"""Folding adapters into kernels and back: W + scale * delta, in float32, cast once (Hu et al., section 4.1)."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from lowrank_jax.adapters.base import AdapterSpec, Family
from lowrank_jax.adapters.plan import Plan, Site
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.types import Tree


def merge(variables: Tree, plan: Plan) -> dict[str, Any]:
    """The params with every site's update added; no latency is left at inference.

    Args:
      variables: {"params", "adapters", "scales"}.
      plan: the plan that created them.

    Returns:
      A params tree in the dtypes of `variables["params"]`.

    Raises:
      UserError: a sum is not finite: a diverged adapter must not spoil the base, and a float16 kernel ends at 65,504.
    """
    return _checked(fold(variables, plan), plan)


def unmerge(variables: Tree, plan: Plan) -> dict[str, Any]:
    """The inverse of `merge` up to the rounding of the params' dtype; arguments and errors as there."""
    return _checked(fold(variables, plan, sign=-1.0), plan)


def fold(variables: Tree, plan: Plan, sign: float = 1.0) -> dict[str, Any]:
    """The params with sign * every site's update added: `merge` without its look at the values, for use under jit."""
    params = dict(flatten(variables["params"]))
    for site in plan.sites:
        path = f"{site.path}/kernel"
        params[path] = _fold_site(params[path], *_leaves(variables, plan, site), plan.family, site.spec, sign)
    return unflatten(params)


def site_delta(variables: Tree, plan: Plan, site: Site) -> jax.Array:
    """The update of one site as kernels in float32: [*stack, d_in, d_out]."""
    spec = site.spec
    zeros = jnp.zeros((*spec.stack, spec.d_in, spec.d_out), jnp.float32)
    return _fold_site(zeros, *_leaves(variables, plan, site), plan.family, spec, 1.0)


def _checked(params: dict[str, Any], plan: Plan) -> dict[str, Any]:
    flat = flatten(params)
    for site in plan.sites:
        kernel = flat[f"{site.path}/kernel"]
        if not _all_finite(kernel):
            raise UserError(
                f"{site.path} with its update holds NaN or infinity in {kernel.dtype}; merge an earlier checkpoint, or "
                "a base that is held as bfloat16 or float32"
            )
    return params


@jax.jit
def _all_finite(kernel: jax.Array) -> jax.Array:
    return jnp.isfinite(kernel).all()


def _leaves(variables: Tree, plan: Plan, site: Site) -> tuple[dict[str, jax.Array], jax.Array]:
    flat = flatten({"adapters": variables["adapters"], "scales": variables["scales"]})
    leaf = {name: flat[f"adapters/{site.path}/{name}"] for name in plan.family.shapes(site.spec)}
    return leaf, flat[f"scales/{site.path}/scale"]


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _fold_site(
    kernel: jax.Array, leaf: dict[str, jax.Array], scale: jax.Array, family: Family, spec: AdapterSpec, sign: float
) -> jax.Array:
    """kernel + sign * update, in the kernel's dtype."""

    def fold_layer(layer):
        w, leaf, scale = layer
        delta = family.delta_kernel(leaf, spec, scale)
        return (w.astype(jnp.float32) + sign * delta).astype(w.dtype)

    layers = math.prod(spec.stack)
    stacked = jax.tree.map(lambda x: x.reshape(layers, *x.shape[len(spec.stack) :]), (kernel, leaf, scale))
    # One layer at a time: a 7B model's stacked update alone would be 5.8 GB of float32.
    return jax.lax.map(fold_layer, stacked).reshape(kernel.shape)
