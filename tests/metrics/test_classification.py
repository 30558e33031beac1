"""Accuracy, F1 and Matthews' correlation against counts done by hand, and their conventions."""

import math
import sys

import numpy as np
import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.metrics.classification import accuracy, f1, matthews

# TP 3, FP 1, FN 2, TN 4.
PREDICTIONS = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
LABELS = np.array([1, 1, 1, 0, 1, 1, 0, 0, 0, 0])


def test_golden_values():
    assert accuracy(PREDICTIONS, LABELS) == pytest.approx(7 / 10)
    assert f1(PREDICTIONS, LABELS) == pytest.approx(6 / 9)  # 2 TP / (2 TP + FP + FN)
    assert f1(LABELS, PREDICTIONS) == f1(PREDICTIONS, LABELS)
    assert f1(1 - PREDICTIONS, 1 - LABELS) == pytest.approx(8 / 11)  # class 1 alone counts
    assert matthews(PREDICTIONS, LABELS) == pytest.approx((3 * 4 - 1 * 2) / math.sqrt(4 * 5 * 5 * 6))
    assert matthews(1 - PREDICTIONS, LABELS) == pytest.approx(-matthews(PREDICTIONS, LABELS))


def test_several_classes():
    # 3 classes, 4 of 6 right; by hand, R_K of Gorodkin (2004): (6*4 - 12) / sqrt((36 - 12)(36 - 12)) = 12 / 24.
    predictions, labels = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 1, 2, 0])
    assert accuracy(predictions, labels) == pytest.approx(4 / 6)
    truth, said = np.bincount(labels), np.bincount(predictions)
    top = 6 * 4 - (truth * said).sum()
    assert matthews(predictions, labels) == pytest.approx(
        top / math.sqrt((36 - (said**2).sum()) * (36 - (truth**2).sum()))
    )


def test_constant_predictions():
    assert matthews(np.ones(10, int), LABELS) == 0
    assert f1(np.zeros(10, int), LABELS) == 0
    assert f1(np.ones(10, int), LABELS) == pytest.approx(10 / 15)
    assert f1(np.zeros(3, int), np.zeros(3, int)) == 0


def test_missing_scikit_learn_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(UserError, match="pip install 'scikit-learn"):
        accuracy(PREDICTIONS, LABELS)
