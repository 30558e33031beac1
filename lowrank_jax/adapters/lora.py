"""LoRA: y = x W + (alpha / r) x A B, with A [d_in, r] random and B [r, d_out] zero (Hu et al., section 4.1)."""

import math

from jaxtyping import Float

from lowrank_jax.adapters.base import AdapterSpec, Family, Leaf
from lowrank_jax.adapters.leaves import inits
from lowrank_jax.core.errors import UserError
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


def init(key: PRNGKey, spec: AdapterSpec, kernel: Float[Array, "d_in d_out"] | None = None) -> dict[str, Array]:
    """A random and B = 0, unless `config.init` starts from the kernel: see `inits.start`."""
    return inits.start(key, spec, scale(spec), kernel)


def delta(leaf: Leaf, x: Float[Array, "*batch d_in"], spec: AdapterSpec) -> Float[Array, "*batch d_out"]:
    """x A B.

    Args:
      leaf: A and B; the scale is in B, multiplied as float32: 8/3 in bfloat16 is 0.2% off what a merge adds.
      x: [..., d_in]; the products are in its dtype.
      spec: the site.
    """
    del spec
    return x @ leaf["a"].astype(x.dtype) @ leaf["b"].astype(x.dtype)


def scale(spec: AdapterSpec) -> float:
    """alpha / r, alpha / sqrt(r) (rsLoRA) or 1."""
    if spec.config.scaling == "none":
        return 1.0
    return spec.alpha / (math.sqrt(spec.rank) if spec.config.scaling == "rslora" else spec.rank)


FAMILY = Family("lora", shapes, init, delta, scaled=("b",), scale=scale, needs_kernel=inits.changes_base)
