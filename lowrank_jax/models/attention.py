"""Rotary positions and grouped-query attention, with or without a key/value cache."""

from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import unknown_name
from lowrank_jax.core.types import Array
from lowrank_jax.models.layers import Linear
from lowrank_jax.ops.saved import saved_product

Kernel = Literal["xla", "cudnn", "heads_first"]
ATTENTION = ("auto", "xla", "cudnn", "heads_first")
QKV = ("query", "key", "value")


class Attention(nn.Module):
    """softmax(rot(Q) rot(K)^T / sqrt(head_dim)) V with K and V shared by groups of query heads, then a projection.

    The projections are the Linears query, key, value and out; heads are flattened into their feature axis. With `fused`
    the first three are one Linear, qkv.

    Attributes:
      heads, kv_heads, head_dim: query heads, key/value heads (a divisor of heads), width of a head.
      use_bias: the projections have biases.
      dtype, param_dtype: compute type; type that parameters are created in. The softmax is float32.
      implementation: "auto", "xla", "cudnn" or "heads_first"; see `pick_implementation`.
      fused: one product for query, key and value; see `layouts.fused`.
    """

    heads: int
    kv_heads: int
    head_dim: int
    use_bias: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    implementation: str = "auto"
    fused: bool = False

    @nn.compact
    def __call__(
        self,
        x: Array,
        rotary: tuple[Array, Array] | None,
        allowed: Array | None,
        cache: dict | None,
        layer: Array | None,
    ) -> tuple[Array, dict | None]:
        """Args:
          x: [B, T, D].
          rotary: (cos, sin) of `rotary_tables`; None where positions were added to the model's input.
          allowed: bool, broadcastable to [B, 1, T, S], True where a query may attend to a key; None is causal.
          cache: {"key", "value": [L, B, S, kv_heads, head_dim], "index"} of all layers, or None.
          layer: int32 scalar, this layer's row of the cache.

        Returns:
          [B, T, D], and the cache with this layer's T new keys and values written at `index`, which stays as it is.
        """
        query, key, value = self.projections(x)
        value = saved_product(value, "value")
        # Rotation is linear: the backward pass needs only its output, so the output is what is saved by name.
        query, key = (x if rotary is None else rotate(x, *rotary) for x in (query, key))
        query, key = checkpoint_name(query, "query"), checkpoint_name(key, "key")
        if cache is not None:
            assert layer is not None  # a cache has a row for each layer
            cache = write_cache(cache, layer, key, value)
            key, value = (read_cache(cache[name], layer).astype(self.dtype) for name in ("key", "value"))
        kernel = pick_implementation(
            self.implementation, self.dtype, self.head_dim, masked=allowed is not None, cached=cache is not None
        )
        y = attend(query, key, value, allowed, causal=allowed is None, kernel=kernel)
        y = y.reshape(*y.shape[:-2], self.heads * self.head_dim)
        return self.linear(x.shape[-1], "out")(y), cache

    def projections(self, x: Array) -> list[Array]:
        """Query, key and value, [B, T, heads, head_dim] each."""
        heads = dict(zip(QKV, (self.heads, self.kv_heads, self.kv_heads), strict=True))
        if self.fused:
            y = self.linear(sum(heads.values()) * self.head_dim, "qkv")(x)
            parts = jnp.split(y, [self.heads * self.head_dim, (self.heads + self.kv_heads) * self.head_dim], axis=-1)
        else:
            parts = [self.linear(count * self.head_dim, name)(x) for name, count in heads.items()]
        return [y.reshape(*y.shape[:-1], -1, self.head_dim) for y in parts]

    def linear(self, features: int, name: str) -> Linear:
        """The Linear called `name`."""
        return Linear(features, self.use_bias, dtype=self.dtype, param_dtype=self.param_dtype, name=name)


def attend(query: Array, key: Array, value: Array, allowed: Array | None, *, causal: bool, kernel: Kernel) -> Array:
    """softmax(Q K^T / sqrt(head_dim)) V by head, checkpointed as "attention"; the softmax is float32.

    Args:
      query, key, value: [B, T, heads, head_dim], [B, S, kv_heads, head_dim] twice.
      allowed: bool, broadcastable to [B, 1, T, S], True where a query may attend to a key; None for all.
      causal: a query attends only to keys no later than itself; S is T.
      kernel: "xla", "cudnn" or "heads_first", from `pick_implementation`.

    Returns:
      [B, T, heads, head_dim].
    """
    if kernel == "heads_first":
        allowed = jnp.tri(query.shape[1], dtype=bool) if causal else allowed
        return checkpoint_name(heads_first_attention(query, key, value, allowed), "attention")
    y = jax.nn.dot_product_attention(query, key, value, mask=allowed, is_causal=causal, implementation=kernel)
    # cuDNN's output is saved with its log-sum-exp, by its primitive (`stack`): under a name it would be saved twice.
    return checkpoint_name(y, "attention") if kernel == "xla" else y


def heads_first_attention(query: Array, key: Array, value: Array, allowed: Array | None) -> Array:
    """`attend` over [B, heads, T, head_dim], each array transposed once.

    For CPUs: jax.nn's products read strided heads, which XLA's CPU backend transposes again for each product (a step of
    pico-llama, 8 x 128 tokens, LoRA r=8, two cores: 129 ms, 120 with this function).

    Arguments and result are those of `attend`; `allowed` may also be [T, S].
    """
    heads, kv_heads, width = query.shape[2], key.shape[2], query.shape[3]
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    batch, _, length, _ = query.shape
    query = query.reshape(batch, kv_heads, -1, width)  # queries that share a key are rows of one product
    scores = jnp.einsum("bktd,bksd->bkts", query * width**-0.5, key, preferred_element_type=jnp.float32)
    if allowed is not None:
        by_head = scores.reshape(batch, heads, length, -1)
        scores = jnp.where(allowed, by_head, 0.5 * jnp.finfo(scores.dtype).min).reshape(scores.shape)
    weights = jax.nn.softmax(scores).astype(value.dtype)
    y = jnp.einsum("bkts,bksd->bktd", weights, value)
    return y.reshape(batch, heads, length, width).swapaxes(1, 2)


@dataclass(frozen=True)
class RopeScaling:
    """LLaMA-3's scaling for a longer context: low frequencies are lowered, high ones kept, those between interpolated.

    With wavelength w = 2 pi / frequency and old = original_max_position_embeddings: w > old / low_freq_factor is
    divided by factor, w < old / high_freq_factor is kept. Defaults are LLaMA-3.1's.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def __post_init__(self):
        if not (self.factor >= 1 and 0 < self.low_freq_factor < self.high_freq_factor):
            raise UserError(f"{self} needs a factor of at least 1 and 0 < low_freq_factor < high_freq_factor")
        if self.original_max_position_embeddings < 1:
            raise UserError(f"{self} needs original_max_position_embeddings of at least 1")

    def apply(self, frequency: Array) -> Array:
        """Scaled frequencies, in radians a position."""
        turns = self.original_max_position_embeddings * frequency / (2 * jnp.pi)  # in the old context
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = jnp.clip(kept, 0.0, 1.0)
        return frequency * (kept + (1 - kept) / self.factor)


def rotary_tables(
    positions: Array, head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[Array, Array]:
    """cos and sin of p theta^(-2j/head_dim), j < head_dim/2, float32, shaped to broadcast over heads.

    Args:
      positions: int [T] or [B, T].
      scaling: changes the frequencies; None keeps them.

    Returns:
      two arrays [..., T, 1, head_dim/2].
    """
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling is not None:
        frequency = scaling.apply(frequency)
    angle = positions.astype(jnp.float32)[..., None, None] * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotates the pairs (x_j, x_{j + head_dim/2}) of [B, T, heads, head_dim] in float32: HF's half-split layout."""
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)


def allowed_keys(queries: int, mask: Array | None, index: Array | None, slots: int) -> Array | None:
    """The mask of the keys that a query may attend to: valid ones, no later than the query.

    Args:
      queries: number of queries, T.
      mask: bool [B, S], the valid keys; None means all.
      index: slot of the first query in the cache; None without a cache.
      slots: S.

    Returns:
      bool [B or 1, 1, T, S]; None when it is plain causal. A left-padded row allows nothing at its padding: its
      softmax is uniform and finite, and nothing reads it.
    """
    if mask is None and index is None:
        return None
    first = jnp.int32(0) if index is None else index
    causal = jnp.arange(slots, dtype=jnp.int32) <= first + jnp.arange(queries, dtype=jnp.int32)[:, None]
    allowed = causal[None, None]
    return allowed if mask is None else allowed & mask[:, None, None, :]


def write_cache(cache: dict, layer: Array, key: Array, value: Array) -> dict:
    """The cache with key and value [B, T, kv_heads, head_dim] written at (layer, :, index)."""
    zero = jnp.zeros_like(cache["index"])
    start = (layer, zero, cache["index"], zero, zero)
    new = {"key": key, "value": value}
    written = {k: lax.dynamic_update_slice(cache[k], new[k][None].astype(cache[k].dtype), start) for k in new}
    return {**cache, **written}


def read_cache(stacked: Array, layer: Array) -> Array:
    """One layer's [B, S, kv_heads, head_dim] of the stacked cache."""
    return lax.dynamic_index_in_dim(stacked, layer, 0, keepdims=False)


def pick_implementation(name: str, dtype: Any, head_dim: int, *, masked: bool, cached: bool) -> Kernel:
    """The attention kernel that a name stands for.

    "auto" is cuDNN's flash attention where it applies, `heads_first_attention` on CPUs, jax.nn's on XLA otherwise.
    cuDNN's applies to causal attention without mask or cache, in bfloat16 or float16, for heads of a multiple of 8 up
    to 128 (256 on Hopper), on an NVIDIA GPU of compute capability 8.0 or more. Cached steps always use XLA.

    Raises:
      UserError: an unknown name, or "cudnn" where it cannot run.
    """
    if name not in ATTENTION:
        raise unknown_name("attention", name, ATTENTION)
    if name == "xla" or cached:
        return "xla"
    if name == "heads_first" or (name == "auto" and jax.default_backend() == "cpu"):
        return "heads_first"
    if name == "auto" and masked:
        return "xla"
    capability = compute_capability()
    obstacle = None
    if capability < 8:
        obstacle = "an NVIDIA GPU of compute capability 8.0 or more"
    elif jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        obstacle = f"bfloat16 or float16, not {jnp.dtype(dtype).name}"
    elif head_dim % 8 or head_dim > (256 if capability == 9 else 128):
        obstacle = f"head_dim to be a multiple of 8 up to 128 (256 on Hopper), not {head_dim}"
    if obstacle and name == "cudnn":
        raise UserError(f'attention "cudnn" needs {obstacle}; set attention to "auto" or "xla"')
    return "xla" if obstacle else "cudnn"


def compute_capability() -> float:
    """Compute capability of the default NVIDIA GPU; 0 on other devices."""
    if jax.default_backend() != "gpu":
        return 0.0
    try:
        return float(jax.devices()[0].compute_capability)
    except ValueError:  # on AMD this is the name of an architecture ("gfx90a")
        return 0.0
