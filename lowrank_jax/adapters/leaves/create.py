"""Fresh adapters for a plan: the trees "adapters" (trainable) and "scales" (alpha / r, frozen), and their base."""

import functools
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp

from lowrank_jax.adapters.attach import states_at
from lowrank_jax.adapters.base import AdapterSpec
from lowrank_jax.adapters.leaves import inits
from lowrank_jax.adapters.plan import Plan, flat_params, weight_of
from lowrank_jax.adapters.prefix.families import VECTORS, draw_words, from_states
from lowrank_jax.adapters.prefix.places import TABLE
from lowrank_jax.adapters.sites import Site
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import unflatten
from lowrank_jax.core.types import PRNGKey, Tree
from lowrank_jax.ops.quantized import Quantized, dense


def create(plan: Plan, key: PRNGKey, params: Tree | None = None, model: Any = None) -> dict[str, Any]:
    """{"adapters": ..., "scales": ...} in float32; leaves carry the kernel's layer axes in front.

    A site's key is derived from its path, so adding a target leaves the other sites' values as they were; each layer
    of a stack draws its own.

    Args:
      plan: the sites.
      key: of all random starts.
      params: the base as published, for what starts from the kernels (`needs_params`). Where that changes what is
        frozen (`inits.FROM_KERNEL`), the model runs on `residual(params, plan)`. Quantised kernels are read as the
        weights that their codes stand for.
      model: the Linen model of these params, which `prefix.init="states"` runs once; nothing else reads it.

    Raises:
      UserError: the plan needs params or the model and there are none; a start that leaves a residual, of a quantised
        kernel.
    """
    adapters, scales = {}, {}
    kernels = flat_params(params, "create") if params is not None else {}
    run = _states(plan, key, params, kernels, model)
    for site in plan.sites:
        spec, layers = site.spec, math.prod(site.spec.stack)
        site_key = jax.random.fold_in(key, zlib.crc32(site.path.encode()))
        keys = jax.random.split(site_key, layers)
        family = site.family
        if family.needs_kernel(spec):
            if params is None:
                start, of = spec.config.init, "the kernels; give them"
                if family.virtual:
                    start, of = spec.config.prefix.init, "the base's table; give it"
                raise UserError(f"{family.name} with init {start!r} starts from {of}: create(plan, key, params)")
            stacked = run.get(site.path) or _from_base(site, site_key, keys, kernels)
        else:
            stacked = jax.vmap(lambda k, f=family, spec=spec: f.init(k, spec))(keys)
        for name, leaf in stacked.items():
            adapters[f"{site.path}/{name}"] = leaf.reshape(*spec.stack, *leaf.shape[1:])
        scales[f"{site.path}/scale"] = jnp.full(spec.stack, family.scale(spec), jnp.float32)
        scales |= {f"{site.path}/{name}": jnp.zeros(spec.stack, jnp.int32) for name in family.numbers(spec)}
    return {"adapters": unflatten(adapters), "scales": unflatten(scales)} if plan.sites else {}


def _states(
    plan: Plan, key: PRNGKey, params: Tree | None, flat: dict[str, Any], model: Any
) -> dict[str, dict[str, jax.Array]]:
    """{path of a site: its leaves} for the sites that start at the base's states, which are those of the same words.

    Args:
      flat: the params by path.
    """
    sites = [site for site in plan.sites if from_states(site.spec)]
    if not sites or params is None:
        return {}
    if model is None:
        raise UserError(
            "prelayer with init 'states' starts from what the model computes; give it: create(plan, key, params, model)"
        )
    prefix = sites[0].spec.config.prefix
    word_key = jax.random.fold_in(key, zlib.crc32(TABLE.encode()))
    words = draw_words(word_key, flat[f"{TABLE}/embedding"].shape[0], prefix.tokens + prefix.infix)
    return {path: {VECTORS: found} for path, found in states_at(model, plan, params, words).items()}


def _from_base(site: Site, key: PRNGKey, keys: PRNGKey, flat: dict[str, Any]) -> dict[str, jax.Array]:
    """The leaves of a site that starts from the base's weights: {name: [layers, ...]}.

    Args:
      key, keys: of the site, and of each layer.
      flat: the params by path.
    """
    family, spec, layers = site.family, site.spec, math.prod(site.spec.stack)
    if family.virtual:  # a token's state begins as its embedding, in every layer
        drawn = family.init(key, spec, flat[f"{TABLE}/embedding"])
        return {name: jnp.broadcast_to(leaf, (layers, *leaf.shape)) for name, leaf in drawn.items()}
    kernel = weight_of(site, flat)
    _check_residual(site.path, kernel, spec)
    stack = (keys, jax.tree.map(lambda part: part.reshape(layers, *part.shape[-2:]), kernel))
    # One layer at a time: a decomposition needs several float32 copies of its kernel.
    return jax.lax.map(lambda one: family.init(one[0], spec, dense(one[1])), stack)


def needs_params(plan: Plan) -> bool:
    """Whether `create` has to be given the base's params."""
    return any(site.family.needs_kernel(site.spec) for site in plan.sites)


def residual(params: Tree, plan: Plan) -> dict[str, Any]:
    """The params that the plan's adapters are trained on: those of `inits.FROM_KERNEL` leave a residual of each kernel.

    A function of the published params alone, so an adapter on disk needs no copy of it. Leaves keep their dtype; with
    any other start the tree is returned with the leaves that it came with.

    Raises:
      UserError: the kernel of such a start is quantised.
    """
    flat = dict(flat_params(params, "residual"))
    for site in plan.sites:
        if site.family.needs_kernel(site.spec) and inits.changes_base(site.spec):
            kernel = weight_of(site, flat)
            _check_residual(site.path, kernel, site.spec)
            flat[site.weight] = _residual_site(kernel, site.spec, site.family.scale(site.spec))
    return unflatten(flat)


def _check_residual(path: str, kernel: Any, spec: AdapterSpec) -> None:
    """Refuses to factorise codes: the residual would be rounded a second time, and miss what the first one lost."""
    if isinstance(kernel, Quantized) and inits.changes_base(spec):
        raise UserError(
            f"adapter.init {spec.config.init!r} starts from the published {path}, and the base holds {kernel.kind} "
            "codes of it; set base.quantize=none, or another adapter.init"
        )


@functools.partial(jax.jit, static_argnums=(1, 2))
def _residual_site(kernel: jax.Array, spec: AdapterSpec, scale: float) -> jax.Array:
    layers = kernel.reshape(-1, *kernel.shape[-2:])
    one = lambda w: inits.residual_kernel(w, spec, scale).astype(kernel.dtype)  # noqa: E731
    return jax.lax.map(one, layers).reshape(kernel.shape)
