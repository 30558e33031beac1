"""Type names shared by every floor."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

Array = jax.Array
PRNGKey = jax.Array
Device = Any  # a jax.Device, which is no type to a checker
Tree = Mapping[str, Any]  # nested dicts with arrays (or ShapeDtypeStructs) as leaves
Part = tuple[slice, ...]  # a part of a tensor: a start and a stop along each axis
Rules = Sequence[tuple[str, Any]]  # (regular expression, value) pairs; the first that matches a whole path wins
Report = Callable[[int, int], None]  # reports progress of long work: (done since the last call, total)
ApplyFn = Callable[..., Any]  # apply_fn(variables, *inputs, rngs=None, method=None, **kwargs) -> outputs
# (variables, batch, rngs) -> (loss sum, {"weight", "correct", "tokens": sums}); sums, which add up exactly over
# micro-batches. "tokens" is what speed is counted in; it is absent where every weight belongs to a token.
Objective = Callable[[Tree, dict[str, Array], dict | None], tuple[Array, dict[str, Array]]]


SHOWN = "shown"  # key of a sample's prompt as the terminal shows it, which no record has


class Decoded(NamedTuple):
    """What an evaluation that scores texts and shows them returns: metrics by name, and each text as {name: value}."""

    values: dict[str, float]
    texts: Sequence[Mapping[str, Any]]
