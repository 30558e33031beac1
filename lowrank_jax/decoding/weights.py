"""Lays out a model's weights for the fastest decoding: adapters merged, kernels joined, an array for each layer."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from lowrank_jax.adapters.merge import merge
from lowrank_jax.adapters.plan import Plan
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.trees import is_coded
from lowrank_jax.core.types import ApplyFn, Tree
from lowrank_jax.layouts.fused import Fused
from lowrank_jax.layouts.segments import Segments
from lowrank_jax.models.cache import Cache, init_cache
from lowrank_jax.ops.quantized import dense
from lowrank_jax.ops.two_parts import two_parts


class Ready(NamedTuple):
    """A model to decode with.

    Attributes:
      apply_fn: the model without adapters.
      variables: {"params"} of it.
      empty: (batch, length) -> its empty cache.
    """

    apply_fn: ApplyFn
    variables: dict[str, Any]
    empty: Callable[[int, int], Cache]


def ready(
    model: Any, params: Tree, plan: Plan | None = None, variables: Tree | None = None, exact: bool = True
) -> Ready:
    """The model with its adapters merged, in the layout of decoding.

    The time of a step is set by the number of its GPU kernels, copies of slices of stacked arrays among them. Hence
    there is no loop over layers, no adapter beside a kernel, and an array for each layer's weights and cache (times:
    docs/performance.md, "Decoding").

    Args:
      model: a causal model, in any layout.
      params: its canonical parameters; a quantised kernel that has an adapter becomes an array.
      plan: of the adapters; None without any.
      variables: {"adapters", "scales"} of the plan.
      exact: where the model computes in less than float32, a kernel with an adapter is kept in two parts
        (`ops.two_parts`), as rounding W + delta to the dtype would lose much of delta. False rounds.

    Raises:
      UserError: an adapter that no weight can compute (see `merge`).
    """
    kernels = {site.weight for site in plan.sites} if plan is not None else set()
    in_parts = exact and jnp.dtype(model.dtype).itemsize < 4
    if plan is not None and kernels:
        if in_parts:
            params = _replaced(params, kernels, lambda kernel: dense(kernel, jnp.float32))
        params = merge({"params": params, **(variables or {})}, plan)
    layout = {"cuts": tuple(range(1, model.config.num_hidden_layers)), "remat": "none", "scan_unroll": 1}
    groups = model.clone(cuts=()).fused_groups() if hasattr(model, "fused_groups") else {}
    flat = flatten(params)
    if groups and not any(is_coded(flat[f"{member}/kernel"]) for members in groups.values() for member, _ in members):
        layout["fused"] = True
        params = Fused(groups).apply(params)
        for path, members in groups.items():
            own = {f"{member}/kernel" for member, _ in members}
            if kernels & own:
                kernels = (kernels - own) | {f"{path}/kernel"}
    if in_parts:
        params = _replaced(params, kernels, lambda kernel: two_parts(kernel, model.dtype))
    params = Segments(layout["cuts"]).apply(params)
    empty = functools.partial(init_cache, model.config, dtype=model.dtype, cuts=layout["cuts"])
    return Ready(model.clone(**layout).apply, {"params": params}, empty)


def _replaced(params: Tree, paths: set[str], change: Callable[[Any], Any]) -> dict[str, Any]:
    """The params in which `change` replaces the kernels at some paths."""
    changes = {
        path: change(leaf) for path, leaf in flatten(params).items() if path in paths and path.endswith("/kernel")
    }
    return unflatten(flatten(params) | changes)
