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

import jax
import jax.numpy as jnp
from jaxtyping import Float

from lowrank_jax.adapters.base import AdapterSpec, Family, Leaf
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.types import Array, PRNGKey

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "swish": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "tanh": jnp.tanh,
}
OWN = {"houlsby": "swish", "pfeiffer": "relu", "lin": "relu"}  # each family's activation
EPS = 1e-5  # of lin's LayerNorm: torch's default


def shapes(spec: AdapterSpec) -> dict[str, tuple[int, ...]]:
    """W_down [d, r], b_down [r], W_up [r, d], b_up [d]: 2 d r + r + d; lin's norm has 2 d more.

    Raises:
      UserError: r exceeds d, which is no bottleneck.
    """
    width, rank = spec.d_out, spec.rank
    if rank > width:
        raise UserError(f"a bottleneck of {rank} exceeds the width {width}; choose adapter.rank <= {width}")
    found = {"down_kernel": (width, rank), "down_bias": (rank,), "up_kernel": (rank, width), "up_bias": (width,)}
    return found | ({"norm_scale": (width,), "norm_bias": (width,)} if spec.config.method == "lin" else {})


def init(key: PRNGKey, spec: AdapterSpec) -> dict[str, Array]:
    """W_down ~ N(0, init_std^2), W_up and biases 0; the norm's scale 1."""
    leaf = {name: jnp.zeros(shape, jnp.float32) for name, shape in shapes(spec).items()}
    leaf["down_kernel"] = spec.config.init_std * jax.random.normal(key, leaf["down_kernel"].shape, jnp.float32)
    return leaf | ({"norm_scale": jnp.ones(spec.d_out, jnp.float32)} if "norm_scale" in leaf else {})


def delta(leaf: Leaf, h: Float[Array, "*batch d"], spec: AdapterSpec) -> Float[Array, "*batch d"]:
    """W_up f(W_down h + b_down) + b_up, for lin of LN(h).

    Args:
      leaf: the arrays of `shapes`.
      h: [..., d]; the products are in its dtype.
      spec: the site.
    """
    if "norm_scale" in leaf:
        h = layer_norm(h, leaf["norm_scale"], leaf["norm_bias"])
    down, b_down, up, b_up = (leaf[n].astype(h.dtype) for n in ("down_kernel", "down_bias", "up_kernel", "up_bias"))
    return activation(spec)(h @ down + b_down) @ up + b_up


def activation(spec: AdapterSpec) -> Callable[[Array], Array]:
    """f of `config.bottleneck.activation`."""
    name = spec.config.bottleneck.activation
    return ACTIVATIONS[OWN[spec.config.method] if name == "family" else name]


def layer_norm(
    x: Float[Array, "*batch d"], scale: Float[Array, " d"], bias: Float[Array, " d"]
) -> Float[Array, "*batch d"]:
    """(x - mean(x)) / sqrt(var(x) + eps) * scale + bias, in float32 and returned in x's dtype."""
    wide = x.astype(jnp.promote_types(jnp.float32, x.dtype))
    wide = wide - wide.mean(-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + EPS)
    return (wide * scale + bias).astype(x.dtype)


# The scale stays 1, the default: no paper scales these adapters.
_family = functools.partial(Family, shapes=shapes, init=init, delta=delta, scaled=("up_kernel", "up_bias"))
HOULSBY = _family("houlsby", place="output", sites=(("attention", "attention/out"), ("mlp", "mlp/down")))
PFEIFFER = _family("pfeiffer", place="norm", sites=(("mlp_norm", "mlp/down"),))
LIN = _family("lin", place="output", sites=(("mlp", "mlp/down"),))
FAMILIES = (HOULSBY, PFEIFFER, LIN)
