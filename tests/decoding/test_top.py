"""The k largest entries by chunks: those of lax.top_k, in its order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lowrank_jax.decoding.top import LONG, chunk_size, largest, within_chunks


@pytest.mark.parametrize(("length", "k", "size"), [(60, 5, 4), (61, 5, 4), (64, 1, 64), (100, 30, 2), (60, 3, None)])
def test_equals_top_k_with_ties(length, k, size):
    """Entries of few different values, of -inf in whole chunks and alone, and rows with fewer finite ones than k."""
    rng = np.random.default_rng(length)
    x = rng.integers(0, 4, (40, length)).astype(np.float32)
    x[rng.random(x.shape) < np.linspace(0, 1, 40)[:, None]] = -np.inf
    x[:8, : length // 2] = -np.inf
    wanted = jax.tree.map(np.asarray, lax.top_k(x, k))
    assert len({int(row) for row in np.isinf(wanted[0]).sum(1)}) > 1 or k == 1
    found = jax.jit(lambda x: largest(x, k) if size is None else within_chunks(x, k, size))(x)
    jax.tree.map(np.testing.assert_array_equal, tuple(found), tuple(wanted))


def test_rows_of_a_vocabulary_are_searched_by_chunks():
    """Ten beams' scores: a chunk's size halves the two searches; short rows are searched whole."""
    assert chunk_size(10 * 49152, 30) == 128
    assert chunk_size(LONG * 30 - 1, 30) is None
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(2, LONG * 30 + 1)), jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, tuple(largest(rows, 30)), tuple(lax.top_k(rows, 30)))
    searched = [
        [equation.invars[0].aval.shape[1] for equation in jax.make_jaxpr(lambda x: largest(x, 30))(row).eqns
         if equation.primitive is lax.top_k_p]
        for row in (rows, rows[:, : LONG * 30 - 1])
    ]  # fmt: skip
    assert searched == [[481, 480], [LONG * 30 - 1]]
