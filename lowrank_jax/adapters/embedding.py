"""LoRA on a table: y = E[id] + (alpha / r) A[id] B, with A [rows, r] zero and B [r, d] random (Hu et al.; loralib).

The start is loralib's and PEFT's, whatever `init` says of kernels: the row's factor is what is zero, so that B, which
all rows share, learns from the first step on. A head that is tied to the table keeps multiplying with E alone, as in
both. Dropout leaves tables alone, as in PEFT.
"""

from typing import Any

import jax
import jax.numpy as jnp

from lowrank_jax.adapters import lora
from lowrank_jax.adapters.base import AdapterSpec, Family, Leaf
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.types import Array, PRNGKey


def shapes(spec: AdapterSpec) -> dict[str, tuple[int, ...]]:
    """A [rows, r] and B [r, d]: (rows + d) r parameters.

    Raises:
      UserError: r exceeds the smaller side of the table; a start that is made for kernels.
    """
    if spec.init not in ("kaiming_uniform", "gaussian"):
        raise UserError(f"adapter.init {spec.init!r} is a start for kernels; name tables in a config of their own")
    return lora.shapes(spec)


def init(key: PRNGKey, spec: AdapterSpec) -> dict[str, Array]:
    """A = 0, B ~ N(0, 1)."""
    a, b = lora.shapes(spec).values()
    return {"a": jnp.zeros(a, jnp.float32), "b": jax.random.normal(key, b, jnp.float32)}


def delta(leaf: Leaf, ids: Array, spec: AdapterSpec, scale: Array | float) -> Array:
    """A[ids] (scale B); ids int [...] -> [..., d]. An id past the table gives NaN, as `layers.Embedding` does."""
    del spec
    return jnp.take(leaf["a"], ids, axis=0, mode="fill") @ (leaf["b"] * scale)


def prepare(leaf: Leaf, spec: AdapterSpec, scale: Array, dtype: Any) -> dict[str, Array]:
    """As `lora.prepare`."""
    return lora.prepare(leaf, spec, scale, dtype)


FAMILY = Family("lora", shapes, init, delta, prepare, lora.scale, place="table")
