"""The interface of a model that decodes: a call reads whole prompts, others a token of each row or beam."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp

from lowrank_jax.core.types import ApplyFn, Array, Tree
from lowrank_jax.models.parts.cache import BeamCache, Cache, init_cache
from lowrank_jax.models.parts.shared import Prefix, SharedCache, can_share


class Start(Protocol):
    """Reads the prompts."""

    def __call__(
        self, variables: Tree, tokens: Array, mask: Array, length: int, prefix: Prefix | None = None
    ) -> tuple[Array, Any]:
        """Args:
          variables: of the model.
          tokens, mask: int32 and bool [B, P], padded on the left; True at the prompt.
          length: slots of the cache: P, and one for each new token.
          prefix: the beginning of all prompts, read before; it is then neither in tokens nor in the cache. None: the
            prompts are whole.

        Returns:
          float32 logits [B, V] after each prompt's last token, and the cache.
        """
        ...


class Step(Protocol):
    """Reads one more token of each row."""

    def __call__(
        self,
        variables: Tree,
        token: Array,
        position: Array,
        slots: Array,
        cache: Any,
        prefix: Prefix | None = None,
    ) -> tuple[Array, Any]:
        """Args:
          variables: of the model.
          token, position: int32 [B]; the position counts the tokens before it, without padding.
          slots: bool [B, length], False at the padding.
          cache: of `Start` or of the step before.
          prefix: as `Start` was given.

        Returns:
          float32 logits [B, V], and the cache.
        """
        ...


class BeamStep(Protocol):
    """Reads one more token of each beam."""

    def __call__(
        self, variables: Tree, tokens: Array, positions: Array, slots: Array, cache: BeamCache
    ) -> tuple[Array, BeamCache]:
        """Args:
          variables: of the model.
          tokens, positions: int32 [B, K]; positions as in `Step`.
          slots: bool [B, length], False at the padding.
          cache: `models.parts.cache.share` of the one that `Start` returned, or of the step before.

        Returns:
          float32 logits [B, K, V], and the cache.
        """
        ...


class Shared(NamedTuple):
    """Reads a beginning once, and then rows that go on from it.

    Attributes:
      read: (variables, tokens [G, P], lengths [G]) -> `Prefix` of G beginnings, padded on the right.
      extend: (variables, prefix, tokens [G, Q], lengths [G]) -> `Prefix` of G beginnings that go on from a single one.
      hidden: (variables, prefix, tokens [G R, T]) -> [G R, T, D], what the model makes of the tokens of rows that go on
        from the beginnings, R from each; padded on the right. The rows' own keys and values, 2 L G R T kv_heads
        head_dim numbers, are kept while it runs.
    """

    read: Callable[[Tree, Array, Array], Prefix]
    extend: Callable[[Tree, Prefix, Array, Array], Prefix]
    hidden: Callable[[Tree, Prefix, Array], Array]


class Decoder(NamedTuple):
    """A model as `loop`, `stream` and `beam` call it.

    Attributes:
      start, step: for one text a prompt.
      beams: `step` for several; None where the model's cache is none of the package's.
      shared: for beginnings that several prompts share; None where the model cannot read them apart
        (`models.parts.shared.can_share`). `start` and `step` then take no prefix.
    """

    start: Start
    step: Step
    beams: BeamStep | None = None
    shared: Shared | None = None


def make_decoder(apply_fn: ApplyFn, model: Any, dtype: Any, cuts: Sequence[int] = ()) -> Decoder:
    """Makes a decoder of a causal model, with or without adapters.

    Args:
      apply_fn: takes (variables, tokens, positions=, mask=, cache=, method="hidden") and (variables, hidden,
        method="logits").
      model: the model's config.
      dtype: of the cache.
      cuts: of the model's layers into segments (`layouts.segments`), of which the cache has the same.
    """

    def empty(batch: int, length: int) -> Cache:
        return init_cache(model, batch, length, dtype, cuts)

    def whole(batch: int, length: int) -> Cache:
        return init_cache(model, batch, length, dtype, cuts, rings=False)

    return cached_decoder(apply_fn, empty, whole if can_share(model) else None)


def cached_decoder(
    apply_fn: ApplyFn, empty: Callable[[int, int], Any], whole: Callable[[int, int], Cache] | None = None
) -> Decoder:
    """`make_decoder` for a model with a cache of its own.

    Args:
      apply_fn: as there.
      empty: (batch, length) -> an empty cache.
      whole: the same without rings, of a model that can read beginnings apart; None of one that cannot.
    """

    def read(variables, tokens, positions, slots, cache, prefix):
        given = cache if prefix is None else SharedCache(prefix, cache)
        hidden, given = apply_fn(variables, tokens, positions=positions, mask=slots, cache=given, method="hidden")
        cache = given.own if isinstance(given, SharedCache) else given
        return apply_fn(variables, hidden[:, -1], method="logits"), cache

    def start(variables, tokens, mask, length, prefix=None):
        batch, width = tokens.shape
        slots = jnp.concatenate([mask, jnp.ones((batch, length - width), bool)], axis=1)
        positions = jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)
        if prefix is None:
            return read(variables, tokens, positions, slots, empty(batch, length), None)
        assert whole is not None  # otherwise nothing has read the prefix
        positions = positions + prefix.of_rows(batch)[:, None]
        return read(variables, tokens, positions, slots, whole(batch, length), prefix)

    def step(variables, token, position, slots, cache, prefix=None):
        return read(variables, token[:, None], position[:, None], slots, cache, prefix)

    def beams(variables, tokens, positions, slots, cache):
        hidden, cache = apply_fn(variables, tokens, positions=positions, mask=slots, cache=cache, method="hidden")
        return apply_fn(variables, hidden, method="logits"), cache

    return Decoder(start, step, beams, None if whole is None else _shared(apply_fn, whole))


def _shared(apply_fn: ApplyFn, whole: Callable[[int, int], Cache]) -> Shared:
    def read(variables, tokens, lengths):
        _, cache = apply_fn(variables, tokens, cache=whole(*tokens.shape), method="hidden")
        return Prefix(cache.layers, lengths)

    def beside(variables, prefix, tokens):
        cache = SharedCache(prefix, whole(*tokens.shape))
        return apply_fn(variables, tokens, cache=cache, method="hidden")

    def extend(variables, prefix, tokens, lengths):
        return prefix.extended(beside(variables, prefix, tokens)[1].own, lengths)

    def hidden(variables, prefix, tokens):
        return beside(variables, prefix, tokens)[0]

    return Shared(read, extend, hidden)
