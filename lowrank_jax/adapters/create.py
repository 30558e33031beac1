"""Fresh adapters for a plan: the trees "adapters" (trainable) and "scales" (alpha / r, frozen)."""

import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp

from lowrank_jax.adapters.plan import Plan
from lowrank_jax.core.paths import unflatten
from lowrank_jax.core.types import PRNGKey


def create(plan: Plan, key: PRNGKey) -> dict[str, Any]:
    """{"adapters": ..., "scales": ...} in float32; leaves carry the kernel's layer axes in front.

    A site's key is derived from its path, so adding a target leaves the other sites' values as they were; each layer
    of a stack draws its own.
    """
    adapters, scales = {}, {}
    for site in plan.sites:
        layers = math.prod(site.spec.stack)
        site_key = jax.random.fold_in(key, zlib.crc32(site.path.encode()))
        stacked = jax.vmap(lambda k, spec=site.spec: plan.family.init(k, spec))(jax.random.split(site_key, layers))
        for name, leaf in stacked.items():
            adapters[f"{site.path}/{name}"] = leaf.reshape(*site.spec.stack, *leaf.shape[1:])
        scales[f"{site.path}/scale"] = jnp.full(site.spec.stack, plan.family.scale(site.spec), jnp.float32)
    return {"adapters": unflatten(adapters), "scales": unflatten(scales)} if plan.sites else {}
