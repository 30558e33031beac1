"""A stack of layers as one array a layer, for models whose layers are no loop: [L, ...] as `Layers` of L, and back.

A slice of a stack is not free where it is read by a kernel of a library: XLA copies it out, or wraps the product in a
thunk that finds the slice anew before every step (LLaMA-2-7B shape, 766 products, one H100: 5 ms a step in which the
device waits, and no CUDA graph that could be replayed). An array of its own is read in place. A layout of the run
alone, as `layouts.fused` and `layouts.segments` are.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from lowrank_jax.core.paths import SEPARATOR, flatten, unflatten
from lowrank_jax.core.trees import is_coded
from lowrank_jax.core.types import ApplyFn, Array, Tree
from lowrank_jax.layouts.base import placed, run
from lowrank_jax.layouts.segments import NAME, STACK


@functools.partial(jax.tree_util.register_dataclass, data_fields=["each"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Layers:
    """One stacked leaf [L, ...] as L arrays; a leaf of a parameter tree.

    Attributes:
      each: [...] arrays, ShapeDtypeStructs or quantised kernels of them, all alike, layer 0 first.
    """

    each: tuple[Any, ...]


class Unstacked:
    """Stacked leaves [L, ...] <-> `Layers` of L. A leaf is stacked where "layers" or a segment of it is its top.

    Quantised kernels stay as they are, except those of FP8 codes, which a library's product reads. Of no leaf but the
    one in work both forms exist.
    """

    def apply(self, params: Tree) -> dict[str, Any]:
        """See `base.Layout.apply`."""
        flat = flatten(params)
        del params
        taken = {}
        for path in list(flat):
            leaf, top = flat.pop(path), path.partition(SEPARATOR)[0]
            stacked = (top == STACK or NAME.fullmatch(top)) and (not is_coded(leaf) or leaf.splits)
            taken[path] = _each(leaf) if stacked else leaf
            del leaf
        return unflatten(taken)

    def undo(self, params: Tree) -> dict[str, Any]:
        """See `base.Layout.undo`; what is read of a stack a layer at a time is never formed in a compiled step."""
        flat = flatten(params)
        return unflatten({p: _stack(leaf) if isinstance(leaf, Layers) else leaf for p, leaf in flat.items()})


def reading(apply_fn: ApplyFn) -> ApplyFn:
    """`apply_fn` for variables whose "params" may hold `Layers`."""

    def read(variables, *inputs, **kwargs):
        return apply_fn({**variables, "params": Unstacked().undo(variables["params"])}, *inputs, **kwargs)

    return read


def compile_unstack(params: Tree) -> None:
    """Compiles what `Unstacked.apply` ran, or is to run, on arrays.

    Args:
      params: in this layout, with ShapeDtypeStructs with shardings.
    """
    for leaf in flatten(params).values():
        if isinstance(leaf, Layers):
            count = len(leaf.each)
            for first in jax.tree.leaves(leaf.each[0]):
                stacked = jax.ShapeDtypeStruct((count, *first.shape), first.dtype, sharding=_stacked(first.sharding))
                placed(_split(count), first.sharding).lower(stacked).compile()


def _each(leaf: Any) -> Layers:
    if is_coded(leaf):
        parts, structure = jax.tree.flatten(leaf)
        each = zip(*(_each(part).each for part in parts), strict=True)
        return Layers(tuple(structure.unflatten(layer) for layer in each))
    count, sharding = leaf.shape[0], getattr(leaf, "sharding", None)
    if isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    return Layers(run(_split(count), leaf, sharding))


def _stack(layers: Layers) -> Any:
    if is_coded(layers.each[0]):
        parts = zip(*(jax.tree.leaves(layer) for layer in layers.each), strict=True)
        return jax.tree.structure(layers.each[0]).unflatten(_stack(Layers(part)) for part in parts)
    return run(jnp.stack, layers.each, _stacked(getattr(layers.each[0], "sharding", None)))


def _stacked(sharding: Any) -> Any:
    """The sharding of a stack, of a layer's."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    return NamedSharding(sharding.mesh, sharding.spec and PartitionSpec(None, *sharding.spec))


@functools.cache  # one program for all leaves of a shape
def _split(count: int) -> Any:
    def split(stacked: Array) -> tuple[Array, ...]:
        return tuple(stacked[i] for i in range(count))

    return jax.jit(split)
