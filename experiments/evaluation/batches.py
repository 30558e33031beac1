"""Lays out continuations as batches of few shapes: rows sorted by length, padded on the right, beginnings shared."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lowrank_jax.decoding.prefixes import shared_groups

NARROWEST = 64  # tokens of the shortest bucket of whole rows and of beginnings
SHORTEST_REST = 16  # the same of what is read beside a beginning
FEWEST = 8  # targets that every program reads: their logits cost little beside the rows, another program seconds
LOGITS = 2**28  # most bytes of a batch's logits
SCORES = 2**30  # most bytes of one layer's attention scores beside a beginning


class Row(NamedTuple):
    """What is read, the place that predicts the first target, and the targets of each request that reads it."""

    tokens: tuple[int, ...]
    start: int
    targets: list[tuple[int, tuple[int, ...]]]


class Batch(NamedTuple):
    """Rows of one shape.

    Attributes:
      rows: what is at each of B places; None: nothing, it only fills the batch.
      beginnings: those of B / R rows each, which are read apart; () of whole rows.
      slots: P, of a beginning with its padding; 0 without.
      width, most, columns: T tokens a row (behind its beginning), M targets a continuation, K continuations a row.
    """

    rows: list[Row | None]
    beginnings: tuple[tuple[int, ...], ...]
    slots: int
    width: int
    most: int
    columns: int

    def places(self) -> Iterator[tuple[int, Row]]:
        """(place, row) of the rows that are there."""
        return ((place, row) for place, row in enumerate(self.rows) if row is not None)

    def skipped(self, place: int) -> int:
        """How many tokens of the row at a place stand in its beginning."""
        return len(self.beginnings[place * len(self.beginnings) // len(self.rows)]) if self.beginnings else 0

    def prefix_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """The beginnings, int32 [G, P], and their lengths [G]; one that only fills the batch has none of its own."""
        tokens, lengths = (
            np.zeros((len(self.beginnings), self.slots), np.int32),
            np.zeros(len(self.beginnings), np.int32),
        )
        for place, ids in enumerate(self.beginnings):
            tokens[place, : len(ids)], lengths[place] = ids, len(ids)
        return tokens, lengths

    def row_arrays(self) -> tuple[np.ndarray, ...]:
        """tokens [B, T], starts [B], counts [B, K], targets [B, M, K]; padding is where a causal model never looks."""
        size = len(self.rows)
        tokens, starts = np.zeros((size, self.width), np.int32), np.zeros(size, np.int32)
        counts = np.zeros((size, self.columns), np.int32)
        targets = np.zeros((size, self.most, self.columns), np.int32)
        for place, row in self.places():
            skipped = self.skipped(place)
            rest = row.tokens[skipped:]
            tokens[place, : len(rest)], starts[place] = rest, row.start - skipped
            for number, (_, ids) in enumerate(row.targets):
                counts[place, number], targets[place, : len(ids), number] = len(ids), ids
        return tokens, starts, counts, targets


class Layout:
    """Makes batches of rows.

    Args:
      positions: the most tokens of a row.
      vocabulary: number of the model's logits.
      batch_size: most rows of a batch.
      heads: of the model's attention; None where it reads no beginnings apart: all rows are then whole.
    """

    def __init__(self, positions: int, vocabulary: int, batch_size: int, heads: int | None = None):
        self._positions, self._vocabulary, self._batch_size, self._heads = positions, vocabulary, batch_size, heads
        self._widths = list(_buckets(NARROWEST, positions))
        self._rests = list(_buckets(SHORTEST_REST, positions))

    def __call__(self, rows: Sequence[Row]) -> Iterator[Batch]:
        """The batches of all rows, whole ones first, and the longest of them first: too little memory shows at once."""
        columns = _power(max((len(row.targets) for row in rows), default=1))
        groups = [(0, list(rows))]
        if self._heads is not None:
            shared = shared_groups([row.tokens for row in rows], [row.start for row in rows])
            groups = [(length, [rows[number] for number in numbers]) for length, numbers in reversed(shared)]
        small: dict[tuple[int, int, int, int], list[tuple[tuple[int, ...], list[Row]]]] = {}
        for length, group in groups:
            beginning = group[0].tokens[:length] if length else ()
            slots = slots_of(length, self._positions) if length else 0
            if length and 2 * len(group) <= self._batch_size:  # several beginnings fit into a batch
                width, most = (max(each) for each in zip(*(self._shape(row, length) for row in group), strict=True))
                small.setdefault((slots, _power(len(group)), width, most), []).append((beginning, group))
                continue
            for (width, most), own in _by_shape(group, lambda row, length=length: self._shape(row, length)).items():
                size = min(self._size(slots, width, most), _power(len(own)))
                for part in _parts(own, size):
                    yield Batch(part, (beginning,) if beginning else (), slots, width, most, columns)
        for (slots, each, width, most), own in small.items():
            size = min(max(1, self._size(slots, width, most) // each), _power(len(own)))
            for part in _parts(own, size):
                beginnings = tuple(() if one is None else one[0] for one in part)
                places = [_parts([] if one is None else one[1], each, 1)[0] for one in part]
                yield Batch([*itertools.chain(*places)], beginnings, slots, width, most, columns)

    def _shape(self, row: Row, length: int) -> tuple[int, int]:
        """(T, M) of a row behind a beginning of `length` tokens."""
        widths = self._rests if length else self._widths
        return _fit(widths, len(row.tokens) - length), max(FEWEST, _power(max(len(ids) for _, ids in row.targets)))

    def _size(self, slots: int, width: int, most: int) -> int:
        """Most rows of a batch by the memory that they need."""
        size = LOGITS // (4 * most * self._vocabulary)
        if slots and self._heads:
            size = min(size, SCORES // (4 * self._heads * width * (slots + width)))
        return max(1, min(self._batch_size, size))


def slots_of(length: int, positions: int) -> int:
    """The bucket of a beginning of `length` tokens, at most all positions."""
    return _fit(list(_buckets(NARROWEST, positions)), length)


def _by_shape(rows: Iterable[Row], key: Callable[[Row], tuple[int, int]]) -> dict[tuple[int, int], list[Row]]:
    found: dict[tuple[int, int], list[Row]] = {}
    for row in sorted(rows, key=lambda row: -len(row.tokens)):
        found.setdefault(key(row), []).append(row)
    return found


def _parts(items: Sequence, size: int, least: int = 0) -> list[list]:
    """The items in lists of `size`, the last filled up with None; at least so many lists."""
    count = max(least, -(-len(items) // size))
    filled = [*items, *[None] * (count * size - len(items))]
    return [filled[start : start + size] for start in range(0, len(filled), size)]


def _buckets(first: int, most: int) -> Iterator[int]:
    """first, 1.5 first, 2 first, 3 first, 4 first, ..., most: no row is padded by more than half."""
    while first < most:
        yield first
        if first * 3 // 2 < most:
            yield first * 3 // 2
        first *= 2
    yield most


def _fit(widths: Sequence[int], length: int) -> int:
    """The narrowest bucket that holds `length` tokens."""
    return next(width for width in widths if width >= length)


def _power(count: int) -> int:
    """The smallest power of two that is not below `count`."""
    return 1 << (count - 1).bit_length()
