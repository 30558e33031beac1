"""softmax(Q K^T) V on arrays: by kernel, for packed rows, sliding windows, beams, and rows that share a beginning."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from lowrank_jax.core.types import Array
from lowrank_jax.models.parts.attention_kernel import Kernel


class Packed(NamedTuple):
    """The mask of packed rows: attention is causal, and stays within a document.

    cuDNN takes the mask as a bias and remains a flash attention. Forward and backward on one H200, for 4 rows of 2,048
    tokens with 32 query and 8 key heads: 2.3 ms and 0.3 GiB, without documents 1.3 ms; XLA's with documents 8.0 ms and
    5.0 GiB.

    Attributes:
      same: bool [B, 1, T, T], whether query and key are of one document; padding is a document too.
    """

    same: Array


def one_document(segments: Array) -> Packed:
    """The mask of rows [B, T] of packed documents; tokens of one document have one number."""
    return Packed(segments[:, None, :, None] == segments[:, None, None, :])


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
      scale, softcap: as in `attention.Attention`.
      window: only with `causal` or `allowed`.
      by_head: whether cuDNN gets a copy of `allowed` for each head, see `attention_kernel.BY_HEAD`.

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
      scale, softcap: as in `attention.Attention`.

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


def shared_attention(
    query: Array,
    before_key: Array,
    before_value: Array,
    key: Array,
    value: Array,
    before: Array,
    own: Array,
    scale: float | None = None,
    softcap: float | None = None,
) -> Array:
    """`attend` of rows that go on from a beginning: one softmax over the beginning's keys and then a row's own.

    The beginning's keys and values are not copied for each row: the queries of all R rows of a beginning are rows of
    one product with them. Scores are float32, 4 G R heads T (P + S) bytes.

    Args:
      query: [G R, T, heads, head_dim].
      before_key, before_value: of the G beginnings, [G, P, kv_heads, head_dim].
      key, value: of each row's own tokens, [G R, S, kv_heads, head_dim].
      before: bool, broadcastable to [G, R, T, P], True where a query may attend to a key of its beginning.
      own: bool, broadcastable to [G R, 1, T, S], the same for own keys.
      scale, softcap: as in `attention.Attention`.

    Returns:
      [G R, T, heads, head_dim].
    """
    (batch, length, heads, width), (groups, slots, kv_heads) = query.shape, before_key.shape[:3]
    scaled = query * (width**-0.5 if scale is None else scale)
    scaled = scaled.reshape(groups, -1, length, kv_heads, heads // kv_heads, width).transpose(0, 3, 1, 2, 4, 5)
    before_key, before_value = before_key.swapaxes(1, 2), before_value.swapaxes(1, 2)
    key, value = (x.reshape(groups, -1, *x.shape[1:]).transpose(0, 3, 1, 2, 4) for x in (key, value))
    far = jnp.einsum("gkrthd,gkpd->gkrthp", scaled, before_key, preferred_element_type=jnp.float32)
    near = jnp.einsum("gkrthd,gkrsd->gkrths", scaled, key, preferred_element_type=jnp.float32)
    own = own.reshape(1 if own.shape[0] == 1 else groups, -1, *own.shape[2:])
    allowed = [jnp.broadcast_to(each, (groups, batch // groups, length, each.shape[-1])) for each in (before, own)]
    scores = jnp.concatenate([far, near], axis=-1)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    mask = jnp.concatenate(allowed, axis=-1)[:, None, :, :, None]
    weights = jax.nn.softmax(jnp.where(mask, scores, 0.5 * jnp.finfo(scores.dtype).min)).astype(query.dtype)
    y = jnp.einsum("gkrthp,gkpd->gkrthd", weights[..., :slots], before_value)
    y = y + jnp.einsum("gkrths,gkrsd->gkrthd", weights[..., slots:], value)
    return y.transpose(0, 2, 3, 1, 4, 5).reshape(batch, length, heads, width)
