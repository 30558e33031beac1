"""Bottleneck adapters: h + W_up f(W_down h + b_down) + b_up, in the places of Houlsby, Pfeiffer and Lin.

* houlsby (Adapter-H; Houlsby et al., 2019): at the ends of attention and MLP, before the residual sum.
* lin (Adapter-L; Lin et al., 2020): at the end of the MLP, reading a LayerNorm of its own: h + W_up f(W_down LN(h)).
  "Only after the MLP module and after a LayerNorm" (Hu et al., 5.1), so h is what the MLP gives.
* pfeiffer (Adapter-P; Pfeiffer et al., 2021): at the norm behind the MLP, for post-norm models. With s the MLP's
  output plus the block's input, LN(s + W_up f(W_down LN(s))): both times the model's own frozen norm.

An adapter has 2 d r + r + d parameters, and lin's norm 2 d (Hu et al., 5.1). W_down ~ N(0, init_std^2); W_up and the
biases are zero, so the model starts as the base is, exactly. (Houlsby et al. draw both matrices near zero, which starts
near the base; with W_up = 0 the first step moves W_up alone, as it moves B alone in LoRA.)
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lowrank_jax.adapters.base import AdapterSpec, Family, Leaf
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.types import Array, PRNGKey
from lowrank_jax.ops.products import trained_matmul

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "swish": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "tanh": jnp.tanh,
}
EPS = 1e-5  # of lin's LayerNorm: torch's default


def shapes(spec: AdapterSpec, norm: bool = False) -> dict[str, tuple[int, ...]]:
    """W_down [d, r], b_down [r], W_up [r, d], b_up [d]: 2 d r + r + d; with a norm 2 d more.

    Raises:
      UserError: r exceeds d, which is no bottleneck.
    """
    width, rank = spec.d_out, spec.rank
    if rank > width:
        raise UserError(f"a bottleneck of {rank} exceeds the width {width}; choose adapter.rank <= {width}")
    found = {"down_kernel": (width, rank), "down_bias": (rank,), "up_kernel": (rank, width), "up_bias": (width,)}
    return found | ({"norm_scale": (width,), "norm_bias": (width,)} if norm else {})


def init(key: PRNGKey, spec: AdapterSpec, norm: bool = False) -> dict[str, Array]:
    """W_down ~ N(0, init_std^2), W_up and biases 0; the norm's scale 1."""
    leaf = {name: jnp.zeros(shape, jnp.float32) for name, shape in shapes(spec, norm).items()}
    leaf["down_kernel"] = spec.init_std * jax.random.normal(key, leaf["down_kernel"].shape, jnp.float32)
    return leaf | ({"norm_scale": jnp.ones(spec.d_out, jnp.float32)} if norm else {})


def delta(leaf: Leaf, x: Array, spec: AdapterSpec, scale: Array | float, activation: str, norm: bool = False) -> Array:
    """scale (W_up f(W_down x + b_down) + b_up), of LN(x) with a norm; x [..., d] -> [..., d] in x's dtype."""
    name = activation if spec.bottleneck.activation == "family" else spec.bottleneck.activation
    if norm:
        x = layer_norm(x, leaf["norm_scale"], leaf["norm_bias"])
    hidden = trained_matmul(x, leaf["down_kernel"].astype(x.dtype)) + leaf["down_bias"].astype(x.dtype)
    hidden = checkpoint_name(hidden, "adapter")
    up, bias = ((leaf[part] * scale).astype(x.dtype) for part in ("up_kernel", "up_bias"))
    return trained_matmul(ACTIVATIONS[name](hidden), up) + bias


def layer_norm(x: Array, scale: Array, bias: Array) -> Array:
    """(x - mean(x)) / sqrt(var(x) + eps) * scale + bias, in float32 and returned in x's dtype."""
    wide = x.astype(jnp.promote_types(jnp.float32, x.dtype))
    wide = wide - wide.mean(-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + EPS)
    return (wide * scale + bias).astype(x.dtype)


def prepare(leaf: Leaf, spec: AdapterSpec, scale: Array, dtype: Any) -> dict[str, Array]:
    """Products and biases in `dtype`, those of W_up times the scale; the norm's as they are."""
    del spec
    factors = {"up_kernel": scale[..., None, None], "up_bias": scale[..., None]}
    scaled = {name: value * factors.get(name, 1) for name, value in leaf.items()}
    return {name: value if name.startswith("norm") else value.astype(dtype) for name, value in scaled.items()}


def scale(spec: AdapterSpec) -> float:
    """1: no paper scales these adapters."""
    del spec
    return 1.0


def _family(name: str, activation: str, place: str, sites: tuple[tuple[str, str], ...], norm: bool = False) -> Family:
    return Family(
        name,
        functools.partial(shapes, norm=norm),
        functools.partial(init, norm=norm),
        functools.partial(delta, activation=activation, norm=norm),
        prepare,
        scale,
        place=place,
        sites=sites,
    )


HOULSBY = _family("houlsby", "swish", "output", (("attention", "attention/out"), ("mlp", "mlp/down")))
PFEIFFER = _family("pfeiffer", "relu", "norm", (("mlp_norm", "mlp/down"),))
LIN = _family("lin", "relu", "output", (("mlp", "mlp/down"),), norm=True)
FAMILIES = (HOULSBY, PFEIFFER, LIN)
