"""Lays out continuations as batches of few shapes: rows sorted by length, padded on the right, beginnings shared."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from lowrank_jax.decoding.prefixes import shared_groups

NARROWEST = 64  # tokens of the shortest bucket of whole rows and of beginnings
SHORTEST_REST = 16  # the same of what a row has after its beginning
FEWEST = 8  # least targets of a batch's shape: more logits cost little, another program takes seconds to compile
LOGITS = 2**28  # most bytes of a batch's logits
SCORES = 2**30  # most bytes of one layer's attention scores beside a beginning
SAVED = 0.25  # least part of its rows' tokens that a context saves
WORTH = 1024  # fewest saved tokens for which a beginning is read apart: its programs take seconds to compile


class Row(NamedTuple):
    """Tokens that are read for one or several requests.

    Attributes:
      tokens: without the last target, which is predicted and not read.
      start: the place that predicts the first target.
      targets: (number of a request, its target tokens) for each request.
    """

    tokens: tuple[int, ...]
    start: int
    targets: list[tuple[int, tuple[int, ...]]]


Context = tuple[tuple[int, ...], list[Row]]  # tokens that a few rows share after what many share; the rows


class Batch(NamedTuple):
    """Rows of one shape.

    Attributes:
      rows: B of them; None is an empty place that only fills the batch.
      common: the beginning of all rows, which is read apart; () where they have none.
      contexts: G of them, each goes on from `common`, and B / G rows go on from it; () where rows share no more.
      slots: tokens of `common` and of a context, with padding; 0 where there is none.
      width, most, columns: T tokens a row (behind its beginning), M targets a continuation, K continuations a row.
    """

    rows: list[Row | None]
    common: tuple[int, ...]
    contexts: tuple[tuple[int, ...], ...]
    slots: tuple[int, int]
    width: int
    most: int
    columns: int

    def places(self) -> Iterator[tuple[int, Row]]:
        """(place, row) of the rows that are there."""
        return ((place, row) for place, row in enumerate(self.rows) if row is not None)

    def skipped(self, place: int) -> int:
        """How many tokens of the row at a place stand in its beginning."""
        context = self.contexts[place * len(self.contexts) // len(self.rows)] if self.contexts else ()
        return len(self.common) + len(context)

    def common_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """`common` as int32 [1, P], and its length [1]."""
        return _padded([self.common], self.slots[0])

    def context_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """The contexts, int32 [G, Q], and their lengths [G]; one that only fills the batch has none of its own."""
        return _padded(self.contexts, self.slots[1])

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
        """The batches of all rows, whole ones first, and the longest of them first: too little memory shows at once.

        What many rows share, such as worked examples, is `common` to batches; what few of these share in turn, such as
        a question before its completions, is a context, of which a batch has several.
        """
        columns = _power(max((len(row.targets) for row in rows), default=1))
        groups, contexts = self._divided(rows, 0)
        for length, group in groups:
            common, inner = group[0].tokens[:length], []
            if length:
                parts, inner = self._divided(group, length)
                group = [row for _, part in parts for row in part]
            yield from self._beside(common, group, columns)
            yield from self._within(common, inner, columns)
        yield from self._within((), contexts, columns)

    def _divided(self, rows: Sequence[Row], read: int) -> tuple[list[tuple[int, list[Row]]], list[Context]]:
        """Divides rows by what they share after their first `read` tokens: ([(shared tokens, rows), ...], contexts).

        Rows that share nothing come first, with 0. A context has few rows, so that a batch has room for several, and
        saves at least SAVED of their tokens.
        """
        if self._heads is None:
            return ([(0, list(rows))] if rows else []), []
        alone: list[Row] = []
        large: list[tuple[int, list[Row]]] = []
        contexts: list[Context] = []
        for length, numbers in shared_groups([row.tokens[read:] for row in rows], [row.start - read for row in rows]):
            own = [rows[number] for number in numbers]
            if length and 2 * len(own) > self._batch_size and length * (len(own) - 1) >= WORTH:
                large.append((length, own))
            elif length and length * (len(own) - 1) >= SAVED * sum(len(row.tokens) - read for row in own):
                contexts.append((own[0].tokens[read : read + length], own))
            else:
                alone += own
        if sum(len(context) * (len(own) - 1) for context, own in contexts) < WORTH:
            alone, contexts = [*alone, *(row for _, own in contexts for row in own)], []
        return [*([(0, alone)] if alone else []), *large], contexts

    def _beside(self, common: tuple[int, ...], rows: Sequence[Row], columns: int) -> Iterator[Batch]:
        """Batches of rows that go on from `common` alone; () are whole rows.

        Whole rows of one batch are of one bucket. What is left behind a beginning is short: there a batch is filled
        with rows of several buckets, which saves programs.
        """
        slots = (self._slots(common), 0)
        shapes: dict[Any, list[Row]] = {}
        for row in sorted(rows, key=lambda row: -len(row.tokens)):
            shapes.setdefault(() if common else self._shape(row, 0), []).append(row)
        for own in shapes.values():
            start, most = 0, max(self._shape(row, len(common))[1] for row in own)
            while start < len(own):
                width, _ = self._shape(own[start], len(common))  # the longest of those that are left
                size = min(self._size(slots, width, most), _power(len(own) - start))
                part = _filled(own[start : start + size], size)
                yield Batch(part, common, (), slots, width, most, columns)
                start += size

    def _within(self, common: tuple[int, ...], contexts: Sequence[Context], columns: int) -> Iterator[Batch]:
        """Batches of several contexts behind `common`, each with as many places for rows."""
        shapes: dict[tuple[int, int, int, int], list[Context]] = {}
        for context, rows in contexts:
            read = len(common) + len(context)
            width, most = (max(each) for each in zip(*(self._shape(row, read) for row in rows), strict=True))
            shapes.setdefault((self._slots(context), _power(len(rows)), width, most), []).append((context, rows))
        for (slots, each, width, most), own in shapes.items():
            both = (self._slots(common), slots)
            size = min(max(1, self._size(both, width, most) // each), _power(len(own)))
            for start in range(0, len(own), size):
                part: list[Context] = [*own[start : start + size], *[((), [])] * (start + size - len(own))]
                places = itertools.chain(*(_filled(rows, each) for _, rows in part))
                yield Batch([*places], common, tuple(context for context, _ in part), both, width, most, columns)

    def _slots(self, ids: tuple[int, ...]) -> int:
        return slots_of(len(ids), self._positions) if ids else 0

    def _shape(self, row: Row, length: int) -> tuple[int, int]:
        """(T, M) of a row behind a beginning of `length` tokens."""
        widths = self._rests if length else self._widths
        return _fit(widths, len(row.tokens) - length), max(FEWEST, _power(max(len(ids) for _, ids in row.targets)))

    def _size(self, slots: tuple[int, int], width: int, most: int) -> int:
        """Most rows of a batch by the memory that they need."""
        size = LOGITS // (4 * most * self._vocabulary)
        if any(slots) and self._heads:
            size = min(size, SCORES // (4 * self._heads * width * (sum(slots) + width)))
        return max(1, min(self._batch_size, size))


def slots_of(length: int, positions: int) -> int:
    """The bucket of a beginning of `length` tokens, at most all positions."""
    return _fit(list(_buckets(NARROWEST, positions)), length)


def _padded(rows: Sequence[Sequence[int]], slots: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows as int32 [G, slots], padded on the right, and their lengths [G]."""
    tokens, lengths = np.zeros((len(rows), slots), np.int32), np.array([len(row) for row in rows], np.int32)
    for place, ids in enumerate(rows):
        tokens[place, : len(ids)] = ids
    return tokens, lengths


def _filled(items: Sequence, size: int) -> list:
    """The items, and None up to `size`."""
    return [*items, *[None] * (size - len(items))]


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
