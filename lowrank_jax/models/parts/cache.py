"""The key/value cache of a causal model: of all tokens, or a ring of the window's length; or one that beams share."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.types import Array
from lowrank_jax.layouts.segments import segments


@functools.partial(jax.tree_util.register_dataclass, data_fields=["layers", "index"], meta_fields=["length"])
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of the tokens so far.

    Attributes:
      layers: {segment: {"key", "value": [L, B, S, kv_heads, head_dim]}} by the names of `layouts.segments`; S is
        `length`, or the window's where all layers of a segment have one: slot s then holds the last token whose place
        is s modulo S.
      index: int32 scalar, how many tokens (with their padding) are in it.
      length: how many it can take.
    """

    layers: dict[str, dict[str, Array]]
    index: Array
    length: int

    def stored(self, segment: str) -> dict[str, Array]:
        """What a segment's layers read and write."""
        return {**self.layers[segment], "index": self.index}

    def grown(self, layers: dict[str, dict[str, Array]], tokens: int) -> "Cache":
        """The cache after a call of `tokens` tokens a row, with what its segments then hold."""
        return Cache(layers, self.index + tokens, self.length)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["layers", "origin", "index"], meta_fields=["width", "length"]
)
@dataclasses.dataclass(frozen=True)
class BeamCache:
    """Keys and values of prompts, once a row, and behind them of all tokens that a row's K beams have written.

    Keys and values are never moved. Where a beam goes on from another one, only `origin` changes, and the mask that is
    made of it leaves a beam the keys of its own text. Scores of all keys are computed, those of other texts in vain.
    What that gains on a GPU, and costs on a CPU where texts are long: docs/performance.md, "Beam search".

    A model reads it with one token a beam: tokens and positions are [B, K], beams in the place of a row's tokens.

    Attributes:
      layers: {segment: {"key", "value": [L, B, kv_heads, S + N K, head_dim]}}; S is P or a ring's window, and slot
        S + n K + k has what beam k wrote as token n.
      origin: int32 [B, K, N], the beam that wrote token n of beam k's text.
      index: int32 scalar, how many tokens each beam has behind the prompt.
      width: P, slots of a prompt with its padding.
      length: P + N.
    """

    layers: dict[str, dict[str, Array]]
    origin: Array
    index: Array
    width: int
    length: int

    def slots(self, segment: str) -> int:
        """S, how many slots of a segment hold the prompt."""
        return self.layers[segment]["key"].shape[3] - math.prod(self.origin.shape[1:])

    def stored(self, segment: str) -> dict[str, Array]:
        """What a segment's layers read and write; "index" is the slot of the first beam's next token."""
        return {**self.layers[segment], "index": self.slots(segment) + self.index * self.origin.shape[1]}

    def grown(self, layers: dict[str, dict[str, Array]], tokens: int) -> "BeamCache":
        """The cache after a call; its `tokens` are one of each beam."""
        return dataclasses.replace(self, layers=layers, index=self.index + 1)

    def reordered(self, parents: Array) -> "BeamCache":
        """The cache where beam k of row b goes on from beam parents[b, k], int32 [B, K], and writes the next token."""
        _, beams, new = self.origin.shape
        before = jnp.take_along_axis(self.origin, parents[:, :, None], axis=1, mode="clip")
        own = jnp.arange(beams, dtype=jnp.int32)[:, None]
        now = jnp.arange(new, dtype=jnp.int32) == self.index
        return dataclasses.replace(self, origin=jnp.where(now, own, before))

    def seen(self, segment: str, mask: Array | None) -> "BeamKeys":
        """The keys that the beams' next tokens may attend to, in the order of a segment's slots.

        Args:
          mask: bool [B, length], the valid tokens; None means all.
        """
        slots, last = self.slots(segment), self.width - 1
        batch, beams, new = self.origin.shape
        prompt = last - (last - jnp.arange(slots, dtype=jnp.int32)) % slots  # a whole part's slots: 0 .. P - 1
        written = jnp.arange(self.width, self.length, dtype=jnp.int32)
        places, newest = jnp.concatenate([prompt, jnp.repeat(written, beams)]), self.width + self.index
        wrote = self.origin[..., None] == jnp.arange(beams, dtype=jnp.int32)
        own = jnp.concatenate([jnp.ones((batch, beams, slots), bool), wrote.reshape(batch, beams, new * beams)], axis=2)
        allowed = own & (places <= newest)
        if mask is not None:
            allowed = allowed & jnp.take(mask, places, axis=1)[:, None]
        return BeamKeys(allowed, places, newest)


class BeamKeys(NamedTuple):
    """The keys of a `BeamCache` in a segment, S of the prompt and then K of each new token.

    Attributes:
      allowed: bool [B, K, S + N K], True where a beam may attend to a key.
      places: int32 [S + N K], of the keys in the text.
      newest: int32 scalar, the queries' place.
    """

    allowed: Array
    places: Array
    newest: Array


def share(cache: Cache, width: int, beams: int) -> BeamCache:
    """The cache of `beams` beams a row after the prompts were read; its slots behind them are empty.

    Args:
      cache: with prompts of `width` tokens, padding included.
    """
    new = cache.length - width

    def extended(each: Array) -> Array:
        prompt = each[:, :, :width].swapaxes(2, 3)
        return jnp.pad(prompt, ((0, 0), (0, 0), (0, 0), (0, new * beams), (0, 0)))

    layers = jax.tree.map(extended, cache.layers)
    batch = jax.tree.leaves(layers)[0].shape[1]
    return BeamCache(layers, jnp.zeros((batch, beams, new), jnp.int32), jnp.zeros((), jnp.int32), width, cache.length)


def init_cache(config: Any, batch: int, length: int, dtype: Any, cuts: Sequence[int] = (), rings: bool = True) -> Cache:
    """An empty cache.

    Args:
      config: of a causal model.
      batch: rows, B.
      length: how many tokens it can take, prompt and new ones together.
      dtype: of keys and values.
      cuts: those of the model (`layouts.segments`); a cut between layers with and without a window saves memory.
      rings: whether layers with a window keep its tokens alone; False: all tokens, as `shared.SharedCache` needs them.

    Raises:
      UserError: a length beyond the model's positions.
    """
    if length > config.max_position_embeddings:
        raise UserError(
            f"prompt and new tokens take {length} slots and the model has {config.max_position_embeddings} positions; "
            "shorten the prompts, ask for fewer new tokens, or pad to a smaller multiple"
        )
    layers = {}
    for name, low, high in segments(config.num_hidden_layers, cuts):
        slots = min(length, (window_of(config, low, high) if rings else None) or length)
        shape = (high - low, batch, slots, config.num_key_value_heads, config.head_dim)
        layers[name] = {"key": jnp.zeros(shape, dtype), "value": jnp.zeros(shape, dtype)}
    return Cache(layers, jnp.zeros((), jnp.int32), length)


def window_of(config: Any, low: int, high: int) -> int | None:
    """The window that layers low .. high - 1 all have; None where one of them attends to every key."""
    kinds = getattr(config, "layers", None)
    if kinds is None or kinds.sliding_window is None or (kinds.local and not all(kinds.local[low:high])):
        return None
    return kinds.sliding_window


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


def allowed_in_ring(queries: int, mask: Array | None, index: Array, window: int) -> Array:
    """The mask of the keys that `write_ring` returns: valid ones, no later than the query, within the window.

    Args:
      queries: number of queries, T.
      mask: bool [B, S], the valid tokens of the whole text; None means all.
      index: place of the first query in the text.
      window: slots of the ring, W.

    Returns:
      bool [B or 1, 1, T, W] for one query, [B or 1, 1, T, W + T] for more.
    """
    last = index if queries == 1 else index - 1  # the newest token in the ring
    places = (
        last - (last - jnp.arange(window, dtype=jnp.int32)) % window
    )  # of the tokens in the slots; below 0: an empty slot
    query = index + jnp.arange(queries, dtype=jnp.int32)
    if queries > 1:
        places = jnp.concatenate([places, query])
    allowed = ((places >= 0) & (places <= query[:, None]) & (places > query[:, None] - window))[None, None]
    return allowed if mask is None else allowed & jnp.take(mask, places, axis=1, mode="clip")[:, None, None, :]


def extend(cache: dict, layer: Array, key: Array, value: Array) -> tuple[Array, Array, dict]:
    """(keys, values, cache): one layer's cache with T new keys and values, and all that their queries may attend to.

    Args:
      cache: {"key", "value": [L, B, S, kv_heads, head_dim], "index"} of a segment's layers; "ring" marks rings.
      layer: int32 scalar, the layer's row of the cache.
      key, value: [B, T, kv_heads, head_dim].
    """
    if "ring" in cache:
        return write_ring(cache, layer, key, value)
    cache = write_cache(cache, layer, key, value)
    return read_cache(cache["key"], layer), read_cache(cache["value"], layer), cache


def write_cache(cache: dict, layer: Array, key: Array, value: Array) -> dict:
    """The cache with key and value [B, T, kv_heads, head_dim] written at (layer, :, index)."""
    return _write(cache, layer, cache["index"], {"key": key, "value": value})


def read_cache(stacked: Array, layer: Array) -> Array:
    """One layer's [B, S, kv_heads, head_dim] of the stacked cache."""
    return lax.dynamic_index_in_dim(stacked, layer, 0, keepdims=False)


def write_beams(cache: dict, layer: Array, key: Array, value: Array) -> dict:
    """The cache with a token of each beam, key and value [B, K, kv_heads, head_dim], written at (layer, index)."""
    zero = jnp.zeros_like(layer)
    start = (layer, zero, zero, cache["index"], zero)
    return cache | {
        name: lax.dynamic_update_slice(cache[name], one.swapaxes(1, 2)[None].astype(cache[name].dtype), start)
        for name, one in {"key": key, "value": value}.items()
    }


def write_ring(cache: dict, layer: Array, key: Array, value: Array) -> tuple[Array, Array, dict]:
    """(keys, values, cache) as `extend`, for a ring.

    A single token takes the slot of the one that leaves the window, and the keys are the ring's W. Several tokens would
    overwrite keys that the first of them still attend to: there the keys are the ring's W from before, and the T new.
    """
    new, count, window = {"key": key, "value": value}, key.shape[1], cache["key"].shape[2]
    if count == 1:
        cache = _write(cache, layer, cache["index"] % window, new)
        return read_cache(cache["key"], layer), read_cache(cache["value"], layer), cache
    before = {name: read_cache(cache[name], layer) for name in new}
    seen = {name: jnp.concatenate([before[name], one.astype(before[name].dtype)], axis=1) for name, one in new.items()}
    kept = min(count, window)
    slots = (cache["index"] + jnp.arange(count - kept, count, dtype=jnp.int32)) % window
    written = {
        name: cache[name].at[layer, :, slots].set(one[:, count - kept :].swapaxes(0, 1).astype(cache[name].dtype))
        for name, one in new.items()
    }
    return seen["key"], seen["value"], cache | written


def _write(cache: dict, layer: Array, slot: Array, new: dict[str, Array]) -> dict:
    zero = jnp.zeros_like(slot)
    start = (layer, zero, slot, zero, zero)
    return cache | {
        name: lax.dynamic_update_slice(cache[name], one[None].astype(cache[name].dtype), start)
        for name, one in new.items()
    }
