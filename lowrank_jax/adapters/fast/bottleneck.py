"""Bottleneck adapters as they run best: products with hand-written gradients, the inside saved by name."""

from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float

from lowrank_jax.adapters import bottleneck
from lowrank_jax.adapters.base import AdapterSpec, Leaf
from lowrank_jax.adapters.fast.aligned import with_zeros
from lowrank_jax.adapters.fast.base import Fast
from lowrank_jax.core.types import Array
from lowrank_jax.ops.products import trained_matmul


def delta(leaf: Leaf, h: Float[Array, "*batch d"], spec: AdapterSpec) -> Float[Array, "*batch d"]:
    """As `bottleneck.delta`, with W_down's product saved under the name "adapter" for `models.parts.stack.POLICIES`."""
    if "norm_scale" in leaf:
        h = bottleneck.layer_norm(h, leaf["norm_scale"], leaf["norm_bias"])
    down, b_down, up, bias = (leaf[n].astype(h.dtype) for n in ("down_kernel", "down_bias", "up_kernel", "up_bias"))
    inside = trained_matmul(h, with_zeros(down, 1)) + with_zeros(b_down, 0)
    inside, up = checkpoint_name(inside, "adapter"), with_zeros(up, 0)
    return trained_matmul(bottleneck.activation(spec)(inside), up) + bias


FAST = Fast(delta, float32=("norm_scale", "norm_bias"))
