"""The k largest entries of long rows, found in the few chunks that can hold them: GPUs would sort whole rows."""

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Int

from lowrank_jax.core.types import Array

WORTH = 256  # entries of a row for each that is asked for, from which on it is searched by chunks


def largest(x: Float[Array, "B n"], k: int) -> tuple[Float[Array, "B k"], Int[Array, "B k"]]:
    """`lax.top_k`, its order of equal entries too; 0 and -0 are equal here, and NaN has no order of its own.

    An entry is one of the k largest only in a chunk whose maximum is one of the k largest maxima: otherwise k other
    chunks each have an entry that comes before it. Here "larger" includes "equal and further left".

    Args:
      x: rows.
      k: at most n.
    """
    length = x.shape[1]
    size = chunk(length, k)
    return lax.top_k(x, k) if size is None else within_chunks(x, k, size)


def chunk(length: int, k: int) -> int | None:
    """How many entries a chunk has: as many maxima are then searched as entries of chunks; None for no chunks."""
    return None if length < WORTH * k else 1 << round(math.log2(length / k) / 2)


def within_chunks(x: Float[Array, "B n"], k: int, size: int) -> tuple[Float[Array, "B k"], Int[Array, "B k"]]:
    """`largest` by chunks of `size` entries, at least k of them; the last may be shorter."""
    rows, length = x.shape
    chunks = -(-length // size)
    padded = jnp.pad(x, ((0, 0), (0, chunks * size - length)), constant_values=-jnp.inf)
    maxima = jnp.max(padded.reshape(rows, chunks, size), axis=2)
    chosen = jnp.sort(lax.top_k(maxima, k)[1], axis=1)  # from left to right, as equal entries are
    places = (chosen[:, :, None] * size + jnp.arange(size, dtype=jnp.int32)).reshape(rows, k * size)
    entries = jnp.take_along_axis(x, places, axis=1, mode="fill", fill_value=-jnp.inf)
    best, which = lax.top_k(entries, k)
    return best, jnp.take_along_axis(places, which, axis=1)
