"""Type names shared by every floor."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

Array = jax.Array
PRNGKey = jax.Array
Tree = Mapping[str, Any]  # nested dicts with arrays (or ShapeDtypeStructs) as leaves
Rules = Sequence[tuple[str, Any]]  # (regular expression, value) pairs; the first that matches a whole path wins
Report = Callable[[int, int], None]  # is told of long work: (done since the last call, all there is to do)
ApplyFn = Callable[..., Any]  # apply_fn(variables, *inputs, rngs=None, method=None, **kwargs) -> outputs
# (variables, batch, rngs) -> (loss sum, {"weight", "correct", "tokens": sums}); sums, so that micro-batches add up
# exactly. "tokens" is what speed is counted in, absent where every weight is a token's.
Objective = Callable[[Tree, dict[str, Array], dict | None], tuple[Array, dict[str, Array]]]
