"""Which next tokens would repeat a stretch of n tokens that the text already has."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Int

from lowrank_jax.core.types import Array


def repeating(
    tokens: Int[Array, "R S"], valid: Bool[Array, "R S"], end: Int[Array, ""], n: int, vocabulary: int
) -> Bool[Array, "R {vocabulary}"]:
    """True at the tokens that with a row's last n - 1 tokens make n that stand in it already, prompt included.

    Padding is no part of the text: a row with fewer than n - 1 tokens bans nothing.

    Args:
      tokens: int32, the texts.
      valid: False at the padding, which stands in front.
      end: how many slots are written; those behind are not read.
      n: at least 1, static; 1 bans every token that the row has had.
      vocabulary: V.
    """
    rows, slots = tokens.shape
    windows = slots - n + 1
    if windows < 1:
        return jnp.zeros((rows, vocabulary), bool)
    first = end - (n - 1)  # of the last n - 1 tokens
    found = valid[:, :windows] & (jnp.arange(n - 1, slots, dtype=jnp.int32) < end)
    if n > 1:
        found = found & (first >= 0) & lax.dynamic_slice_in_dim(valid, jnp.maximum(first, 0), 1, axis=1)
    for i in range(n - 1):
        suffix = lax.dynamic_slice_in_dim(tokens, jnp.maximum(first + i, 0), 1, axis=1)
        found = found & (tokens[:, i : i + windows] == suffix)
    blank = jnp.zeros((rows, vocabulary), bool)
    return blank.at[jnp.arange(rows)[:, None], tokens[:, n - 1 :]].max(found)
