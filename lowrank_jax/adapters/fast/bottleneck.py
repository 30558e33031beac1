"""Bottleneck adapters as they run best: products with hand-written gradients, the inside saved by name."""

from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float

from lowrank_jax.adapters import bottleneck
from lowrank_jax.adapters.base import AdapterSpec, Leaf
from lowrank_jax.adapters.fast.base import Fast
from lowrank_jax.core.types import Array
from lowrank_jax.ops.products import trained_matmul


def delta(leaf: Leaf, h: Float[Array, "*batch d"], spec: AdapterSpec) -> Float[Array, "*batch d"]:
    """As `bottleneck.delta`, with W_down's product saved under the name "adapter" for `models.stack.POLICIES`."""
    if "norm_scale" in leaf:
        h = bottleneck.layer_norm(h, leaf["norm_scale"], leaf["norm_bias"])
    inside = trained_matmul(h, leaf["down_kernel"].astype(h.dtype)) + leaf["down_bias"].astype(h.dtype)
    inside = checkpoint_name(inside, "adapter")
    up, bias = (leaf[name].astype(h.dtype) for name in ("up_kernel", "up_bias"))
    return trained_matmul(bottleneck.activation(spec)(inside), up) + bias


FAST = Fast(delta, float32=("norm_scale", "norm_bias"))
