"""What causal language models share: positions from masks, layers with or without a cache, tied and untied logits."""

from typing import Any

import jax.numpy as jnp
from jax import lax

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.types import Array
from lowrank_jax.layouts.segments import segments as stack_segments
from lowrank_jax.models.parts.attend import one_document
from lowrank_jax.models.parts.cache import BeamCache, Cache, allowed_in_ring, allowed_keys, window_of
from lowrank_jax.models.parts.shared import SharedCache
from lowrank_jax.models.parts.stack import Model, run_layers


class CausalLM(Model):
    """tokens -> float32 logits. A model sets up embed, its layers, final_norm and, untied, head; and gives `start`.

    Of config, max_position_embeddings, num_hidden_layers and tie_word_embeddings are read here; fields as in `Model`.
    """

    def start(self, tokens: Array, positions: Array, slots: int | None = None) -> tuple[Array, Any]:
        """tokens [B, T], positions [T] or [B, T] -> the layers' input: x [B, T, D], a `rotary.Rotation` or None.

        Args:
          slots: length of the cache; None without one.
        """
        raise NotImplementedError

    def kinds(self) -> dict[str, Any]:
        """What differs between layers, {name: [L]}; a block gets its own entries."""
        return {}

    def __call__(
        self,
        tokens: Array,
        positions: Array | None = None,
        mask: Array | None = None,
        cache: Cache | BeamCache | SharedCache | None = None,
        segments: Array | None = None,
    ) -> Any:
        """logits(hidden(...)): float32 [B, T, V]; (logits, cache) when a cache is given. Arguments as in `hidden`."""
        if cache is None:
            return self.logits(self.hidden(tokens, positions, mask, segments=segments))
        hidden, cache = self.hidden(tokens, positions, mask, cache)
        return self.logits(hidden), cache

    def hidden(
        self,
        tokens: Array,
        positions: Array | None = None,
        mask: Array | None = None,
        cache: Cache | BeamCache | SharedCache | None = None,
        segments: Array | None = None,
    ) -> Any:
        """The final norm's output, [B, T, D] in the compute dtype; (hidden, cache) when a cache is given.

        Args:
          tokens: int32 [B, T].
          positions: int32 [T] or [B, T]; by default the count of valid tokens before each, or 0, 1, ... without a mask.
          mask: bool [B, S], the valid tokens: S is T, or the cache's length. None: all. Attention is causal.
          cache: from `cache.init_cache`; tokens fill its slots from index on, and its index grows by T. Or from
            `cache.share`: tokens are one of each beam, T is their number, and positions are given. Or a
            `shared.SharedCache`: tokens go on from a beginning that several rows share.
          segments: int32 [B, T], the number of each token's document, where a row has several: neighbours of equal
            number are one document. Each is read as if it stood alone: attention stays within it, and positions begin
            again at 0. Not with a mask or a cache.

        Raises:
          UserError: more tokens than the model has positions.
        """
        c, (batch, length) = self.config, tokens.shape
        if length > c.max_position_embeddings and not isinstance(cache, BeamCache):
            raise UserError(
                f"sequences of {length} tokens exceed the model's {c.max_position_embeddings} positions; shorten them"
            )
        if segments is not None and not (mask is None and cache is None):
            raise ValueError("packed rows have segments alone: no mask and no cache")
        slots = length if cache is None else cache.length
        if mask is not None and mask.shape != (batch, slots):
            raise ValueError(f"mask has shape {mask.shape}; it needs one bool per row and key slot, {(batch, slots)}")
        if isinstance(cache, BeamCache):
            if positions is None:
                raise ValueError("tokens of beams need their positions")
            return self.cached(*self.start(tokens, positions, slots), None, mask, cache)
        index = None if cache is None else cache.index
        if positions is None:
            positions = default_positions(length, mask, index) if segments is None else positions_within(segments)
            if isinstance(cache, SharedCache):
                positions = positions + cache.prefix.of_rows(batch)[:, None]
                positions = jnp.minimum(positions, c.max_position_embeddings - 1)  # of padding behind a row
        x, rotary = self.start(tokens, positions, None if cache is None else slots)
        allowed = allowed_keys(length, mask, index, slots) if segments is None else one_document(segments)
        if isinstance(cache, SharedCache):
            allowed = cache.seen(positions, mask)
        if cache is not None:
            return self.cached(x, rotary, allowed, mask, cache)
        x, _ = run_layers(self, (x, None), rotary, allowed, self.kinds())
        return self.final_norm(x)

    def cached(self, x: Array, rotary: Any, allowed: Any, mask: Array | None, cache: Any) -> tuple[Array, Any]:
        """(hidden, cache) after the layers, each with its row of the cache.

        Args:
          x, rotary: from `start`.
          allowed: the mask of layers whose cache has all tokens; that of rings and of beams is made here. Or
            `shared.SharedKeys`.
          mask, cache: as in `hidden`.
        """
        layers, kinds, (_, length, _) = {}, self.kinds(), x.shape
        rings: dict[int, Array] = {}  # a window's length -> its mask
        for name, low, high in stack_segments(self.config.num_hidden_layers, self.cuts):
            stored, window, seen = cache.stored(name), window_of(self.config, low, high), allowed
            if isinstance(cache, BeamCache):
                seen = cache.seen(name, mask)
            elif not isinstance(cache, SharedCache) and window is not None and stored["key"].shape[2] == window:
                stored["ring"] = cache.index  # only the key matters; the value is an array that a scan can carry
                if window not in rings:
                    rings[window] = allowed_in_ring(length, mask, cache.index, window)
                seen = rings[window]
            layer = {kind: each[low:high] for kind, each in kinds.items()}
            layer["number"] = jnp.arange(high - low, dtype=jnp.int32)
            (x, stored), _ = getattr(self, name)((x, stored), rotary, seen, layer)
            layers[name] = {part: stored[part] for part in ("key", "value")}
        return self.final_norm(x), cache.grown(layers, length)

    def logits(self, hidden: Array) -> Array:
        """hidden [..., D] -> float32 [..., V]: operands in the compute dtype, accumulated in float32."""
        return self.embed.logits(hidden) if self.config.tie_word_embeddings else self.head(hidden)


def default_positions(length: int, mask: Array | None, index: Array | None) -> Array:
    """Positions of the tokens at slots index .. index + length: valid tokens before each; 0 at left padding."""
    if mask is None:
        positions = jnp.arange(length, dtype=jnp.int32)
        return positions if index is None else positions + index
    positions = jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)
    return positions if index is None else lax.dynamic_slice_in_dim(positions, index, length, axis=1)


def positions_within(segments: Array) -> Array:
    """Positions [B, T] of packed rows: each token's place in its document, a stretch of equal numbers."""
    places = jnp.arange(segments.shape[1], dtype=jnp.int32)
    begins = jnp.diff(segments, axis=1, prepend=segments[:, :1]) != 0
    return places - lax.cummax(jnp.where(begins, places, 0), axis=1)
