"""How many directions a run's total update of each kernel has: singular values of final minus initial weights."""

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
    return {path: (np.asarray(s) > above).sum(-1, dtype=np.int32) for path, s in differences(initial, final).items()}


def differences(initial: Tree, final: Tree) -> dict[str, Array]:
    """{path of the module: singular values [layers, min(d_in, d_out)] of each layer's W_final - W_initial}."""
    before, found = flatten(initial), {}
    for path, kernel in flatten(final).items():
        if path.endswith("/kernel") and path.startswith("layers/"):
            found[path.removesuffix("/kernel")] = _differences(before[path], kernel)
    return found


def size_and_rank(values: Mapping[str, Array]) -> dict[str, Array]:
    """{"norm": Frobenius norm of all updates together, "effective_rank": mean of exp(entropy) over what changed}.

    The entropy is that of s / sum(s), s the singular values of one kernel's update (Roy & Vetterli, 2007): k equal
    values and no others have the effective rank k. Layers whose update is zero are left out; 0 where all are.

    Args:
      values: {path: s [..., n]}.
    """
    ranks = []
    for s in values.values():
        total = jnp.sum(s, -1, keepdims=True)
        share = s / jnp.where(total > 0, total, 1)
        entropy = -jnp.sum(share * jnp.log(jnp.where(share > 0, share, 1)), -1)
        ranks.append(jnp.where(total[..., 0] > 0, jnp.exp(entropy), 0).ravel())
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(s)) for s in values.values()))
    found = jnp.concatenate(ranks)
    return {"norm": norm, "effective_rank": jnp.sum(found) / jnp.maximum(jnp.sum(found > 0), 1)}


def by_kind(counted: Mapping[str, np.ndarray]) -> dict[str, float]:
    """{"query": mean over the layers}, by the last part of the module's path."""
    kinds: dict[str, list[np.ndarray]] = {}
    for path, values in counted.items():
        kinds.setdefault(path.rpartition("/")[2], []).append(values)
    return {kind: float(np.concatenate(each).mean()) for kind, each in kinds.items()}


@jax.jit
def _differences(before: Any, after: Any) -> Array:
    def of_layer(pair):
        old, new = (dense(each, jnp.float32) for each in pair)
        return jnp.linalg.svd(new - old, compute_uv=False)

    return jax.lax.map(of_layer, (before, after))
