"""LoRA on a table: y = E[id] + (alpha / r) A[id] B, with A [rows, r] zero and B [r, d] random (Hu et al.; loralib).

The start is loralib's and PEFT's, whatever `init` says of kernels: the row's factor is what is zero, so that B, which
all rows share, learns from the first step on. A head that is tied to the table keeps multiplying with E alone, as in
both. Dropout leaves tables alone, as in PEFT.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from lowrank_jax.adapters import lora
from lowrank_jax.adapters.base import AdapterSpec, Family, Leaf
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.types import Array, PRNGKey


def shapes(spec: AdapterSpec) -> dict[str, tuple[int, ...]]:
    """A [rows, r] and B [r, d]: (rows + d) r parameters.

    Raises:
      UserError: r exceeds the smaller side of the table; a start that is made for kernels.
    """
    if spec.config.init not in ("kaiming_uniform", "gaussian"):
        raise UserError(
            f"adapter.init {spec.config.init!r} is a start for kernels; name tables in a config of their own"
        )
    return lora.shapes(spec)


def init(key: PRNGKey, spec: AdapterSpec) -> dict[str, Array]:
    """A = 0, B ~ N(0, 1)."""
    a, b = lora.shapes(spec).values()
    return {"a": jnp.zeros(a, jnp.float32), "b": jax.random.normal(key, b, jnp.float32)}


def delta(leaf: Leaf, ids: Int[Array, "*batch"], spec: AdapterSpec) -> Float[Array, "*batch d"]:
    """A[ids] B, in the leaf's dtype. An id past the table gives NaN, as `layers.Embedding` does."""
    del spec
    return jnp.take(leaf["a"], ids, axis=0, mode="fill") @ leaf["b"]


FAMILY = Family("embedding", shapes, init, delta, scaled=("b",), scale=lora.scale, place="table")
