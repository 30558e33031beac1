"""Lays out a model's weights for the fastest decoding: adapters within their kernels' leaves, an array a layer."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp

from lowrank_jax.adapters.fast import get_fast
from lowrank_jax.adapters.leaves.merge import leaves_of, merge
from lowrank_jax.adapters.plan import Plan, flat_params, weight_of
from lowrank_jax.adapters.sites import Site
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.trees import is_coded
from lowrank_jax.core.types import ApplyFn, Tree
from lowrank_jax.layouts.fused import Fused, Groups
from lowrank_jax.layouts.segments import Segments
from lowrank_jax.models.parts.cache import Cache, init_cache
from lowrank_jax.models.parts.shared import can_share
from lowrank_jax.ops.quantized import dense
from lowrank_jax.ops.two_parts import two_parts
from lowrank_jax.ops.widened import LARGEST_RANK, Update, widened

# A product whose weights have at most so many bytes a layer is kept in two parts, whatever its adapter. LoRA beside its
# weights would add a GPU kernel to most products, which takes longer than reading so few weights twice: SmolLM2-135M's
# largest product has 3.5 MB, and a step of 64 rows took 1.18 ms in two parts, 1.29 with LoRA beside them (one H200).
SMALL = 2**22


class Ready(NamedTuple):
    """A model to decode with.

    Attributes:
      apply_fn: the model without adapters.
      variables: {"params"} of it.
      empty: (batch, length) -> its empty cache.
      whole: the same without rings; None where it cannot read beginnings apart (`decoder.cached_decoder`).
    """

    apply_fn: ApplyFn
    variables: dict[str, Any]
    empty: Callable[[int, int], Cache]
    whole: Callable[[int, int], Cache] | None = None


def ready(
    model: Any,
    params: Tree,
    plan: Plan | None = None,
    variables: Tree | None = None,
    exact: bool = True,
    small: int = SMALL,
) -> Ready:
    """The model with each adapter within its kernel's leaf, in the layout for decoding.

    The time of a step is set by the number of its GPU kernels, copies of slices of stacked arrays among them. Hence
    there is no loop over layers, no separate product for an adapter, and an array for each layer's weights and cache
    (times: docs/performance.md, "Decoding").

    Args:
      model: a causal model, in any layout.
      params: its canonical parameters; where there are adapters, quantised kernels become arrays.
      plan: of the adapters; None without any.
      variables: {"adapters", "scales"} of the plan.
      exact: where the model computes in less than float32, rounding W + delta to the dtype would lose much of delta.
        True keeps it: LoRA up to rank LARGEST_RANK beside a kernel that is not small, in one product (`ops.widened`),
        as training has it; any other kernel with an adapter in two parts (`ops.two_parts`). False rounds.
      small: bytes of a layer's weights in one product up to which its kernel is small.

    Raises:
      UserError: an adapter that no weight can compute (see `merge`); an update that is not finite.
    """
    sites = plan.sites if plan is not None else ()
    in_parts = exact and jnp.dtype(model.dtype).itemsize < 4
    groups = model.clone(cuts=()).fused_groups() if hasattr(model, "fused_groups") else {}
    thin = _thin(sites, groups, small // jnp.dtype(model.dtype).itemsize) if in_parts else set()
    updates, others = {}, tuple(site for site in sites if site.path not in thin)
    if plan is not None and sites:
        held = {"params": params, **(variables or {})}
        updates = {site.path: _update(held, site, model.dtype) for site in sites if site.path in thin}
        if in_parts:
            held["params"] = _replaced(params, {site.path for site in others}, lambda each: dense(each, jnp.float32))
        params = merge(held, Plan(plan.configs, others))
    layout = {"cuts": tuple(range(1, model.config.num_hidden_layers)), "remat": "none", "scan_unroll": 1}
    places, flat = {}, flatten(params)
    if groups and not any(is_coded(flat[f"{member}/kernel"]) for members in groups.values() for member, _ in members):
        layout["fused"] = True
        params, places = Fused(groups).apply(params), _places(groups)
    del flat  # a kernel's memory is then free once its new leaf is made
    beside: dict[str, list[Update]] = {}
    for site_path, update in updates.items():
        path, first = places.get(site_path, (site_path, 0))
        beside.setdefault(path, []).append(update._replace(first=first))
    for path, own in beside.items():
        params = _replaced(params, {path}, lambda kernel, own=own: widened(kernel, own, model.dtype))
    if in_parts:
        changed = {places.get(site.path, (site.path, 0))[0] for site in others}
        params = _replaced(params, changed, lambda kernel: two_parts(kernel, model.dtype))
    params = Segments(layout["cuts"]).apply(params)
    empty = functools.partial(init_cache, model.config, dtype=model.dtype, cuts=layout["cuts"])
    whole = functools.partial(empty, rings=False) if can_share(model.config) else None
    return Ready(model.clone(**layout).apply, {"params": params}, empty, whole)


def _places(groups: Groups) -> dict[str, tuple[str, int]]:
    """{path of a member: path of the joined product, the member's first column there}."""
    found = {}
    for path, members in groups.items():
        first = 0
        for member, columns in members:
            found[member] = (path, first)
            first += columns
    return found


def _thin(sites: Iterable[Site], groups: Groups, small: int) -> set[str]:
    """Paths of the sites whose update is kept beside the kernel.

    At such a site, and at all others of its group, the update is x A B of a small rank; and the product of the group
    has more than `small` weights a layer.
    """
    inputs = {site.path: site.spec.d_in for site in sites}
    found = {s.path for s in sites if get_fast(s.family).factors is not None and s.spec.rank <= LARGEST_RANK}
    alone = {site.path: ((site.path, site.spec.d_out),) for site in sites}
    joined = {member: members for members in groups.values() for member, _ in members}
    for path, members in {**alone, **joined}.items():
        own = {member for member, _ in members} & inputs.keys()
        if path in own and (not own <= found or inputs[path] * sum(columns for _, columns in members) <= small):
            found -= own
    return found


def _update(variables: Tree, site: Site, dtype: Any) -> Update:
    """The update of a site, in the dtype that its kernel will have."""
    weight_of(site, flat_params(variables["params"], "ready"))  # refuses a site that has none, as `merge` does
    factors = get_fast(site.family).factors
    assert factors is not None  # `_thin` takes no others
    leaf = site.family.scale_leaf(*leaves_of(variables, site))
    a, b = (leaf[name].astype(dtype) for name in factors)
    if not (jnp.isfinite(a).all() & jnp.isfinite(b).all()):
        raise UserError(f"the adapter at {site.path} holds NaN or infinity in {a.dtype}; take an earlier checkpoint")
    return Update(0, a, b)


def _replaced(params: Tree, modules: set[str], change: Callable[[Any], Any]) -> dict[str, Any]:
    """The params in which `change` replaces the kernels of some modules."""
    flat = flatten(params)
    return unflatten(flat | {path: change(flat[path]) for module in modules if (path := f"{module}/kernel") in flat})
