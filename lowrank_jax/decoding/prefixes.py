"""Finds the rows that begin alike, so that each common beginning is read once (`decoder.Shared`)."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SHORTEST = 32  # tokens of a beginning that is read apart: a shorter one is read again in less time than it takes


class Group(NamedTuple):
    """Rows with a common beginning.

    Attributes:
      length: how many tokens they share; 0: none, and each is read whole.
      rows: their numbers.
    """

    length: int
    rows: list[int]


def shared_groups(
    rows: Sequence[Sequence[int]], most: Sequence[int], fewest: int = 2, shortest: int = SHORTEST
) -> list[Group]:
    """Divides rows into groups so that few tokens are read: the beginning of each group once, then what follows it.

    The rows are sorted, which puts those that begin alike side by side: a tree whose nodes are common beginnings. A
    node of n rows that share c of their tokens is one group where c + sum(length - c) is no more than what its
    branches, each divided in the same way, need. A beginning of a beginning is not read apart.

    Args:
      rows: token ids.
      most: how many tokens of each row may be in a beginning: fewer than it has, for something has to
        be read beside it.
      fewest, shortest: rows and tokens of a beginning that is read apart.

    Returns:
      groups with a beginning in the rows' sorted order, and last, where there are any, the rows without one.
    """
    keys = [tuple(row[:count]) for row, count in zip(rows, most, strict=True)]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    common = np.array([_common(keys[one], keys[two]) for one, two in itertools.pairwise(order)], np.int64)
    ends = np.cumsum([0, *(len(rows[row]) for row in order)])
    nodes = _nodes(common, len(order))
    costs, shares = {}, {}
    for low, high in reversed(list(nodes)):  # branches before their node
        branches, whole = nodes[low, high], int(ends[high] - ends[low])
        length = int(common[low : high - 1].min()) if branches else 0
        apart = sum(costs[branch] for branch in branches) if branches else whole
        together = whole - length * (high - low - 1)
        shared = high - low >= fewest and length >= shortest and together <= apart
        costs[low, high], shares[low, high] = (together if shared else apart), shared * length
    found, alone, left = [], [], [(0, len(order))] if order else []
    while left:
        low, high = node = left.pop()
        if shares[node]:
            found.append(Group(shares[node], order[low:high]))
        elif nodes[node]:
            left += reversed(nodes[node])
        else:
            alone += order[low:high]
    return [*found, *([Group(0, alone)] if alone else [])]


def _nodes(common: np.ndarray, count: int) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """{stretch of sorted rows: its branches}, each before its branches; a single row has none.

    Args:
      common: tokens that each row shares with the next one, [count - 1].
    """
    found, left = {}, [(0, count)] if count else []
    while left:
        low, high = left.pop()
        inner = common[low : high - 1]
        cuts = [low, *(low + 1 + np.flatnonzero(inner == inner.min())).tolist(), high] if len(inner) else []
        found[low, high] = list(itertools.pairwise(cuts))
        left += found[low, high]
    return found


def _common(one: tuple[int, ...], two: tuple[int, ...]) -> int:
    """How many tokens two rows begin with alike."""
    for place, (left, right) in enumerate(zip(one, two, strict=False)):
        if left != right:
            return place
    return min(len(one), len(two))
