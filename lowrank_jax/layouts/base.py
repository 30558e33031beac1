"""What a layout is: parameters as a step reads them, and back; on arrays and on shapes alike."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
from jax.sharding import NamedSharding

from lowrank_jax.core.trees import is_coded
from lowrank_jax.core.types import Tree


class Layout(Protocol):
    """How the parameters of a run lie in memory. Files, plans, fingerprints and exports know the canonical tree alone.

    Leaves are arrays or ShapeDtypeStructs, whose shardings are kept; `undo(apply(params))` equals `params`.
    """

    def apply(self, params: Tree) -> dict[str, Any]:
        """The canonical parameters in this layout. A base may not fit twice: hand over the only reference to arrays."""
        ...

    def undo(self, params: Tree) -> dict[str, Any]:
        """The canonical parameters of those in this layout."""
        ...


@dataclasses.dataclass(frozen=True)
class Composed:
    """Several layouts, applied in order and undone in reverse; none leaves the parameters as they are.

    Attributes:
      layouts: the first is applied to the canonical parameters.
    """

    layouts: tuple[Layout, ...] = ()

    def apply(self, params: Tree) -> dict[str, Any]:
        """See `Layout.apply`."""
        held = [params]
        del params  # each layout has the only reference to what the last one gave
        for layout in self.layouts:
            held.append(layout.apply(held.pop()))
        return dict(held.pop())

    def undo(self, params: Tree) -> dict[str, Any]:
        """See `Layout.undo`."""
        held = [params]
        del params
        for layout in reversed(self.layouts):
            held.append(layout.undo(held.pop()))
        return dict(held.pop())


def compose(*layouts: Layout) -> Composed:
    """The layouts one after the other."""
    return Composed(layouts)


def run(function: Callable[[Any], Any], leaves: Any, shardings: Any) -> Any:
    """function(leaves), sharded as said, of arrays; of ShapeDtypeStructs, those of its results.

    Args:
      function: a tree of arrays -> one array, a tuple of them or {name: array}; one object for one computation, as its
        compiled program is kept.
      leaves: a tree of arrays or of ShapeDtypeStructs.
      shardings: of the results: one for all, or {name: one}; None where nothing is said (in a compiled function). Of a
        quantised kernel, one of its parts' shardings.
    """
    if not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(leaves)):
        one = jax.tree.leaves(shardings)[0] if is_coded(shardings) else shardings
        if isinstance(one, NamedSharding):
            return placed(function, shardings)(leaves)
        return function(leaves)
    shapes = jax.eval_shape(function, leaves)
    if isinstance(shardings, dict):
        return {name: _shapes(leaf, shardings[name]) for name, leaf in shapes.items()}
    return _shapes(shapes, shardings)


def sharding_of(leaf: Any) -> Any:
    """The leaf's sharding, None where it has none; of a quantised kernel, one of its parts' shardings."""
    if is_coded(leaf):
        return jax.tree.map(lambda part: getattr(part, "sharding", None), leaf)
    return getattr(leaf, "sharding", None)


def cut(leaf: Any, low: int, high: int, axis: int = 0) -> Any:
    """leaf[low:high] along an axis; of a quantised kernel, whose parts differ in the last one, along that."""
    return run(_cutter(low, high, axis), leaf, sharding_of(leaf))


@functools.cache
def placed(function: Callable[[Any], Any], sharding: Any) -> Any:
    """The function compiled, with every result sharded so: one program a shape."""
    return jax.jit(function, out_shardings=sharding)


def _shapes(tree: Any, shardings: Any) -> Any:
    if is_coded(tree) and is_coded(shardings):
        return jax.tree.map(_shape, tree, shardings)
    return jax.tree.map(lambda leaf: _shape(leaf, shardings), tree)


def _shape(leaf: jax.ShapeDtypeStruct, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


@functools.cache
def _cutter(low: int, high: int, axis: int) -> Callable[[Any], Any]:
    def part(x):
        if is_coded(x):
            assert axis == -1  # along the others its parts are cut, each an array
            return x.columns(low, high)
        index = [slice(None)] * x.ndim
        index[axis] = slice(low, high)
        return x[tuple(index)]

    return part
