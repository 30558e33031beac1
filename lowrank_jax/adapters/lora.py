"""LoRA: y = x W + (alpha / r) x A B, with A [d_in, r] random and B [r, d_out] zero (Hu et al., section 4.1)."""

import math
from typing import Any

from jax.ad_checkpoint import checkpoint_name

from lowrank_jax.adapters import inits
from lowrank_jax.adapters.base import AdapterSpec, Family, Leaf
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.products import trained_matmul
from lowrank_jax.core.types import Array, PRNGKey


def shapes(spec: AdapterSpec) -> dict[str, tuple[int, ...]]:
    """A [d_in, r] and B [r, d_out]: (d_in + d_out) r parameters.

    Raises:
      UserError: r exceeds the smaller side of the kernel, which bounds the rank of A B; or the start refuses r.
    """
    inits.check(spec)
    if spec.rank > min(spec.d_in, spec.d_out):
        raise UserError(
            f"LoRA rank {spec.rank} exceeds the smaller side of a {spec.d_in} x {spec.d_out} kernel; "
            f"choose adapter.rank <= {min(spec.d_in, spec.d_out)}"
        )
    return {"a": (spec.d_in, spec.rank), "b": (spec.rank, spec.d_out)}


def init(key: PRNGKey, spec: AdapterSpec, kernel: Array | None = None) -> dict[str, Array]:
    """A and B as `inits.start` makes them; A random and B = 0, unless the start is made from the kernel."""
    return inits.start(key, spec, scale(spec), kernel)


def delta(leaf: Leaf, x: Array, spec: AdapterSpec, scale: Array | float) -> Array:
    """x A (scale B); x [..., d_in] -> [..., d_out].

    B is scaled as a float32 master: a scale such as 8/3 rounded to bfloat16 would be off by 0.2% of what a merge adds.
    """
    del spec
    hidden = checkpoint_name(trained_matmul(x, leaf["a"].astype(x.dtype)), "adapter")
    return trained_matmul(hidden, (leaf["b"] * scale).astype(x.dtype))


def prepare(leaf: Leaf, spec: AdapterSpec, scale: Array, dtype: Any) -> dict[str, Array]:
    """A and scale * B in `dtype`."""
    del spec
    return {"a": leaf["a"].astype(dtype), "b": (leaf["b"] * scale[..., None, None]).astype(dtype)}


def scale(spec: AdapterSpec) -> float:
    """alpha / r, alpha / sqrt(r) (rsLoRA) or 1."""
    if spec.scaling == "none":
        return 1.0
    return spec.alpha / (math.sqrt(spec.rank) if spec.scaling == "rslora" else spec.rank)


FAMILY = Family("lora", shapes, init, delta, prepare, scale, needs_kernel=inits.changes_base)
