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
from lowrank_jax.layouts.fused import Groups, fuse
from lowrank_jax.layouts.segments import NAME, STACK


@functools.partial(jax.tree_util.register_dataclass, data_fields=["each"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Layers:
    """One stacked leaf [L, ...] as L arrays; a leaf of a parameter tree.

    Attributes:
      each: [...] arrays or ShapeDtypeStructs, all alike, layer 0 first.
    """

    each: tuple[Any, ...]


def lay_out(params: Tree, groups: Groups, unrolled: bool) -> dict[str, Any]:
    """{"params": frozen parameters as a step reads them}; nothing where none is frozen.

    Args:
      params: arrays or ShapeDtypeStructs. A base may not fit twice: hand over the only reference to arrays.
      groups: whose kernels come to lie side by side (`layouts.fused`).
      unrolled: the layers are no loop, and become arrays of their own.

    Raises:
      UserError: a kernel of a group is not there; see `layouts.fused.fuse`.
    """
    if groups:
        params = fuse(params, groups)
    if unrolled:
        flat = flatten(params)
        del params
        params = unstack(flat)
    return {"params": params} if params else {}


def unstack(flat: dict[str, Any]) -> dict[str, Any]:
    """The nested tree of a flat one ({path: leaf}), each stacked leaf as `Layers`; `restack` is the inverse.

    A leaf is stacked where "layers" or a segment of it is its top. Quantised kernels stay as they are.

    Args:
      flat: arrays or ShapeDtypeStructs; emptied on the way, so that of no leaf but the one in work both forms exist.
    """
    taken = {}
    for path in list(flat):
        leaf, top = flat.pop(path), path.partition(SEPARATOR)[0]
        stacked = (top == STACK or NAME.fullmatch(top)) and not is_coded(leaf)
        taken[path] = _each(leaf) if stacked else leaf
        del leaf
    return unflatten(taken)


def restack(tree: Tree) -> dict[str, Any]:
    """Every `Layers` as one array [L, ...]; what is read of it a layer at a time is never formed in a compiled step."""
    flat = flatten(tree)
    return unflatten({p: jnp.stack(leaf.each) if isinstance(leaf, Layers) else leaf for p, leaf in flat.items()})


def reading_layers(apply_fn: ApplyFn) -> ApplyFn:
    """`apply_fn` for variables whose "params" hold `Layers`."""

    def read(variables, *inputs, **kwargs):
        return apply_fn({**variables, "params": restack(variables["params"])}, *inputs, **kwargs)

    return read


def compile_unstack(params: Tree) -> None:
    """Compiles what `unstack` ran, or is to run, on arrays.

    Args:
      params: of `unstack`, with ShapeDtypeStructs with shardings.
    """
    for leaf in flatten(params).values():
        if isinstance(leaf, Layers):
            first, count = leaf.each[0], len(leaf.each)
            spec = first.sharding.spec and PartitionSpec(None, *first.sharding.spec)
            sharding = NamedSharding(first.sharding.mesh, spec)
            stacked = jax.ShapeDtypeStruct((count, *first.shape), first.dtype, sharding=sharding)
            _split(count, first.sharding).lower(stacked).compile()


def _each(leaf: Any) -> Layers:
    count, sharding = leaf.shape[0], getattr(leaf, "sharding", None)
    if isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return Layers((jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=sharding),) * count)
    return Layers(_split(count, sharding)(leaf))


@functools.cache  # one program for all leaves of a shape
def _split(count: int, sharding: Any) -> Any:
    def split(stacked: Array) -> tuple[Array, ...]:
        return tuple(stacked[i] for i in range(count))

    return jax.jit(split, out_shardings=sharding)
