"""Restarts: every N steps adapters are merged into their kernels and begin anew (ReLoRA and ReMoRA).

A merge adds delta to W, draws A again and sets B to 0 (or M to 0, with the next grouping), and resets or prunes the
moments of what was merged. It is one jitted function that donates and returns state and frozen tree. The step is
compiled once, as merges change values of arrays alone.
"""

import dataclasses
import math
import zlib
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp

from lowrank_jax.adapters.base import AdapterSpec, Family, Leaf
from lowrank_jax.adapters.leaves.create import create
from lowrank_jax.adapters.leaves.merge import check_merges, leaves_of
from lowrank_jax.adapters.mora import GROUP
from lowrank_jax.adapters.plan import Plan
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.ranges import Range, check_ranges
from lowrank_jax.core.trees import is_coded
from lowrank_jax.core.types import Array, PRNGKey, Tree
from lowrank_jax.layouts.fused import Groups
from lowrank_jax.layouts.unstacked import Layers
from lowrank_jax.train.optimizer import MERGED
from lowrank_jax.train.state import TrainState

# MoRA's groupings in the order in which they take turns, by the official code's numbers: those of the paper's algorithm
# (appendix B), and those of the code.
CYCLES = {"paper": ("type1", "type2"), "code": ("type1", "type2", "type3", "type4"), "fixed": ()}
FIRST = ("sharing", "type1")  # the grouping with which a cycle begins, under its two names
PRUNED = {"magnitude": 0.99, "random": 0.999}  # the first is of ReLoRA's paper, the second its repository's default
KEY = zlib.crc32(b"restart")  # no step has this number, and none shares a random key with a merge


@dataclasses.dataclass(frozen=True)
class RestartConfig:
    """ReLoRA's restarts (Lialin et al.), with MoRA's ReMoRA (Jiang et al., 5.3 and appendix B).

    Attributes:
      every: N, a merge after steps N, 2 N, ... but not after the last; 0 for a run without restarts.
      reset: what becomes of Adam's moments of the merged adapters; other trained leaves keep theirs. `all`: zero, and
        the bias correction starts again (MoRA's code drops that state); `magnitude`: in each matrix all but the largest
        become zero; `random`: all but a random few (ReLoRA's repository has both); `none`.
      prune: the share that `magnitude` and `random` set to zero; 0 for their own, see PRUNED.
      warmup_steps: W, steps of linear warm-up after a merge.
      schedule: `jagged`, one cosine over the whole run with a warm-up after each merge; `restart`, after each merge the
        same schedule again, from the rate reached, over the steps that are left (what MoRA's README runs); `none`.
      groups: MoRA's next grouping at a merge: the `paper`'s 1, 2, 1, ...; the `code`'s 1, 2, 3, 4, 1, ...; or `fixed`.
    """

    every: Annotated[int, Range(least=0)] = 0
    reset: Literal["all", "magnitude", "random", "none"] = "all"
    prune: Annotated[float, Range(least=0, below=1)] = 0.0
    warmup_steps: Annotated[int, Range(least=0)] = 50
    schedule: Literal["jagged", "restart", "none"] = "jagged"
    groups: Literal["paper", "code", "fixed"] = "paper"

    def __post_init__(self):
        check_ranges(self, "restart")
        changed = [field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]
        if not self.every and changed:
            raise UserError(f"restart.{changed[0]} is set and nothing restarts; set restart.every, or leave it out")
        if self.prune and self.reset not in PRUNED:
            raise UserError(f"restart.prune is not read by restart.reset={self.reset}; take magnitude or random")
        if self.every and self.warmup_steps >= self.every:
            raise UserError(
                f"restart.warmup_steps is {self.warmup_steps} and restart.every {self.every}: the rate would not be "
                "reached between two merges; lower the one or raise the other"
            )

    def due(self, done: int) -> bool:
        """Whether a merge stands between step `done` and the next one."""
        return bool(self.every and done and done % self.every == 0)


def cycling(plan: Plan, groups: str) -> Plan:
    """The plan whose MoRA sites change their grouping at each merge.

    Args:
      plan: the adapters' sites.
      groups: `RestartConfig.groups`.

    Raises:
      UserError: a site's compression is not the grouping with which a cycle begins.
    """
    if not (cycle := CYCLES[groups]):
        return plan
    for site in plan.sites:
        if site.config.method == "mora" and (name := site.config.mora.compression) not in FIRST:
            raise UserError(
                f"restart.groups={groups} changes MoRA's grouping from sharing on, and adapter.mora.compression is "
                f"{name!r}; set restart.groups=fixed, or compression=sharing"
            )
    sites = tuple(
        dataclasses.replace(site, spec=dataclasses.replace(site.spec, cycle=cycle))
        if site.config.method == "mora"
        else site
        for site in plan.sites
    )
    return dataclasses.replace(plan, sites=sites)


def check_restart(config: RestartConfig, plan: Plan, params: Tree, trained: Tree, steps: int) -> None:
    """Refuses a run whose adapters cannot be merged while it goes on.

    Args:
      plan: the adapters' sites.
      params: the base's, as published.
      trained: those of them that are trained.
      steps: of the run.

    Raises:
      UserError: says why, and the way out.
    """
    if not plan.sites:
        raise UserError("restart.every is set and there are no adapters to merge; set adapter.method, or every to 0")
    if config.every >= steps:
        raise UserError(f"restart.every is {config.every} and the run has {steps} steps; lower it, or set it to 0")
    flat, own = flatten(params), flatten(trained)
    check_merges(plan, flat, "restart.every")
    for site in plan.sites:
        if site.family.fold is not None or site.family.needs_kernel(site.spec):
            raise UserError(
                f"restart.every is set and {site.config.method} with init {site.config.init!r} at {site.path} starts "
                "from the kernel that a merge changes; take lora or mora with another adapter.init"
            )
        if site.weight in own:
            raise UserError(f"restart.every merges into frozen weights, and {site.weight} is trained; freeze it")
        if is_coded(flat[site.weight]):
            raise UserError(
                f"restart.every merges into kernels, and base.quantize holds {site.path} as codes, which would round "
                "each merge away; set base.quantize=none"
            )


def make_merge(
    plan: Plan, config: RestartConfig, groups: Groups, start: Callable[[Tree], Any], places: Any = None
) -> Any:
    """merge(state, frozen) -> (state, frozen), jitted; both are donated, and what is returned lies in their buffers.

    Args:
      plan: the sites, after `cycling`.
      config: of the run.
      groups: frozen kernels that lie side by side (`layouts.fused`).
      start: trainable tree -> the optimizer's state before the first step.
      places: the shardings of state and frozen.
    """
    fused = {member: (path, first) for path, parts in groups.items() for member, first in _offsets(parts)}

    def merge(state: TrainState, frozen: Tree) -> tuple[TrainState, dict[str, Any]]:
        key = jax.random.fold_in(jax.random.fold_in(state.key, KEY), state.step // config.every)
        trained, held = flatten(state.trainable), flatten(frozen)
        adapters = {path: leaf for path, leaf in {**trained, **held}.items() if path.startswith("adapters/")}
        variables = {**unflatten(adapters), "scales": frozen["scales"]}
        for site in plan.sites:
            path, first = fused.get(site.path, (site.path, 0))
            weight = f"params/{path}/{site.weight.rpartition('/')[2]}"
            leaf, scale = leaves_of(variables, site)
            scaled, once = site.family.scale_leaf(leaf, scale), jnp.minimum(state.step, 1)
            held[weight] = _added(held[weight], scaled, site.family, site.spec, first, once)
            for name in site.family.numbers(site.spec):
                held[f"scales/{site.path}/{name}"] = (leaf[GROUP] + 1) % len(site.spec.cycle)
        fresh = {f"adapters/{path}": leaf for path, leaf in flatten(create(plan, key)["adapters"]).items()}
        trainable = unflatten({path: fresh.get(path, leaf) for path, leaf in trained.items()})
        held = {path: fresh.get(path, leaf) for path, leaf in held.items()}
        moments = reset(config, state.opt_state, start(trainable), set(fresh), key)
        return state._replace(trainable=trainable, opt_state=moments), unflatten(held)

    # What a reset does not read is kept among the arguments: its buffer takes the result.
    return jax.jit(merge, donate_argnums=(0, 1), out_shardings=places, keep_unused=True)


def _offsets(parts: Any) -> list[tuple[str, int]]:
    """(member, its first column) of a fused kernel's parts."""
    ends = [sum(columns for _, columns in parts[:i]) for i in range(len(parts))]
    return [(member, first) for (member, _), first in zip(parts, ends, strict=True)]


def _added(kernel: Any, leaf: Leaf, family: Family, spec: AdapterSpec, first: int, once: Array) -> Any:
    """The kernel with the update added to its columns from `first` on, a layer at a time and in place.

    Args:
      kernel: [*stack, d_in, n], or the same as `Layers`.
      leaf: scaled, [*stack, ...].
      family, spec: of the site.
      first: see above.
      once: the number 1 as an array: the compiler does not know then that a loop up to it runs once.
    """

    def one(kernel: Array, leaf: Leaf) -> Array:
        delta = family.delta_kernel(leaf, spec)
        old = jax.lax.dynamic_slice_in_dim(kernel, first, spec.d_out, axis=1)
        new = (old.astype(delta.dtype) + delta).astype(kernel.dtype)
        return jax.lax.dynamic_update_slice_in_dim(kernel, new, first, axis=1)

    def of(index: Any) -> dict[str, Array]:
        return {name: value[index] for name, value in leaf.items()}

    if isinstance(kernel, Layers):
        # Outside a loop XLA's CPU backend makes all layers' updates at once, which takes the memory of a second base.
        # So each layer has a loop that runs once, which XLA does not know; the loop's index is part of the layer's
        # number, as XLA would otherwise move the update out of the loop.
        def body_of(layer: int) -> Callable[[Array, Array], Array]:
            return lambda index, each: one(each, of(layer + index))

        return Layers(tuple(jax.lax.fori_loop(0, once, body_of(i), each) for i, each in enumerate(kernel.each)))
    if not spec.stack:
        return one(kernel, leaf)

    def body(index: Array, stacked: Array) -> Array:
        layer = jax.lax.dynamic_index_in_dim(stacked, index, keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(stacked, one(layer, of(index)), index, 0)

    return jax.lax.fori_loop(0, math.prod(spec.stack), body, kernel)


def reset(config: RestartConfig, moments: Any, start: Any, merged: set[str], key: PRNGKey) -> Any:
    """The optimizer's state after a merge.

    Args:
      config: says what goes.
      moments, start: of the optimizer, now and before its first step.
      merged: paths of the trained leaves that were merged.
      key: for `random`.
    """
    if config.reset == "none":
        return moments
    share = config.prune or PRUNED.get(config.reset, 0.0)

    def after(path: Any, now: Array, before: Array) -> Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if config.reset == "all":  # counters too: the merged leaves have an Adam of their own (`make_optimizer`)
            return before if f"/{MERGED}/" in f"/{name}" else now
        if "adapters/" not in name or f"adapters/{name.rpartition('adapters/')[2]}" not in merged:
            return now
        if config.reset == "magnitude":
            return prune_small(now, share)
        return prune_random(now, share, jax.random.fold_in(key, zlib.crc32(name.encode())))

    return jax.tree_util.tree_map_with_path(after, moments, start)


def prune_small(moment: Array, share: float) -> Array:
    """Zero where |moment| is at most the quantile `share` of its matrix; [*stack, m, n]."""
    size = jnp.abs(moment)
    flat = size.reshape(*size.shape[:-2], -1)
    least = jnp.quantile(flat, share, axis=-1)[..., None, None]
    return jnp.where(size > least, moment, 0)


def prune_random(moment: Array, share: float, key: PRNGKey) -> Array:
    """Zero with probability `share`."""
    return jnp.where(jax.random.uniform(key, moment.shape) > share, moment, 0)
