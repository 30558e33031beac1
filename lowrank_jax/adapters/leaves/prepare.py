"""The adapters as a training step reads them: made of the trained leaves and their scales, once a step."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from lowrank_jax.adapters.fast import get_fast
from lowrank_jax.adapters.fast.groups import Group
from lowrank_jax.adapters.plan import Plan
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.types import Tree
from lowrank_jax.ops.placement import whole


def prepare(variables: Tree, plan: Plan, dtype: Any, grouped: Mapping[str, Group]) -> dict[str, Any]:
    """{"adapters"} with the scales multiplied in, cast, and joined where a model has fused kernels.

    Done once a step, outside the scan over layers: inside, every cast and every scaling would be a kernel of its own in
    each layer. Leaves of stacked kernels are cast to the model's compute dtype. A module outside the
    scan (a head, perhaps in float32) is used once, and a model without `dtype` says no type: their leaves stay as wide
    as they are (float32 at least) and `delta` casts them to its input's.

    Layers without an adapter (AdapterDrop) get one of zeros here, as the scan runs over all layers alike: it computes
    nothing into nothing, has no parameters and no gradient.

    Args:
      variables: {"adapters", "scales"} as `create` makes them.
      plan: the sites.
      dtype: the model's, or None.
      grouped: the fused modules that carry adapters, by path.

    Raises:
      UserError: `variables` were made by another plan.
    """
    flat = flatten({name: variables.get(name, {}) for name in ("adapters", "scales")})
    prepared = {}
    for site in plan.sites:
        path, spec, family = site.path, site.spec, site.family
        names = [f"adapters/{path}/{name}" for name in family.shapes(spec)]
        scale = f"scales/{path}/scale"
        if missing := [name for name in (*names, scale) if name not in flat]:
            raise UserError(f"variables hold no {missing[0]!r}; make them with adapters.create")
        leaf = {name.rpartition("/")[2]: flat[name] for name in names}
        for name, shape in family.shapes(spec).items():
            if leaf[name].shape != (*spec.stack, *shape):  # one layer's square would spread over the stack's scales
                raise UserError(
                    f"'adapters/{path}/{name}' has shape {leaf[name].shape} where the plan has "
                    f"{(*spec.stack, *shape)}; it was made by another plan"
                )
        wide = jnp.result_type(jnp.float32, *leaf.values())
        compute, kept = dtype if spec.stack and dtype is not None else wide, get_fast(family).float32
        for name, value in family.scale_leaf(leaf, flat[scale]).items():
            value = value if name in kept else value.astype(compute)
            if spec.dropped:
                value = jnp.concatenate([jnp.zeros((spec.dropped, *value.shape[1:]), value.dtype), value])
            prepared[f"{path}/{name}"] = value
        prepared |= {f"{path}/{name}": flat[f"scales/{path}/{name}"] for name in family.numbers(spec)}
    for path, group in grouped.items():
        leaves = {
            site.path: {name: prepared.pop(f"{site.path}/{name}") for name in site.family.leaf(site.spec)}
            for site in group.sites
            if site
        }
        prepared |= {f"{path}/{name}": value for name, value in group.join(leaves).items()}
    return unflatten({path: whole(value) for path, value in prepared.items()})
