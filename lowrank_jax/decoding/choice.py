"""Chooses the next token: the most likely one, or one drawn after top-k, top-p and so on, in transformers' order."""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from lowrank_jax.core.ranges import Range, check_ranges
from lowrank_jax.core.types import Array, PRNGKey

COLDEST = 1e-4  # logits of 1e4 divided by it are far inside float32's range


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; the defaults choose the most likely one.

    Attributes:
      temperature: divides the logits; 0 takes the most likely token, for which only the penalty matters too.
      top_k: keeps the k most likely tokens; 0 keeps all.
      top_p: keeps the most likely tokens that together reach this probability.
      min_p: keeps tokens that have at least this fraction of the most likely one's probability.
      repetition_penalty: divides positive logits of tokens that the row has had, prompt included, and multiplies
        negative ones.
      seed: of the draws.
    """

    temperature: Annotated[float, Range(least=COLDEST, also=(0,))] = 0.0
    top_k: Annotated[int, Range(least=0)] = 0
    top_p: Annotated[float, Range(above=0, most=1)] = 1.0
    min_p: Annotated[float, Range(least=0, most=1)] = 0.0
    repetition_penalty: Annotated[float, Range(above=0)] = 1.0
    seed: Annotated[int, Range(least=0, most=2**32 - 1)] = 0

    def __post_init__(self):
        check_ranges(self, "sampling")


def row_keys(seed: int, rows: Int[Array, " B"]) -> PRNGKey:
    """A key for each row, from the seed and the row's number alone: no other row of the batch changes its text."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), rows)


def choose(
    logits: Float[Array, "B V"], seen: Bool[Array, "B V"] | None, keys: PRNGKey, step: Int[Array, ""], how: Sampling
) -> Int[Array, " B"]:
    """The next token of each row, int32.

    Args:
      logits: float32.
      seen: True at tokens that the row has had; None where nothing is penalised.
      keys: of `row_keys`; token `step` of a row is drawn with fold_in(its key, step).
      step: tokens written before.
      how: how they are chosen; static under `jax.jit`.
    """
    if seen is not None:
        logits = penalise(logits, seen, how.repetition_penalty)
    if how.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    now = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, step)
    return jax.vmap(jax.random.categorical)(now, warp(logits, how)).astype(jnp.int32)


def penalise(logits: Float[Array, "B V"], seen: Bool[Array, "B V"], penalty: float) -> Float[Array, "B V"]:
    """Logits l of seen tokens become l / penalty where l > 0, otherwise l * penalty (Keskar et al., 1909.05858)."""
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def warp(logits: Float[Array, "B V"], how: Sampling) -> Float[Array, "B V"]:
    """Logits after temperature, top-k, top-p and min-p, in this order; a token that is left out has -inf."""
    logits = logits / how.temperature
    if 0 < how.top_k < logits.shape[-1]:
        logits = keep(logits, jax.lax.top_k(logits, how.top_k)[0][:, -1:])
    if how.top_p < 1:
        ascending = jnp.sort(logits, axis=-1)
        below = jnp.cumsum(jax.nn.softmax(ascending, axis=-1), axis=-1)  # of each token and all less likely ones
        kept = (below > 1 - how.top_p).at[:, -1].set(True)
        logits = keep(logits, jnp.min(jnp.where(kept, ascending, jnp.inf), axis=-1, keepdims=True))
    if how.min_p > 0:
        share = jax.nn.softmax(logits, axis=-1)
        logits = jnp.where(share < how.min_p * jnp.max(share, axis=-1, keepdims=True), -jnp.inf, logits)
    return logits


def keep(logits: Float[Array, "B V"], least: Float[Array, "B 1"]) -> Float[Array, "B V"]:
    """Logits of which those below `least` are -inf; ties with it stay."""
    return jnp.where(logits < least, -jnp.inf, logits)
