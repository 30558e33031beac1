"""How many directions a run's total update of each kernel has: singular values of final minus initial weights."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowrank_jax.core.paths import flatten
from lowrank_jax.core.types import Array, Tree
from lowrank_jax.ops.quantized import dense

ABOVE = 0.1  # MoRA, Fig. 5


def counts(initial: Tree, final: Tree, above: float = ABOVE) -> dict[str, np.ndarray]:
    """How many singular values of each layer's W_final - W_initial lie above a number (MoRA, section 6).

    Args:
      initial, final: params under canonical names; kernels of stacked layers are read, [layers, d_in, d_out].
      above: the number.

    Returns:
      {path of the module: [layers] int32}.
    """
    before, found = flatten(initial), {}
    for path, kernel in flatten(final).items():
        if path.endswith("/kernel") and path.startswith("layers/"):
            found[path.removesuffix("/kernel")] = np.asarray(_counts(before[path], kernel, above))
    return found


def by_kind(counted: Mapping[str, np.ndarray]) -> dict[str, float]:
    """{"query": mean over the layers}, by the last part of the module's path."""
    kinds: dict[str, list[np.ndarray]] = {}
    for path, values in counted.items():
        kinds.setdefault(path.rpartition("/")[2], []).append(values)
    return {kind: float(np.concatenate(each).mean()) for kind, each in kinds.items()}


@functools.partial(jax.jit, static_argnums=2)
def _counts(before: Any, after: Any, above: float) -> Array:
    def of_layer(pair):
        old, new = (dense(each, jnp.float32) for each in pair)
        return jnp.sum(jnp.linalg.svd(new - old, compute_uv=False) > above)

    return jax.lax.map(of_layer, (before, after))
