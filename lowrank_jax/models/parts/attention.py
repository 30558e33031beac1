"""The attention layer: grouped queries, rotary positions, with or without a sliding window and a key/value cache."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lowrank_jax.core.types import Array
from lowrank_jax.models.parts.attend import Packed, Window, attend, beam_attention, shared_attention
from lowrank_jax.models.parts.attention_kernel import BY_HEAD, pick_implementation
from lowrank_jax.models.parts.cache import BeamKeys, extend, read_cache, write_beams, write_cache
from lowrank_jax.models.parts.layers import Linear, RMSNorm, check_joined_bias
from lowrank_jax.models.parts.rotary import Tables, rotate
from lowrank_jax.models.parts.shared import SharedKeys
from lowrank_jax.ops.products import side_by_side
from lowrank_jax.ops.saved import saved_product

QKV = ("query", "key", "value")


class Attention(nn.Module):
    """softmax(rot(Q) rot(K)^T / sqrt(head_dim)) V with K and V shared by groups of query heads, then a projection.

    The projections are the Linears query, key, value and out; heads are flattened into their feature axis. With `fused`
    the first three are one Linear, qkv.

    Attributes:
      heads, kv_heads, head_dim: query heads, key/value heads (a divisor of heads), width of a head.
      use_bias: whether the projections have biases; out_bias: whether out has one, None: as use_bias says.
      dtype, param_dtype: compute type; type that parameters are created in. The softmax is float32.
      implementation: "auto", "xla", "cudnn" or "heads_first", see `pick_implementation`; "auto" and "cudnn" may end in
        BY_HEAD.
      fused: one product for query, key and value; see `layouts.fused`.
      qk_norm: RMSNorms query_norm and key_norm before the rotation, over each "head" or the "width" of all; or "none".
      norm_eps, norm_offset: eps and offset of these norms, as in `layers.RMSNorm`.
      scale: factor of the scores; None is 1 / sqrt(head_dim).
      softcap: scores s become softcap tanh(s / softcap); None leaves them as they are.
      window: how many keys a query attends to, the last of them its own; None is all.
    """

    heads: int
    kv_heads: int
    head_dim: int
    use_bias: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    implementation: str = "auto"
    fused: bool = False
    out_bias: bool | None = None
    qk_norm: str = "none"
    norm_eps: float = 1e-6
    norm_offset: bool = False
    scale: float | None = None
    softcap: float | None = None
    window: int | None = None

    @nn.compact
    def __call__(
        self,
        x: Array,
        rotary: Tables | None,
        allowed: "Array | Packed | BeamKeys | SharedKeys | None",
        cache: dict | None,
        layer: Array | None,
        local: Array | None = None,
        query_scale: Array | None = None,
        bound: Callable[[], Array] | None = None,
    ) -> tuple[Array, dict | None]:
        """Args:
          x: [B, T, D].
          rotary: (cos, sin) of `rotary_tables`; None where positions were added to the model's input.
          allowed: bool, broadcastable to [B, 1, T, S], True where a query may attend to a key; None is causal, and
            `Packed` is causal within each document of a row. `BeamKeys` go with the cache of beams,
            `SharedKeys` with that of rows with one beginning.
          cache: {"key", "value": [L, B, S, kv_heads, head_dim], "index"} of a segment's layers, or None; with
            "ring" in it they are rings (`cache.Cache`), and `allowed` is the mask of a ring. Or those of
            `cache.BeamCache.stored` or `shared.SharedCache.stored`.
          layer: int32 scalar, this layer's row of the cache.
          local: bool scalar, whether this layer has the window; None is yes.
          query_scale: multiplies rotated queries, broadcastable to [B, T, heads, head_dim].
          bound: as in `layers.Linear`, of x.

        Returns:
          [B, T, D], and the cache with this layer's T new keys and values written at `index`, which stays as it is.
        """
        query, key, value = self.projections(x, bound)
        value = saved_product(value, "value")
        query, key = (x if rotary is None else rotate(x, *rotary) for x in (query, key))
        if query_scale is not None:
            query = query * query_scale.astype(query.dtype)
        if self.qk_norm == "none":
            # Rotation is linear: the backward pass needs only its output, so the output is what is saved by name.
            query, key = checkpoint_name(query, "query"), checkpoint_name(key, "key")
        if isinstance(allowed, BeamKeys):
            assert cache is not None
            assert layer is not None
            cache = write_beams(cache, layer, key, value)
            key, value = (read_cache(cache[part], layer).astype(self.dtype) for part in ("key", "value"))
            y = beam_attention(query, key, value, self.near(allowed, local), self.scale, self.softcap)
            return self.output(y, x.shape[-1]), cache
        if isinstance(allowed, SharedKeys):
            assert cache is not None
            assert layer is not None
            cache = write_cache(cache, layer, key, value)
            y = self.beside(query, cache, layer, allowed, local)
            return self.output(y, x.shape[-1]), cache
        first: Array | int = 0
        if cache is not None:
            assert layer is not None  # a cache has a row for each layer
            first = cache["index"]
            key, value, cache = extend(cache, layer, key, value)
            key, value = key.astype(self.dtype), value.astype(self.dtype)
        packed = isinstance(allowed, Packed)
        kernel = pick_implementation(
            self.implementation.removesuffix(BY_HEAD),
            self.dtype,
            self.head_dim,
            x.shape[1],
            masked=allowed is not None and not packed,
            cached=cache is not None,
            capped=self.softcap is not None,
        )
        window = None
        ring = cache is not None and "ring" in cache  # whose mask has the window
        if self.window is not None and self.window < key.shape[1] and not ring:
            window = Window(self.window, local, first)
        causal, mask = packed or allowed is None, allowed.same if isinstance(allowed, Packed) else allowed
        y = attend(
            query, key, value, mask, causal=causal, kernel=kernel, scale=self.scale, softcap=self.softcap,
            window=window, by_head=self.implementation.endswith(BY_HEAD),
        )  # fmt: skip
        return self.output(y, x.shape[-1]), cache

    def output(self, y: Array, width: int) -> Array:
        """The projection of what the heads have read, [B, T, heads, head_dim], to [B, T, width]."""
        y = y.reshape(*y.shape[:-2], self.heads * self.head_dim)
        return self.linear(width, "out", self.use_bias if self.out_bias is None else self.out_bias)(y)

    def near(self, keys: BeamKeys, local: Array | None) -> Array:
        """The allowed keys of beams, [B, K, S], without those before this layer's window."""
        if self.window is None:
            return keys.allowed
        near = keys.places > keys.newest - self.window
        return keys.allowed & (near if local is None else near | ~local)

    def beside(self, query: Array, cache: dict, layer: Array, keys: SharedKeys, local: Array | None) -> Array:
        """What the heads read of a beginning that rows share and of their own tokens, [B, T, heads, head_dim]."""
        parts = ("before_key", "before_value", "key", "value")
        far_key, far_value, key, value = (read_cache(cache[part], layer).astype(self.dtype) for part in parts)
        own, (rows, queries) = keys.own, query.shape[:2]
        if self.window is not None:
            own = Window(self.window, local, keys.index).narrow(own, queries, key.shape[1])
        before = keys.before(rows, far_key.shape[1], self.window, local)
        return shared_attention(query, far_key, far_value, key, value, before, own, self.scale, self.softcap)

    def projections(self, x: Array, bound: Callable[[], Array] | None = None) -> list[Array]:
        """Query, key and value, [B, T, heads, head_dim] each."""
        heads = dict(zip(QKV, (self.heads, self.kv_heads, self.kv_heads), strict=True))
        if self.fused:
            if self.use_bias:
                check_joined_bias(self, "qkv")
            y = self.linear(sum(heads.values()) * self.head_dim, "qkv", self.use_bias)(x, bound)
            parts = side_by_side(y, [count * self.head_dim for count in heads.values()])
        else:
            parts = [self.linear(count * self.head_dim, name, self.use_bias)(x, bound) for name, count in heads.items()]
        query, key, value = parts
        if self.qk_norm != "none":  # a norm's backward pass needs its input
            query, key = (self.norm(saved_product(y, name), name) for name, y in (("query", query), ("key", key)))
        return [y.reshape(*x.shape[:-1], -1, self.head_dim) for y in (query, key, value)]

    def norm(self, y: Array, name: str) -> Array:
        """RMSNorm of a projection [B, T, heads * head_dim], over each head or over all."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm = RMSNorm(self.norm_eps, offset=self.norm_offset, name=f"{name}_norm", **types)
        return norm(y.reshape(*y.shape[:-1], -1, self.head_dim) if self.qk_norm == "head" else y)

    def linear(self, features: int, name: str, use_bias: bool) -> Linear:
        """The Linear called `name`."""
        return Linear(features, use_bias, dtype=self.dtype, param_dtype=self.param_dtype, name=name)
