"""Adapters of kernels that a model has fused: one branch at the wide product for all of its parts."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from lowrank_jax.adapters.base import Leaf
from lowrank_jax.adapters.fast import get_fast
from lowrank_jax.adapters.plan import Plan
from lowrank_jax.adapters.sites import Site
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.types import Array
from lowrank_jax.layouts.fused import Groups


@dataclasses.dataclass(frozen=True)
class Group:
    """The sites among the parts of a fused kernel W = [W_1 W_2 ...].

    Attributes:
      path: of the fused module.
      sites: of each part, None where it has no adapter.
      columns: of each part.
    """

    path: str
    sites: tuple[Site | None, ...]
    columns: tuple[int, ...]

    @property
    def dropout(self) -> float:
        """Rate on the branch's input: one mask for all parts, as loralib's MergedLinear draws it."""
        return next(site.config.dropout for site in self.sites if site)

    @property
    def tiled(self) -> bool:
        """`Fast.tiled`, of all parts that have an adapter."""
        return all(get_fast(site.family).tiled(site.spec) for site in self.sites if site)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{name: shape} of what `delta` reads, of one layer."""
        each = [site.family.leaf(site.spec) if site else None for site in self.sites]
        if join := self._join():
            made = jax.eval_shape(lambda leaves: join(leaves, self.columns), each)
            return {name: leaf.shape for name, leaf in made.items()}
        return {f"{i}_{name}": leaf.shape for i, found in enumerate(each) if found for name, leaf in found.items()}

    def join(self, leaves: Mapping[str, Leaf]) -> dict[str, Array]:
        """The parts' scaled and cast leaves (by site path, stacked over layers) -> what `delta` reads."""
        each = [leaves[site.path] if site else None for site in self.sites]
        if join := self._join():
            return join(each, self.columns)
        return {f"{i}_{name}": leaf for i, found in enumerate(each) if found for name, leaf in found.items()}

    def delta(self, leaf: Leaf, x: Array) -> Array:
        """[delta_1(x) delta_2(x) ...], zero at parts without an adapter; x [.., d_in] -> [.., sum of columns]."""
        if self._join():
            first = next(site for site in self.sites if site)
            return get_fast(first.family).delta(leaf, x, first.spec)
        parts = []
        for i, (site, columns) in enumerate(zip(self.sites, self.columns, strict=True)):
            if site is None:
                parts.append(jnp.zeros((*x.shape[:-1], columns), x.dtype))
            else:
                own = {name: leaf[f"{i}_{name}"] for name in site.family.leaf(site.spec)}
                parts.append(get_fast(site.family).delta(own, x, site.spec))
        return jnp.concatenate(parts, axis=-1)

    def _join(self) -> Callable[..., dict[str, Array]] | None:
        """`Fast.join`, where all sites are of one family that has it and it pays."""
        sites = [site for site in self.sites if site]
        fast = get_fast(sites[0].family)
        if fast.join is None or any(site.family is not sites[0].family for site in sites):
            return None
        return fast.join if fast.joins([site.spec for site in sites], self.columns) else None


def find_groups(plan: Plan, groups: Groups) -> dict[str, Group]:
    """The fused modules that carry adapters, by path.

    Raises:
      UserError: a family that needs a part's own kernel or product; unlike dropout rates at parts of one module.
    """
    sites = {site.path: site for site in plan.sites}
    found = {}
    for path, members in groups.items():
        group = Group(path, tuple(sites.get(member) for member, _ in members), tuple(n for _, n in members))
        adapted = [site for site in group.sites if site]
        for site in adapted:
            if site.family.place != "kernel" or site.family.apply is not None:
                raise UserError(f"{site.config.method} at {site.path} reads that kernel alone; set base.fused to false")
        if len({site.config.dropout for site in adapted}) > 1:
            raise UserError(f"the adapters of {path} have unlike dropout rates; set base.fused to false")
        if adapted:
            found[path] = group
    return found
