"""Folding adapters into kernels and back: W + scale * delta, in float32, cast once (Hu et al., section 4.1)."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lowrank_jax.adapters import dora
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


def unmerge(variables: Tree, plan: Plan, norms: Tree | None = None) -> dict[str, Any]:
    """The inverse of `merge` up to the rounding of the params' dtype; arguments and errors as there.

    Args:
      norms: for DoRA, `column_norms` of the variables before the merge, of which a merged kernel holds no trace.
    """
    return _checked(fold(variables, plan, sign=-1.0, norms=norms), plan)


def fold(variables: Tree, plan: Plan, sign: float = 1.0, norms: Tree | None = None) -> dict[str, Any]:
    """The params with sign * every site's update added: `merge` without its look at the values, for use under jit."""
    params, family = dict(flatten(variables["params"])), plan.family if plan.sites else None
    if sign < 0 and family and family.unfold is not None and norms is None:
        raise UserError(
            f"{family.name} cannot be taken out of merged kernels alone; give unmerge the column_norms from before the "
            "merge, or load the base again"
        )
    flat_norms = flatten(norms) if norms is not None else {}
    for site in plan.sites:
        path = f"{site.path}/kernel"
        leaf, scale = _leaves(variables, plan, site)
        if f"{site.path}/norms" in flat_norms:
            leaf["norms"] = flat_norms[f"{site.path}/norms"]
        params[path] = _fold_site(params[path], leaf, scale, family, site.spec, sign)
    return unflatten(params)


def column_norms(variables: Tree, plan: Plan) -> dict[str, Any]:
    """{site: {"norms": ||W + scale A B|| of each output, [*stack, d_out] float32}}: what `unmerge` needs for DoRA."""
    flat, norms = flatten(variables["params"]), {}
    for site in plan.sites if plan.config.method == "dora" else ():
        leaf, scale = _leaves(variables, plan, site)
        norms[f"{site.path}/norms"] = _norms_site(flat[f"{site.path}/kernel"], leaf, scale, site.spec)
    return unflatten(norms)


def site_delta(variables: Tree, plan: Plan, site: Site) -> jax.Array:
    """The update of one site as kernels in float32: [*stack, d_in, d_out]."""
    spec, family = site.spec, plan.family
    start = jnp.zeros((*spec.stack, spec.d_in, spec.d_out), jnp.float32)
    if family.fold is not None:
        start = flatten(variables["params"])[f"{site.path}/kernel"].astype(jnp.float32)
    return _fold_site(start, *_leaves(variables, plan, site), family, spec, 1.0) - (0 if family.fold is None else start)


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
        if family.fold is None:
            folded = w.astype(jnp.float32) + sign * family.delta_kernel(leaf, spec, scale)
        elif sign > 0:
            folded = family.fold(w, leaf, spec, scale)
        else:
            folded = family.unfold(w, leaf, spec, scale, leaf["norms"])
        return folded.astype(w.dtype)

    return _over_layers(fold_layer, spec, kernel, leaf, scale)


@functools.partial(jax.jit, static_argnums=3)
def _norms_site(kernel: jax.Array, leaf: dict[str, jax.Array], scale: jax.Array, spec: AdapterSpec) -> jax.Array:
    def norms(layer):
        w, leaf, scale = layer
        return dora.column_norms(w.astype(jnp.float32), leaf, scale)

    return _over_layers(norms, spec, kernel, leaf, scale)


def _over_layers(function: Callable, spec: AdapterSpec, *trees: Any) -> jax.Array:
    """`function` of one layer, for each of the stack: a 7B model's stacked update alone would be 5.8 GB of float32."""
    layers = math.prod(spec.stack)
    stacked = jax.tree.map(lambda x: x.reshape(layers, *x.shape[len(spec.stack) :]), trees)
    out = jax.lax.map(function, stacked)
    return out.reshape(*spec.stack, *out.shape[1:])
