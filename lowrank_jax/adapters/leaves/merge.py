"""Folding adapters into kernels and back: W + scale * delta, in float32, cast once (Hu et al., section 4.1)."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from lowrank_jax.adapters import dora
from lowrank_jax.adapters.base import AdapterSpec, Family
from lowrank_jax.adapters.plan import Plan, flat_params, weight_of
from lowrank_jax.adapters.sites import PRE_NORM, Site
from lowrank_jax.adapters.targets import OUTPUT_HEADS
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.types import ApplyFn, Report, Tree
from lowrank_jax.ops.quantized import dense, dense_tree


def merge(variables: Tree, plan: Plan, report: Report | None = None) -> dict[str, Any]:
    """The params with every site's update added; no latency is left at inference.

    Args:
      variables: {"params", "adapters", "scales"}.
      plan: the plan that created them.
      report: is told of the sites.

    Returns:
      A params tree in the dtypes of `variables["params"]`. Of a quantised base, all kernels come back as arrays, in
      the dtype that they had before: what their codes stand for, which the adapter was trained beside, plus the update.

    Raises:
      UserError: a sum is not finite: a diverged adapter must not spoil the base, and a float16 kernel ends at 65,504;
        a family that no weight can compute; a table that a tied head multiplies with.
    """
    return _checked(fold(variables, plan), plan, report)


def unmerge(variables: Tree, plan: Plan, norms: Tree | None = None) -> dict[str, Any]:
    """The inverse of `merge` up to the rounding of the params' dtype; arguments and errors as there.

    Args:
      norms: for DoRA, `column_norms` of the variables before the merge, which a merged kernel has no trace of.
    """
    return _checked(fold(variables, plan, sign=-1.0, norms=norms), plan)


def fold(variables: Tree, plan: Plan, sign: float = 1.0, norms: Tree | None = None) -> dict[str, Any]:
    """The params with sign * every site's update added: `merge` without its look at the values, for use under jit."""
    params = dict(flat_params(variables["params"], "merge"))
    check_merges(plan, params)
    if sign < 0 and norms is None and (lost := [s.family.name for s in plan.sites if s.family.unfold is not None]):
        raise UserError(
            f"{lost[0]} cannot be taken out of merged kernels alone; give unmerge the column_norms from before the "
            "merge, or load the base again"
        )
    flat_norms = flatten(norms) if norms is not None else {}
    for site in plan.sites:
        kernel = weight_of(site, params)
        leaf, scale = leaves_of(variables, site)
        if f"{site.path}/norms" in flat_norms:
            leaf["norms"] = flat_norms[f"{site.path}/norms"]
        params[site.weight] = _fold_site(kernel, leaf, scale, site.family, site.spec, sign)
    return dense_tree(unflatten(params))


def attach_folded(apply_fn: ApplyFn, plan: Plan) -> ApplyFn:
    """A model's function with the updates added to its kernels, for models whose modules `attach` cannot reach.

    These are Flax NNX models (`models.nnx.nnx_function`) and any other function of params. It computes x (W + delta),
    which equals x W + delta(x), the branch of `attach`. Each call needs memory for W + delta, and its gradient for that
    of the kernels.

    Args:
      apply_fn: (variables, *inputs, **kwargs) -> outputs, with the params in variables["params"].
      plan: of those params.

    Returns:
      The same function, of {"params", "adapters", "scales"}.

    Raises:
      UserError: a family that no weight can compute (bottlenecks), or one with dropout, which acts on a branch's input.
    """
    check_merges(plan, (site.weight for site in plan.sites))
    if dropped := [config.dropout for config in plan.configs if config.dropout]:
        raise UserError(f"adapter.dropout is {dropped[0]}, and a folded kernel has no branch to drop from; set it to 0")

    def folded(variables: Tree, *inputs: Any, **kwargs: Any) -> Any:
        if plan.sites:
            rest = {name: tree for name, tree in variables.items() if name not in ("adapters", "scales")}
            variables = {**rest, "params": fold(variables, plan)}
        return apply_fn(variables, *inputs, **kwargs)

    return folded


def check_merges(plan: Plan, paths: Iterable[str], key: str = "") -> None:
    """Raises UserError where an update of the plan has no weight to go into.

    Args:
      plan: the sites.
      paths: of the leaves below "params".
      key: of the config that asks for a merge, for the message.
    """
    asks = f"{key} merges, and " if key else ""
    if stuck := sorted({site.family.name for site in plan.sites if not site.family.merges}):
        where = sorted({site.path for site in plan.sites if not site.family.merges})
        raise UserError(
            f"{asks}{' and '.join(stuck)} at {', '.join(where[:3])} cannot be merged: no weight computes it; keep the "
            "adapter beside its base, or train lora, dora or mora"
        )
    paths = set(paths)
    for site in plan.sites:
        if site.table and is_tied(site.path, paths):
            raise UserError(
                f"{asks}{site.path} is multiplied with by a tied head too, which the adapter leaves alone: merged, its "
                "logits would change; keep the adapter beside its base, or give the base a head of its own "
                "(tie_word_embeddings=False) before training"
            )


def is_tied(path: str, paths: set[str]) -> bool:
    """Whether the model reads the table at `path` as its output layer too: a causal or masked LM without another."""
    word = path in ("embed", "embed/word")
    headless = not any(f"{head}/kernel" in paths for head in OUTPUT_HEADS)
    causal = any(name.startswith(f"{PRE_NORM}/") for name in paths)
    masked = "head/bias" in paths  # a masked LM's head has a bias of its own and no kernel
    return word and headless and (causal or masked)


def column_norms(variables: Tree, plan: Plan) -> dict[str, Any]:
    """{site: {"norms": ||W + scale A B|| of each output, [*stack, d_out] float32}}: what `unmerge` needs for DoRA."""
    flat, norms = flatten(variables["params"]), {}
    for site in (site for site in plan.sites if site.family.unfold is not None):
        norms[f"{site.path}/norms"] = _norms_site(flat[site.weight], *leaves_of(variables, site), site.spec)
    return unflatten(norms)


def site_delta(variables: Tree, plan: Plan, site: Site) -> jax.Array:
    """The update of one site as kernels in float32: [*stack, d_in, d_out]."""
    spec, family = site.spec, site.family
    start = jnp.zeros((*spec.stack, spec.d_in, spec.d_out), jnp.float32)
    if family.fold is not None:
        start = dense(flatten(variables["params"])[site.weight], jnp.float32)
    return _fold_site(start, *leaves_of(variables, site), family, spec, 1.0) - (0 if family.fold is None else start)


def _checked(params: dict[str, Any], plan: Plan, report: Report | None = None) -> dict[str, Any]:
    flat = flatten(params)
    for site in plan.sites:
        kernel = flat[site.weight]
        if not _all_finite(kernel):
            raise UserError(
                f"{site.path} with its update holds NaN or infinity in {kernel.dtype}; merge an earlier checkpoint, or "
                "a base that is held as bfloat16 or float32"
            )
        if report is not None:
            report(1, len(plan.sites))
    return params


@jax.jit
def _all_finite(kernel: jax.Array) -> jax.Array:
    return jnp.isfinite(kernel).all()


def leaves_of(variables: Tree, site: Site) -> tuple[dict[str, jax.Array], jax.Array]:
    """The site's arrays [*stack, ...], with its numbers [*stack], and its scales [*stack]."""
    flat = flatten({"adapters": variables["adapters"], "scales": variables["scales"]})
    leaf = {name: flat[f"adapters/{site.path}/{name}"] for name in site.family.shapes(site.spec)}
    leaf |= {name: flat[f"scales/{site.path}/{name}"] for name in site.family.numbers(site.spec)}
    return leaf, flat[f"scales/{site.path}/scale"]


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _fold_site(
    kernel: jax.Array, leaf: dict[str, jax.Array], scale: jax.Array, family: Family, spec: AdapterSpec, sign: float
) -> jax.Array:
    """kernel + sign * update, in the kernel's dtype."""

    def fold_layer(layer):
        w, leaf = layer
        whole = dense(w, jnp.float32)
        if family.fold is None:
            folded = whole + sign * family.delta_kernel(leaf, spec)
        elif sign > 0:
            folded = family.fold(whole, leaf, spec)
        else:
            assert family.unfold is not None  # a family that folds unfolds
            folded = family.unfold(whole, leaf, spec, leaf["norms"])
        return folded.astype(w.dtype)

    return over_layers(fold_layer, spec, kernel, family.scale_leaf(leaf, scale))


@functools.partial(jax.jit, static_argnums=3)
def _norms_site(kernel: jax.Array, leaf: dict[str, jax.Array], scale: jax.Array, spec: AdapterSpec) -> jax.Array:
    def norms(layer):
        w, leaf = layer
        return dora.column_norms(dense(w, jnp.float32), leaf, spec)

    return over_layers(norms, spec, kernel, dora.FAMILY.scale_leaf(leaf, scale))


def over_layers(function: Callable, spec: AdapterSpec, *trees: Any) -> jax.Array:
    """`function` of one layer, for each of the stack: a 7B model's stacked update alone would be 5.8 GB of float32."""
    layers = math.prod(spec.stack)
    stacked = jax.tree.map(lambda x: x.reshape(layers, *x.shape[len(spec.stack) :]), trees)
    out = jax.lax.map(function, stacked)
    return out.reshape(*spec.stack, *out.shape[1:])
