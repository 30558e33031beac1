"""Examples -> batches: a deterministic, resumable stream over a random-access source, cut into shares per process."""

import bisect
import collections
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from lowrank_jax.core import libraries
from lowrank_jax.core.errors import UserError

Batch = dict[str, np.ndarray]
GRAIN = ("grain", "the input pipeline needs", "grain>=0.2.18")


class Source(Protocol):
    """Random access to examples; a source that also has `__getitems__(indices)` is read in one call per batch."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Batches:
    """Iterator of batches: shuffled again in each epoch, each a dict of stacked arrays [batch_size / processes, ...].

    The order is grain's: `range(n).seed(seed).shuffle().repeat(epochs).batch(batch_size)`. Grain orders indices, and
    the rows are then read and mapped here: a process reads only its own rows, in one call, and row j of the global
    batch is the same example for any number of processes. Process p has rows [p, p + 1) * batch_size / processes.

    A batch may span two epochs, and one of a source smaller than a batch has each example several times. With finite
    `epochs` the last incomplete batch is left out. Grain's shuffle takes at least 16 ms per epoch, which the read-ahead
    hides.

    The cursor (`get_state`) counts the batches that were returned, not those read ahead: a checkpoint saved after step
    k resumes with batch k.

    Rows of different lengths: with `buckets`, the features named in `pad` are padded on the right to T, the smallest
    bucket that holds the longest row of the global batch, so that a jitted step compiles once per bucket. T is the same
    on all processes: `lengths` has the lengths of rows that a process does not read. A batch then also has "mask", bool
    [.., T], False at padding.

    Args:
      source: the examples.
      features: example -> dict of arrays, of equal shapes for all examples but for axis 0 of those in `pad`.
      batch_size: examples per global batch.
      lengths: int [len(source)], the length of each row along axis 0; only with buckets.
      buckets: ascending lengths; no row is longer than the last.
      pad: feature that is padded -> the value it is padded with.
      seed: of the shuffle, at least 0.
      shuffle: False gives the source's order in every epoch.
      epochs: None repeats endlessly.
      process_index, process_count: which share of each batch; by default jax.process_index() and jax.process_count().
      prefetch: batches read ahead on one thread; 0: no thread.

    Raises:
      UserError: grain is missing, the source is empty, the batch does not divide over the processes, finite epochs have
        no whole batch, or the buckets are not ascending or too short for a row.
    """

    def __init__(
        self,
        source: Source,
        features: Callable[[Any], Mapping[str, np.ndarray]],
        batch_size: int,
        *,
        lengths: np.ndarray | None = None,
        buckets: Sequence[int] = (),
        pad: Mapping[str, int] | None = None,
        seed: int = 0,
        shuffle: bool = True,
        epochs: int | None = None,
        process_index: int = 0,
        process_count: int = 1,
        prefetch: int = 2,
    ):
        self._rows = _share(batch_size, process_index, process_count)
        if len(source) == 0:
            raise UserError("the data set is empty: there is nothing to train on")
        if epochs is not None and epochs * len(source) < batch_size:
            raise UserError(
                f"{epochs} epoch(s) of {len(source)} examples fill no batch of {batch_size}; "
                "lower batch_size, or leave epochs unset to repeat the data"
            )
        self._source, self._features = source, features
        self._lengths, self._buckets, self._pad = lengths, tuple(buckets), dict(pad or {})
        if self._buckets:
            _check_buckets(source, lengths, self._buckets, self._pad)
        self._identity = {"examples": len(source), "batch_size": batch_size, "seed": seed, "shuffle": shuffle}
        order = libraries.load(*GRAIN).MapDataset.range(len(source)).seed(seed)
        order = (order.shuffle() if shuffle else order).repeat(epochs)
        self._order = order.batch(batch_size, drop_remainder=True)
        # Grain orders about 95,000 rows/s, which is most of a small batch's cost, and `length` and `batch` both need
        # the order.
        self._indices = functools.lru_cache(maxsize=16)(self._order.__getitem__)
        self._batches = math.inf if epochs is None else epochs * len(source) // batch_size
        self._prefetch = prefetch
        self._pool = ThreadPoolExecutor(1, "batches") if prefetch else None
        self._pending: collections.deque = collections.deque()  # futures of batches [consumed, consumed + prefetch]
        self._consumed = 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._consumed >= self._batches:
            raise StopIteration
        if self._pool is None:
            batch = self.batch(self._consumed)
        else:
            while len(self._pending) <= self._prefetch:
                self._pending.append(self._pool.submit(self.batch, self._consumed + len(self._pending)))
            batch = self._pending[0].result()
            self._pending.popleft()
        self._consumed += 1
        return batch

    def length(self, number: int) -> int:
        """The length T of global batch `number`, the same on all processes.

        Raises:
          IndexError: finite epochs end before.
        """
        if not self._buckets:
            raise ValueError("batches without buckets have the length of their features")
        if number >= self._batches:
            raise IndexError(f"batch {number} of {self._batches}")
        assert self._lengths is not None  # there are none without buckets
        return _bucket(self._lengths[self._indices(number)], self._buckets)

    def batch(self, number: int, length: int | None = None) -> Batch:
        """This process's rows of global batch `number`, counted from 0; the cursor does not move.

        Args:
          length: T, at least `length(number)`, for batches that are stacked with longer ones; None: `length(number)`.
        """
        if number >= self._batches:
            return {}
        rows = [self._features(e) for e in _read(self._source, self._indices(number)[self._rows])]
        if not self._buckets:
            return _stack(rows)
        return _pad_stack(rows, self._pad, self.length(number) if length is None else length)

    def get_state(self) -> dict[str, int]:
        """The cursor, as JSON-able numbers."""
        return {"batches": self._consumed, **self._identity}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Continues at a saved cursor, of a run with any number of processes.

        Raises:
          UserError: the cursor is of another source length, batch size, seed or order.
        """
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise UserError(
                    f"the data cursor was saved with {name}={state.get(name)}, this run has {name}={value}; "
                    "restore that setting, or start a new run"
                )
        self._drop_pending()
        self._consumed = int(state["batches"])

    def close(self) -> None:
        """Drops what was read ahead and ends the thread."""
        self._drop_pending()
        if self._pool is not None:
            self._pool.shutdown()

    def _drop_pending(self) -> None:
        for future in self._pending:
            future.cancel()
        self._pending.clear()


def one_pass(
    source: Source,
    features: Callable[[Any], Mapping[str, np.ndarray]],
    batch_size: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Every example once, in order, for evaluation; the last batch is filled with rows of zeros, of weight 0.

    Args: as `Batches`; every process gets the same number of batches.
    """
    rows = _share(batch_size, process_index, process_count)
    for start in range(0, len(source), batch_size):
        indices = np.arange(start, start + batch_size)[rows]
        present = [int(i) for i in indices if i < len(source)]
        batch = _stack([features(e) for e in _read(source, present or [0])])
        yield _fill(batch, len(present), len(indices))


def bucketed_pass(
    source: Source,
    features: Callable[[Any], Mapping[str, np.ndarray]],
    batch_size: int,
    *,
    lengths: np.ndarray,
    buckets: Sequence[int],
    pad: Mapping[str, int],
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Every example once, shortest first, padded as in `Batches`, for evaluation: (indices, this process's rows).

    `indices`, int64 [batch_size], are those of the whole batch, the same on all processes: row j of the global batch is
    example indices[j], and -1 says that it only fills the last batch. Such a row is one token of padding; its other
    features, also its weight, are 0.

    Args: as `Batches`; every process gets the same number of batches.
    """
    rows = _share(batch_size, process_index, process_count)
    _check_buckets(source, lengths, buckets, pad)
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(source), batch_size):
        present = order[start : start + batch_size]
        mine = present[rows]
        made = [features(e) for e in _read(source, mine if len(mine) else present[:1])]
        batch = _pad_stack(made, pad, _bucket(lengths[present], buckets))
        filled = _fill(batch, len(mine), rows.stop - rows.start)
        for name, value in pad.items():
            filled[name][len(mine) :] = value
        filled["mask"][len(mine) :, 0] = True  # the softmax of a row needs at least one key
        yield np.concatenate([present, np.full(batch_size - len(present), -1)]), filled


def _share(batch_size: int, process_index: int, process_count: int) -> slice:
    """This process's rows of a global batch."""
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"batch_size={batch_size} does not divide over {process_count} process(es); use a positive multiple of it"
        )
    rows = batch_size // process_count
    return slice(process_index * rows, (process_index + 1) * rows)


def _read(source: Source, indices: Iterable[int]) -> Sequence[Any]:
    indices = [int(i) for i in indices]
    read = getattr(source, "__getitems__", None)
    return [source[i] for i in indices] if read is None else read(indices)


def _stack(examples: Sequence[Mapping[str, np.ndarray]]) -> Batch:
    return {name: np.stack([e[name] for e in examples]) for name in examples[0]} if examples else {}


def _pad_stack(examples: Sequence[Mapping[str, np.ndarray]], pad: Mapping[str, int], length: int) -> Batch:
    """Stacked rows, those of `pad` as [rows, length], and their "mask"."""
    counts = np.array([len(e[name]) for e in examples for name in pad]).reshape(len(examples), len(pad))
    if (counts != counts[:, :1]).any() or counts.max() > length:
        raise ValueError(f"rows of {counts.max()} along axis 0 of {', '.join(pad)} for a length of {length}")
    batch = {"mask": np.arange(length) < counts[:, :1]}
    for name in examples[0]:
        if name not in pad:
            batch[name] = np.stack([e[name] for e in examples])
            continue
        batch[name] = np.full((len(examples), length, *examples[0][name].shape[1:]), pad[name], examples[0][name].dtype)
        for row, example in zip(batch[name], examples, strict=True):
            row[: len(example[name])] = example[name]
    return batch


def _fill(batch: Batch, present: int, rows: int) -> Batch:
    """The first `present` rows of a batch, and zeros up to `rows`."""
    filled = {name: np.zeros((rows, *value.shape[1:]), value.dtype) for name, value in batch.items()}
    for name, value in batch.items():
        filled[name][:present] = value[:present]
    return filled


def _check_buckets(source: Source, lengths: np.ndarray | None, buckets: Sequence[int], pad: Mapping[str, int]) -> None:
    if lengths is None or len(lengths) != len(source) or not pad:
        raise ValueError(f"buckets need the length of each of {len(source)} rows, and what is padded")
    if list(buckets) != sorted(set(buckets)) or not buckets or buckets[0] < 1:
        raise UserError(f"the buckets {tuple(buckets)} are not ascending lengths")
    if max(lengths) > buckets[-1]:
        raise UserError(f"a row has {max(lengths)} tokens, the last bucket {buckets[-1]}; add a bucket that is longer")


def _bucket(lengths: np.ndarray, buckets: Sequence[int]) -> int:
    """The smallest bucket that none of `lengths` exceeds."""
    return buckets[bisect.bisect_left(buckets, lengths.max())]


def check_library() -> None:
    """Raises a UserError where grain, which orders the rows, is missing."""
    libraries.check(*GRAIN)
