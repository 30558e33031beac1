"""Grouped-query attention with rotary positions, with or without a sliding window and a key/value cache."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import unknown_name
from lowrank_jax.core.types import Array
from lowrank_jax.models.parts.cache import BeamKeys, extend, read_cache, write_beams
from lowrank_jax.models.parts.layers import Linear, RMSNorm, check_joined_bias
from lowrank_jax.models.parts.rotary import Tables, rotate
from lowrank_jax.ops.capability import compute_capability, platform
from lowrank_jax.ops.products import side_by_side
from lowrank_jax.ops.saved import saved_product

Kernel = Literal["xla", "cudnn", "heads_first"]
ATTENTION = ("auto", "xla", "cudnn", "heads_first")
# Ends "auto" or "cudnn" where cuDNN is to get the mask of packed rows once for each head: trials of one program run
# under `jax.vmap`, and jax's rule for cuDNN's attention takes no mask that heads share.
BY_HEAD = "_by_head"
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
        allowed: "Array | Packed | BeamKeys | None",
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
            `Packed` is causal within each document of a row. `BeamKeys` go with the cache of beams.
          cache: {"key", "value": [L, B, S, kv_heads, head_dim], "index"} of a segment's layers, or None; with
            "ring" in it they are rings (`cache.Cache`), and `allowed` is the mask of a ring. Or those of
            `cache.BeamCache.stored`.
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


class Packed(NamedTuple):
    """The mask of packed rows: attention is causal, and stays within a document.

    cuDNN takes the mask as a bias and remains a flash attention. Forward and backward on one H200, for 4 rows of 2,048
    tokens with 32 query and 8 key heads: 2.3 ms and 0.3 GiB, without documents 1.3 ms; XLA's with documents 8.0 ms and
    5.0 GiB.

    Attributes:
      same: bool [B, 1, T, T], whether query and key are of one document; padding is a document too.
    """

    same: Array


class Window(NamedTuple):
    """A sliding window over the keys.

    Attributes:
      size: how many keys a query attends to, the last of them its own.
      local: bool scalar, whether this layer has the window; None is yes.
      first: the first query's position among the keys.
    """

    size: int
    local: Array | None = None
    first: Array | int = 0

    def narrow(self, allowed: Array | None, queries: int, slots: int) -> Array:
        """`allowed` (None: all keys) without the keys before the window, bool [..., T, S]."""
        query = self.first + jnp.arange(queries, dtype=jnp.int32)[:, None]
        near = query - jnp.arange(slots, dtype=jnp.int32) < self.size
        near = near if self.local is None else near | ~self.local
        return near if allowed is None else allowed & near


def attend(
    query: Array,
    key: Array,
    value: Array,
    allowed: Array | None,
    *,
    causal: bool,
    kernel: Kernel,
    scale: float | None = None,
    softcap: float | None = None,
    window: Window | None = None,
    by_head: bool = False,
) -> Array:
    """softmax(Q K^T / sqrt(head_dim)) V by head, checkpointed as "attention"; the softmax is float32.

    Args:
      query, key, value: [B, T, heads, head_dim], [B, S, kv_heads, head_dim] twice.
      allowed: bool, broadcastable to [B, 1, T, S], True where a query may attend to a key; None for all.
      causal: a query attends only to keys no later than itself, of those that are allowed; S is T.
      kernel: "xla", "cudnn" or "heads_first", from `pick_implementation`; with a softcap "heads_first".
      scale, softcap: as in `Attention`.
      window: only with `causal` or `allowed`.
      by_head: whether cuDNN gets a copy of `allowed` for each head, see BY_HEAD.

    Returns:
      [B, T, heads, head_dim].
    """
    queries, slots = query.shape[1], key.shape[1]
    if window is not None and not (causal and kernel == "cudnn" and allowed is None):
        allowed = window.narrow(_causal(allowed, queries) if causal else allowed, queries, slots)
        window, causal = None, causal and kernel == "cudnn"  # which skips the later keys, besides the mask
    if kernel == "heads_first":
        allowed = _causal(allowed, queries) if causal else allowed
        return checkpoint_name(heads_first_attention(query, key, value, allowed, scale, softcap), "attention")
    if by_head and kernel == "cudnn" and allowed is not None:
        allowed = jnp.broadcast_to(allowed, (query.shape[0], query.shape[2], queries, slots))
    run = functools.partial(
        jax.nn.dot_product_attention, mask=allowed, is_causal=causal, scale=scale, implementation=kernel
    )
    if window is None:
        y = run(query, key, value)
    else:
        y = windowed(run, query, key, value, window)
    # cuDNN's output is saved with its log-sum-exp, by its primitive (`stack`): under a name it would be saved twice.
    return checkpoint_name(y, "attention") if kernel == "xla" else y


def windowed(run: Callable[..., Array], query: Array, key: Array, value: Array, window: Window) -> Array:
    """run(query, key, value) with the kernel's own window, which must be static: each layer picks one of two."""
    narrow = functools.partial(run, local_window_size=(window.size - 1, 0))
    if window.local is None:
        return narrow(query, key, value)
    return lax.cond(window.local, narrow, run, query, key, value)


def _causal(allowed: Array | None, queries: int) -> Array:
    tri = jnp.tri(queries, dtype=bool)
    return tri if allowed is None else allowed & tri


def one_document(segments: Array) -> Packed:
    """The mask of rows [B, T] of packed documents; tokens of one document have one number."""
    return Packed(segments[:, None, :, None] == segments[:, None, None, :])


def heads_first_attention(
    query: Array,
    key: Array,
    value: Array,
    allowed: Array | None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Array:
    """`attend` over [B, heads, T, head_dim], each array transposed once.

    For CPUs: jax.nn's products read strided heads, which XLA's CPU backend transposes again for each product (a step of
    pico-llama, 8 x 128 tokens, LoRA r=8, two cores: 129 ms, 120 with this function). Also used for a softcap, which
    jax.nn's function lacks.

    Arguments and result are those of `attend`; `allowed` may also be [T, S].
    """
    heads, kv_heads, width = query.shape[2], key.shape[2], query.shape[3]
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    batch, _, length, _ = query.shape
    query = query.reshape(batch, kv_heads, -1, width)  # queries that share a key are rows of one product
    scaled = query * (width**-0.5 if scale is None else scale)
    scores = jnp.einsum("bktd,bksd->bkts", scaled, key, preferred_element_type=jnp.float32)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if allowed is not None:
        by_head = scores.reshape(batch, heads, length, -1)
        scores = jnp.where(allowed, by_head, 0.5 * jnp.finfo(scores.dtype).min).reshape(scores.shape)
    weights = jax.nn.softmax(scores).astype(value.dtype)
    y = jnp.einsum("bkts,bksd->bktd", weights, value)
    return y.reshape(batch, heads, length, width).swapaxes(1, 2)


def beam_attention(
    query: Array,
    key: Array,
    value: Array,
    allowed: Array,
    scale: float | None = None,
    softcap: float | None = None,
) -> Array:
    """`attend` of one token a beam: the beams of a row are rows of one product with all keys of the row.

    Args:
      query: [B, K, heads, head_dim].
      key, value: of a row's prompt and of all its beams' tokens, [B, kv_heads, S, head_dim].
      allowed: bool [B, K, S], True for the prompt's tokens and those of a beam's own text.
      scale, softcap: as in `Attention`.

    Returns:
      [B, K, heads, head_dim].
    """
    batch, beams, heads, width = query.shape
    scaled = (query * (width**-0.5 if scale is None else scale)).reshape(batch, beams, key.shape[1], -1, width)
    scores = jnp.einsum("bkhgd,bhsd->bhkgs", scaled, key, preferred_element_type=jnp.float32)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(allowed[:, None, :, None], scores, 0.5 * jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores).astype(query.dtype)
    y = jnp.einsum("bhkgs,bhsd->bhkgd", weights, value)  # heads first: otherwise the weights would be transposed
    return y.swapaxes(1, 2).reshape(batch, beams, heads, width)


def pick_implementation(
    name: str, dtype: Any, head_dim: int, length: int = 0, *, masked: bool, cached: bool, capped: bool = False
) -> Kernel:
    """The attention kernel that a name stands for.

    "auto" is cuDNN's flash attention where it applies, `heads_first_attention` on CPUs, jax.nn's on XLA otherwise.
    cuDNN's applies to causal attention without cache or mask (but that of packed rows), in bfloat16 or float16, for
    heads of a multiple of 8 up to 128 (256 on Hopper) and rows of an even length (jax refuses its gradient for others),
    on an NVIDIA GPU of compute capability 8.0 or more. Cached steps always use XLA; a softcap on the scores (`capped`)
    always takes `heads_first_attention`, the only one that has it.

    Args:
      name: one of ATTENTION.
      dtype, head_dim: of queries, keys and values.
      length: of the rows; 0 where it does not matter.
      masked, cached, capped: whether there are a mask, a cache, a softcap.

    Raises:
      UserError: an unknown name, or "cudnn" where it cannot run.
    """
    if name not in ATTENTION:
        raise unknown_name("attention", name, ATTENTION)
    if capped:
        if name == "cudnn":
            raise UserError('attention "cudnn" has no softcap on scores, which this model needs; set it to "auto"')
        return "heads_first"
    if name == "xla" or cached:
        return "xla"
    if name == "heads_first" or (name == "auto" and platform() == "cpu"):
        return "heads_first"
    if name == "auto" and masked:
        return "xla"
    capability = compute_capability()
    obstacle = None
    if length % 2:
        obstacle = f"rows of an even length, not {length}"
    elif capability < 8:
        obstacle = "an NVIDIA GPU of compute capability 8.0 or more"
    elif jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        obstacle = f"bfloat16 or float16, not {jnp.dtype(dtype).name}"
    elif head_dim % 8 or head_dim > (256 if capability == 9 else 128):
        obstacle = f"head_dim to be a multiple of 8 up to 128 (256 on Hopper), not {head_dim}"
    if obstacle and name == "cudnn":
        raise UserError(f'attention "cudnn" needs {obstacle}; set attention to "auto" or "xla"')
    return "xla" if obstacle else "cudnn"
