"""Pearson's and Spearman's correlation against values done by hand, and their convention for constants."""

import math

import numpy as np
import pytest

from lowrank_jax.metrics.correlation import pearson, spearman

X, Y = np.array([1.0, 2.0, 3.0, 5.0]), np.array([2.0, 1.0, 4.0, 9.0])


def test_golden_values():
    # Means 2.75 and 4: products 3.5 + 2.25 + 0 + 11.25 = 17, squares 8.75 and 38.
    assert pearson(X, Y) == pytest.approx(17 / math.sqrt(8.75 * 38))
    # Ranks 1 2 3 4 and 2 1 3 4: 1 - 6 * (1 + 1) / (4 * 15).
    assert spearman(X, Y) == pytest.approx(0.8)
    # A tie shares the mean rank: 1.5 1.5 3 4 against 2 1 3 4 gives 4.5 / sqrt(4.5 * 5).
    assert spearman(np.array([1.0, 1.0, 3.0, 5.0]), Y) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_properties():
    assert pearson(3 * X + 1, Y) == pytest.approx(pearson(X, Y))
    assert pearson(-X, Y) == pytest.approx(-pearson(X, Y))
    assert spearman(np.exp(X), Y) == pytest.approx(spearman(X, Y))
    assert pearson(X.astype(np.float32), Y.astype(np.float32)) == pytest.approx(pearson(X, Y))


@pytest.mark.parametrize("function", [pearson, spearman])
def test_a_constant_gives_zero_without_a_warning(function, recwarn):
    constant = np.full(4, 2.7, np.float32)
    assert function(constant, Y) == 0
    assert function(X, constant) == 0
    one_step = constant.copy()
    one_step[0] = np.nextafter(one_step[0], np.float32(3))  # as near to constant as float32 can be
    assert np.isfinite(function(one_step, Y))
    assert not recwarn.list
