"""The plan: where adapter configurations act on a model, with the rank and the parameters of each site."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from lowrank_jax.adapters.base import AdapterConfig, Family
from lowrank_jax.adapters.prefix.places import VirtualTokens, virtual_tokens
from lowrank_jax.adapters.registry import get_family
from lowrank_jax.adapters.sites import Site, find_sites, modules_with
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten
from lowrank_jax.core.types import Tree


@dataclasses.dataclass(frozen=True)
class Plan:
    """The sites of one or several adapter configurations, in path order. Static and hashable."""

    configs: tuple[AdapterConfig, ...]
    sites: tuple[Site, ...]

    @property
    def config(self) -> AdapterConfig:
        """The only configuration.

        Raises:
          UserError: there are several.
        """
        if len(self.configs) != 1:
            raise UserError(f"the plan holds {self.methods}; this works for one family at a time")
        return self.configs[0]

    @property
    def methods(self) -> str:
        """The families' names, in words."""
        return " and ".join(config.method for config in self.configs)

    @property
    def family(self) -> Family:
        """The family of the only configuration; see `config`."""
        return get_family(self.config.method)

    @property
    def virtual(self) -> VirtualTokens | None:
        """The virtual tokens of a prefix family; None where the plan has none."""
        return virtual_tokens([site.spec for site in self.sites if site.family.virtual])

    @property
    def parameters(self) -> int:
        """Trainable scalars over all sites and layers."""
        return sum(site.parameters for site in self.sites)

    def __str__(self) -> str:
        """The table that is printed before training: one part for each configuration, then their sum."""
        if not self.sites:
            return "adapters: none"
        parts = [_table(config, [site for site in self.sites if site.config == config]) for config in self.configs]
        if len(parts) > 1:
            parts.append(f"together: {self.parameters:,} trainable parameters, float32")
        return "\n".join(parts)


def _table(config: AdapterConfig, sites: Sequence[Site]) -> str:
    kind, virtual = "kernel" if get_family(config.method).merges else "module", get_family(config.method).virtual
    sizes = ("prefix", "infix", "width") if virtual else ("d_in", "d_out", "rank")
    rows: list[tuple[Any, ...]] = [(kind, "layers", *sizes, "leaves", "scale", "parameters")]
    for site in sites:
        spec, family = site.spec, site.family
        leaves = " ".join(f"{k} {'x'.join(map(str, v))}" for k, v in family.shapes(spec).items())
        scale, total = f"{family.scale(spec):g}", f"{site.parameters:,}"
        of_prefix = (config.prefix.tokens, config.prefix.infix, spec.d_out)
        size = of_prefix if virtual else (spec.d_in, spec.d_out, spec.rank)
        rows.append((site.path, math.prod(spec.stack), *size, leaves, scale, total))
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    name = config.method
    if name == "mora":
        name += f" ({config.mora.compression})"
    total = sum(site.parameters for site in sites)
    return "\n".join([*(line.rstrip() for line in lines), f"{name}: {total:,} trainable parameters, float32"])


def make_plan(params: Tree, config: AdapterConfig | Sequence[AdapterConfig]) -> Plan:
    """Finds where each configuration acts on a model.

    Args:
      params: the "params" tree (arrays or ShapeDtypeStructs). A kernel is a leaf named "kernel" whose last two axes are
        [d_in, d_out]; axes before them are layers stacked by a scan. A table is a leaf named "embedding" [rows, d].
      config: the adapter configuration, or several, each with its own sites; method `none` has no site.

    Raises:
      UserError: a target or pattern matches nothing (the near misses are named), the family refuses a shape or finds no
        place in the model, two configurations act on one module or both have virtual tokens, a kernel's first axes are
        no layers (split heads, a convolution), or `params` are all variables.
    """
    configs = (config,) if isinstance(config, AdapterConfig) else tuple(config)
    shapes = {path: tuple(leaf.shape) for path, leaf in flat_params(params, "make_plan").items()}
    kernels = modules_with(shapes, "kernel")
    sites: dict[str, Site] = {}
    for one in configs:
        for site in find_sites(one, kernels, shapes) if one.method != "none" else ():
            if other := sites.get(site.path):
                raise UserError(
                    f"{site.path} is adapted by {other.config.method} and by {one.method}; name it in the "
                    "adapter.exclude of one of them"
                )
            sites[site.path] = site
    adapting = tuple(one for one in configs if one.method != "none")
    plan = Plan(adapting or configs[:1], tuple(site for _, site in sorted(sites.items())))
    virtual_tokens([site.spec for site in plan.sites if site.family.virtual])  # refuses several
    return plan


def flat_params(params: Tree, reader: str) -> dict[str, Any]:
    """`flatten(params)`, of what is a "params" tree of arrays or shapes.

    Args:
      reader: the function that was given them, for messages.

    Raises:
      UserError: they are all variables, or boxes (`nn.with_partitioning`).
    """
    if isinstance(params.get("params"), Mapping):
        raise UserError(f'{reader} takes the "params" tree alone: give it variables["params"], not all variables')
    flat = flatten(params)
    if boxed := [path for path, leaf in flat.items() if not hasattr(leaf, "shape")]:
        kind = type(flat[boxed[0]]).__name__
        raise UserError(f"{boxed[0]} is a {kind}, no array: give {reader} flax.linen.meta.unbox(variables)['params']")
    return flat


def weight_of(site: Site, flat: Mapping[str, Any]) -> Any:
    """The weight that a site's update goes into, among the leaves of `flat_params`.

    Raises:
      UserError: it is not there, or has another shape than the plan was made of.
    """
    wanted = (*site.spec.stack, site.spec.d_in, site.spec.d_out)
    leaf = flat.get(site.weight)
    if leaf is None or tuple(leaf.shape) != wanted:
        found = "is not there" if leaf is None else f"has shape {tuple(leaf.shape)}"
        raise UserError(f"{site.weight} {found} where the plan has {wanted}; make the plan from these params")
    return leaf
