"""The interface of a model that decodes: a call reads whole prompts, others a token of each row or beam."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp

from lowrank_jax.core.types import ApplyFn, Array, Tree
from lowrank_jax.models.parts.cache import BeamCache, init_cache


class Start(Protocol):
    """Reads the prompts."""

    def __call__(self, variables: Tree, tokens: Array, mask: Array, length: int) -> tuple[Array, Any]:
        """Args:
          variables: of the model.
          tokens, mask: int32 and bool [B, P], padded on the left; True at the prompt.
          length: slots of the cache: P, and one for each new token.

        Returns:
          float32 logits [B, V] after each prompt's last token, and the cache.
        """
        ...


class Step(Protocol):
    """Reads one more token of each row."""

    def __call__(self, variables: Tree, token: Array, position: Array, slots: Array, cache: Any) -> tuple[Array, Any]:
        """Args:
          variables: of the model.
          token, position: int32 [B]; the position counts the tokens before it, without padding.
          slots: bool [B, length], False at the padding.
          cache: of `Start` or of the step before.

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


class Decoder(NamedTuple):
    """A model as `loop`, `stream` and `beam` call it.

    Attributes:
      start, step: for one text a prompt.
      beams: `step` for several; None where the model's cache is none of the package's.
    """

    start: Start
    step: Step
    beams: BeamStep | None = None


def make_decoder(apply_fn: ApplyFn, model: Any, dtype: Any, cuts: Sequence[int] = ()) -> Decoder:
    """Makes a decoder of a causal model, with or without adapters.

    Args:
      apply_fn: takes (variables, tokens, positions=, mask=, cache=, method="hidden") and (variables, hidden,
        method="logits").
      model: the model's config.
      dtype: of the cache.
      cuts: of the model's layers into segments (`layouts.segments`), of which the cache has the same.
    """
    return cached_decoder(apply_fn, lambda batch, length: init_cache(model, batch, length, dtype, cuts))


def cached_decoder(apply_fn: ApplyFn, empty: Callable[[int, int], Any]) -> Decoder:
    """`make_decoder` for a model with a cache of its own: `empty` is (batch, length) -> an empty cache."""

    def read(variables, tokens, positions, slots, cache):
        hidden, cache = apply_fn(variables, tokens, positions=positions, mask=slots, cache=cache, method="hidden")
        return apply_fn(variables, hidden[:, -1], method="logits"), cache

    def start(variables, tokens, mask, length):
        batch, width = tokens.shape
        slots = jnp.concatenate([mask, jnp.ones((batch, length - width), bool)], axis=1)
        positions = jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)
        return read(variables, tokens, positions, slots, empty(batch, length))

    def step(variables, token, position, slots, cache):
        return read(variables, token[:, None], position[:, None], slots, cache)

    def beams(variables, tokens, positions, slots, cache):
        hidden, cache = apply_fn(variables, tokens, positions=positions, mask=slots, cache=cache, method="hidden")
        return apply_fn(variables, hidden, method="logits"), cache

    return Decoder(start, step, beams)
