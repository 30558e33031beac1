"""A stack of layers in segments: "layers" [L, ...] as "layers_0_9" [10, ...] and "layers_10_11" [2, ...], and back.

A rule freezes or trains whole leaves, so layers that are to differ must lie in leaves of their own. Segments are a
layout of the run alone: files, fingerprints and exports keep "layers".
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.types import Tree

STACK = "layers"
NAME = re.compile(rf"{STACK}_(\d+)_(\d+)")


def segments(layers: int, cuts: Sequence[int] = ()) -> tuple[tuple[str, int, int], ...]:
    """(name, first layer, end) of each segment; the one stack "layers" without cuts.

    Args:
      layers: how many there are.
      cuts: numbers of the layers that begin a new segment, rising, each between 1 and layers - 1.

    Raises:
      UserError: cuts that do not rise within the stack.
    """
    bounds = (0, *cuts, layers)
    if any(low >= high for low, high in itertools.pairwise(bounds)):
        raise UserError(f"cuts {list(cuts)} do not divide {layers} layers; give rising numbers from 1 to {layers - 1}")
    if not cuts:
        return ((STACK, 0, layers),)
    return tuple((f"{STACK}_{low}_{high - 1}", low, high) for low, high in itertools.pairwise(bounds))


def split_layers(tree: Tree, cuts: Sequence[int]) -> dict[str, Any]:
    """A tree with "layers" at its top, its stacked leaves cut into segments; unchanged without cuts.

    Leaves are arrays or ShapeDtypeStructs, whose sharding is kept (a layer axis is never split over devices).
    """
    if not cuts:
        return dict(tree)
    split = {name: node for name, node in tree.items() if name != STACK}
    layers = jax.tree.leaves(tree[STACK])[0].shape[0]
    for name, low, high in segments(layers, cuts):
        split[name] = jax.tree.map(lambda leaf, low=low, high=high: _cut(leaf, low, high), tree[STACK])
    return split


def join_layers(tree: Tree) -> dict[str, Any]:
    """The inverse of `split_layers`, on arrays.

    Raises:
      ValueError: segments that do not follow one another from layer 0 on.
    """
    found = sorted((int(match[1]), int(match[2]), name) for name in tree if (match := NAME.fullmatch(name)))
    if not found:
        return dict(tree)
    if [low for low, _, _ in found] != [0, *(high + 1 for _, high, _ in found[:-1])]:
        raise ValueError(f"segments {[name for *_, name in found]} are no whole stack")
    parts = [tree[name] for *_, name in found]
    joined = {name: node for name, node in tree.items() if not NAME.fullmatch(name)}
    return joined | {STACK: jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)}


def overlay(tree: Tree, trained: Tree) -> dict[str, Any]:
    """`tree` with the leaves of `trained` in place of its own; those of a segment go into their layers of "layers".

    Raises:
      UserError: a trained leaf has no place in the tree.
    """
    flat = dict(flatten(tree))
    for path, leaf in flatten(trained).items():
        top, _, rest = path.partition("/")
        match, whole = NAME.fullmatch(top), f"{STACK}/{rest}"
        if path in flat:
            flat[path] = leaf
        elif match and whole in flat and int(match[2]) < flat[whole].shape[0]:
            stacked = np.array(flat[whole])
            stacked[int(match[1]) : int(match[2]) + 1] = leaf
            flat[whole] = stacked
        else:
            raise UserError(f"{path} was trained, and this base does not have it; check the base")
    return unflatten(flat)


def _cut(leaf: Any, low: int, high: int) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((high - low, *leaf.shape[1:]), leaf.dtype, sharding=leaf.sharding)
    return leaf[low:high]
