"""A stack of layers in segments: "layers" [L, ...] as "layers_0_9" [10, ...] and "layers_10_11" [2, ...], and back.

A rule freezes or trains whole leaves, so layers that are to differ must lie in leaves of their own. Segments are a
layout of the run alone: files, fingerprints and exports keep "layers".
"""

import dataclasses
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
from lowrank_jax.layouts.base import cut, run

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


@dataclasses.dataclass(frozen=True)
class Segments:
    """ "layers" at the top of a tree <-> its segments; nothing changes without cuts.

    Attributes:
      cuts: numbers of the layers that begin a new segment; see `segments`. A layer axis is never split over devices.
    """

    cuts: Sequence[int] = ()

    def apply(self, params: Tree) -> dict[str, Any]:
        """See `base.Layout.apply`."""
        if not self.cuts:
            return dict(params)
        split = {name: node for name, node in params.items() if name != STACK}
        layers = jax.tree.leaves(params[STACK])[0].shape[0]
        for name, low, high in segments(layers, self.cuts):
            split[name] = jax.tree.map(lambda leaf, low=low, high=high: cut(leaf, low, high), params[STACK])
        return split

    def undo(self, params: Tree) -> dict[str, Any]:
        """See `base.Layout.undo`; joins what segments there are, whatever the cuts.

        Raises:
          ValueError: segments that do not follow one another from layer 0 on.
        """
        found = sorted((int(match[1]), int(match[2]), name) for name in params if (match := NAME.fullmatch(name)))
        if not found:
            return dict(params)
        if [low for low, _, _ in found] != [0, *(high + 1 for _, high, _ in found[:-1])]:
            raise ValueError(f"segments {[name for *_, name in found]} are no whole stack")
        parts = [params[name] for *_, name in found]
        joined = {name: node for name, node in params.items() if not NAME.fullmatch(name)}
        return joined | {STACK: jax.tree.map(_join, *parts)}


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


def _join(*leaves: Any) -> Any:
    return run(jnp.concatenate, leaves, getattr(leaves[0], "sharding", None))
