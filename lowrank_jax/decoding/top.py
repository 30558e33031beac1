"""The k largest entries of long rows, found in the few chunks that can hold them; on a GPU XLA would sort all."""

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Int

from lowrank_jax.core.types import Array

LONG = 256  # a row of so many entries, or more, for each of the k that are asked for is searched by chunks


def largest(x: Float[Array, "B n"], k: int) -> tuple[Float[Array, "B k"], Int[Array, "B k"]]:
    """The k largest entries of each row and their places, in the order of `lax.top_k`, of equal entries too.

    Only NaN, and 0 beside -0, may come in another order.

    An entry is one of the k largest only in a chunk whose maximum is one of the k largest maxima: otherwise k other
    chunks each have an entry that comes before it. Here "larger" includes "equal and further left".

    Args:
      x: rows.
      k: at most n.
    """
    length = x.shape[1]
    size = chunk_size(length, k)
    return lax.top_k(x, k) if size is None else within_chunks(x, k, size)


def chunk_size(length: int, k: int) -> int | None:
    """How many entries a chunk has; None for rows that are searched whole.

    The power of two next to sqrt(length / k): there are then about as many maxima as entries of the k chosen chunks.
    """
    return None if length < LONG * k else 1 << round(math.log2(length / k) / 2)


def within_chunks(x: Float[Array, "B n"], k: int, size: int) -> tuple[Float[Array, "B k"], Int[Array, "B k"]]:
    """`largest` by chunks of `size` entries; there are at least k chunks, of which the last may be shorter."""
    rows, length = x.shape
    chunks = -(-length // size)
    padded = jnp.pad(x, ((0, 0), (0, chunks * size - length)), constant_values=-jnp.inf)
    maxima = jnp.max(padded.reshape(rows, chunks, size), axis=2)
    chosen = jnp.sort(lax.top_k(maxima, k)[1], axis=1)  # from left to right, as equal entries are
    places = (chosen[:, :, None] * size + jnp.arange(size, dtype=jnp.int32)).reshape(rows, k * size)
    entries = jnp.take_along_axis(x, places, axis=1, mode="fill", fill_value=-jnp.inf)
    best, which = lax.top_k(entries, k)
    return best, jnp.take_along_axis(places, which, axis=1)
