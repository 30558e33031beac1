"""Correlations of predicted with true scores, from scipy."""

import numpy as np


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Pearson's r, cov(p, y) / (std(p) std(y)); 0 where either is constant, for which it is not defined.

    Args:
      predictions, labels: scores [n], n at least 2.
    """
    from scipy.stats import pearsonr

    return _correlation(pearsonr, predictions, labels)


def spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Spearman's rho, Pearson's r of the ranks (equal scores share the mean rank); 0 where either is constant.

    Args:
      predictions, labels: scores [n], n at least 2.
    """
    from scipy.stats import spearmanr

    return _correlation(spearmanr, predictions, labels)


def _correlation(function, predictions: np.ndarray, labels: np.ndarray) -> float:
    # In float64 two float32 numbers that differ at all differ by more than rounding, so "constant" means all equal.
    predictions, labels = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    return float(function(predictions, labels).statistic)
