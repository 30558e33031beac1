"""Scores of predicted classes: accuracy, F1 and Matthews' correlation, from scikit-learn."""

from types import ModuleType

import numpy as np

from lowrank_jax.core import libraries

SKLEARN = ("sklearn.metrics", "scores of classes need", "scikit-learn>=1.6")


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Share of predictions that are right.

    Args:
      predictions, labels: classes [n].
    """
    return float(_metrics().accuracy_score(labels, predictions))


def f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """F1 of class 1, 2 TP / (2 TP + FP + FN); 0 where class 1 is neither predicted nor a target.

    Args:
      predictions, labels: classes 0 and 1, [n].
    """
    return float(_metrics().f1_score(labels, predictions, zero_division=0.0))


def macro_f1(predictions: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """Mean over all classes of their F1; that of a class that is neither predicted nor a target is 0.

    Args:
      predictions, labels: classes 0 to classes - 1, [n].
      classes: how many there are.
    """
    given = {"labels": list(range(classes)), "average": "macro", "zero_division": 0.0}
    return float(_metrics().f1_score(labels, predictions, **given))


def weighted_f1(predictions: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """Mean over all classes of the F1 of each, weighted by how many labels it has.

    Args: as `macro_f1`.
    """
    given = {"labels": list(range(classes)), "average": "weighted", "zero_division": 0.0}
    return float(_metrics().f1_score(labels, predictions, **given))


def matthews(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Matthews' correlation, (TP TN - FP FN) / sqrt((TP + FP)(TP + FN)(TN + FP)(TN + FN)).

    Where that is 0 / 0, as for a constant prediction, it is 0.

    Args:
      predictions, labels: classes [n].
    """
    return float(_metrics().matthews_corrcoef(labels, predictions))


def check_library() -> None:
    """Raises a UserError where scikit-learn, which computes the scores, is missing."""
    libraries.check(*SKLEARN)


def _metrics() -> ModuleType:
    return libraries.load(*SKLEARN)
