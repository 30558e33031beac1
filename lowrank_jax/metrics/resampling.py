"""95% intervals of scores by the bootstrap: the middle of the scores of 1,000 resamples of the questions."""

from collections.abc import Sequence

import numpy as np

DRAWS = 1000  # resamples
MIDDLE = (2.5, 97.5)  # percentiles that hold 95% between them


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """95% interval (low, high) of the mean of one value a question.

    Args:
      values: one or more.
    """
    each = np.asarray(values, np.float64)
    counts = np.random.default_rng(0).multinomial(len(each), np.full(len(each), 1 / len(each)), DRAWS)
    return _middle(counts @ each / len(each))


def weighted_f1_interval(groups: Sequence[tuple[np.ndarray, np.ndarray]], classes: int) -> tuple[float, float]:
    """95% interval (low, high) of `classification.weighted_f1`, averaged over groups, each of which is resampled apart.

    Args:
      groups: (predictions, labels) of each, [n] of its own n; a prediction of `classes` is of no class.
      classes: how many there are.
    """
    rng, total = np.random.default_rng(0), np.zeros(DRAWS)
    for predictions, labels in groups:
        counts = np.zeros((classes, classes + 1))
        np.add.at(counts, (labels, predictions), 1)
        drawn = rng.multinomial(len(labels), counts.ravel() / len(labels), DRAWS)
        total += _weighted_f1(drawn.reshape(DRAWS, classes, classes + 1))
    return _middle(total / len(groups))


def _weighted_f1(counts: np.ndarray) -> np.ndarray:
    """From counts [..., class, predicted] the mean F1 of the classes [...], each weighted by its number of labels."""
    own, said = counts.sum(axis=-1), counts.sum(axis=-2)[..., :-1]
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    f1 = 2 * hits / np.maximum(own + said, 1)
    return (own * f1).sum(axis=-1) / own.sum(axis=-1)


def _middle(scores: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(scores, MIDDLE)
    return float(low), float(high)
