"""Keys and values of a beginning that several rows share: kept once, and read with each row's own."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax.core.types import Array
from lowrank_jax.models.parts.cache import Cache, allowed_keys


class Prefix(NamedTuple):
    """Keys and values of G beginnings, each once, however many rows go on from it.

    They take 2 L G P kv_heads head_dim numbers and are not broadcast: `attend.shared_attention` multiplies the queries
    of all rows with them, where whole rows would have R times as much in their caches.

    Attributes:
      layers: {segment: {"key", "value": [L, G, P, kv_heads, head_dim]}}, those of a window too (no rings).
      lengths: int32 [G], how many of the P slots are tokens; padding is behind them.
    """

    layers: dict[str, dict[str, Array]]
    lengths: Array

    def of_rows(self, rows: int) -> Array:
        """The length of each row's beginning, int32 [rows]: the rows of a beginning stand together, equally many."""
        return jnp.repeat(self.lengths, rows // len(self.lengths), total_repeat_length=rows)

    def extended(self, own: Cache, lengths: Array) -> "Prefix":
        """The G beginnings that go on from this one, which is a single one and is copied for each of them.

        They take 2 L G (P + Q) kv_heads head_dim numbers: a copy a beginning, not a row.

        Args:
          own: of a `SharedCache`, with the tokens of the G rows behind it, padded on the right.
          lengths: int32 [G], how many these are.
        """

        def joined(before: Array, new: Array) -> Array:  # [L, 1, P, ...] and [L, G, Q, ...] -> [L, G, P + Q, ...]
            slots = jnp.zeros((*new.shape[:2], before.shape[2] + new.shape[2], *new.shape[3:]), new.dtype)
            slots = slots.at[:, :, : before.shape[2]].set(before)
            return lax.dynamic_update_slice_in_dim(slots, new, self.lengths[0], axis=2)

        return Prefix(jax.tree.map(joined, self.layers, own.layers), self.lengths + lengths)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SharedCache:
    """A cache of rows that go on from a `Prefix`: `own` has the tokens behind it, and alone grows.

    A model reads it as it reads `own`: masks are of own tokens. By default positions count on from the beginning.

    Attributes:
      prefix: of G beginnings.
      own: of G R rows, R to a beginning, one beginning's after the other's; without rings.
    """

    prefix: Prefix
    own: Cache

    @property
    def index(self) -> Array:
        """As `Cache.index`, of own tokens."""
        return self.own.index

    @property
    def length(self) -> int:
        """As `Cache.length`, of own tokens."""
        return self.own.length

    def stored(self, segment: str) -> dict[str, Array]:
        """What a segment's layers read and write; they do not write the beginning's."""
        before = {f"before_{part}": each for part, each in self.prefix.layers[segment].items()}
        return {**self.own.stored(segment), **before}

    def grown(self, layers: dict[str, dict[str, Array]], tokens: int) -> "SharedCache":
        """The cache after a call of `tokens` tokens a row."""
        return SharedCache(self.prefix, self.own.grown(layers, tokens))

    def seen(self, positions: Array, mask: Array | None) -> "SharedKeys":
        """The keys that the next tokens may attend to.

        Args:
          positions: int32 [T] or [B, T], of these tokens in the whole text.
          mask: bool [B, length], the valid own tokens; None means all.
        """
        queries = positions.shape[-1]
        own = allowed_keys(queries, mask, self.index, self.length)
        assert own is not None  # there is an index
        return SharedKeys(self.prefix.lengths, own, positions, self.index)


class SharedKeys(NamedTuple):
    """The keys of a `SharedCache`: of a beginning, and then each row's own.

    Attributes:
      lengths: int32 [G], as in `Prefix`.
      own: bool [B or 1, 1, T, S], True where a query may attend to an own key.
      positions: int32 [T] or [B, T], the queries' places in the whole text.
      index: int32 scalar, the first query's slot among the own keys.
    """

    lengths: Array
    own: Array
    positions: Array
    index: Array

    def before(self, rows: int, slots: int, window: int | None = None, local: Array | None = None) -> Array:
        """The allowed keys of the beginnings, bool [G, R or 1, T or 1, P].

        Args:
          rows: G R.
          slots: P.
          window, local: as in `attention.Attention`; a window counts from the query's place in the text.
        """
        places, groups = jnp.arange(slots, dtype=jnp.int32), len(self.lengths)
        there = places < self.lengths[:, None, None, None]
        if window is None:
            return there
        queries = jnp.broadcast_to(self.positions, (rows, self.positions.shape[-1])).reshape(groups, rows // groups, -1)
        near = places > queries[..., None] - window
        return there & (near if local is None else near | ~local)


def can_share(config: Any) -> bool:
    """Whether a causal model can read rows beside a beginning that was read before.

    Not where the rotation's frequencies depend on how long the rows are (dynamic and LongRoPE scalings): keys of a
    beginning would have to be rotated again for rows of another length.
    """
    scaling = getattr(config, "rope_scaling", None)
    return scaling is None or not scaling.by_length
