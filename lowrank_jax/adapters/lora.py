"""LoRA: y = x W + (alpha / r) x A B, with A [d_in, r] random and B [r, d_out] zero (Hu et al., section 4.1)."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from lowrank_jax.adapters import inits
from lowrank_jax.adapters.base import AdapterSpec, Family, Leaf
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.types import Array, PRNGKey
from lowrank_jax.ops.products import trained_matmul
from lowrank_jax.ops.saved import saved_product

# An H100 reads and writes an output's 2 + 2 bytes in the time of 526 multiply-adds (3.0 TB/s, 790 TFLOP/s); half that.
JOINED_RANK = 256


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
    hidden = saved_product(trained_matmul(x, leaf["a"].astype(x.dtype)), "adapter")
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


def join(leaves: Sequence[Leaf | None], columns: Sequence[int]) -> dict[str, Array]:
    """A = [A_1 A_2 ...] and B block-diagonal: x A B = [x A_1 B_1, x A_2 B_2, ...], with two thin products for all.

    Args:
      leaves: of `prepare`, A [.., d, r_i] and B [.., r_i, n_i]; None leaves its columns zero.
      columns: n_i.
    """
    rows, first, total = [], 0, sum(columns)
    for leaf, width in zip(leaves, columns, strict=True):
        if leaf is not None:
            around = [(0, 0)] * (leaf["b"].ndim - 1) + [(first, total - first - width)]
            rows.append(jnp.pad(leaf["b"], around))
        first += width
    return {"a": jnp.concatenate([leaf["a"] for leaf in leaves if leaf], -1), "b": jnp.concatenate(rows, -2)}


def joins(specs: Sequence[AdapterSpec], columns: Sequence[int]) -> bool:
    """Whether the zeros of a block-diagonal B are free: up to JOINED_RANK its bytes bound the branch, not FLOPs."""
    del columns
    return sum(spec.rank for spec in specs) <= JOINED_RANK


FAMILY = Family("lora", shapes, init, delta, prepare, scale, join=join, joins=joins, needs_kernel=inits.changes_base)
