"""The batches of several trials on a leading axis: one stream a trial, read ahead and stacked."""

import collections
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from lowrank_jax.data.pipeline import Batch, Batches

AHEAD = 5  # batches read ahead
THREADS = 2


class StackedBatches:
    """Iterator of batches [trials, B, ...]; trials may share a stream, which is then read once.

    Args:
      streams: one a trial.
      last: number of batches in all; none is read beyond.
      bucketed: batches differ in length, and are padded to the longest of the trials.
    """

    def __init__(self, streams: Sequence[Batches], last: int, bucketed: bool = False):
        self._streams, self._last, self._bucketed = streams, last, bucketed
        self._next, self._ahead = 0, collections.deque[Future[Batch]]()
        self._pool = ThreadPoolExecutor(THREADS, "trials")

    def __iter__(self) -> "StackedBatches":
        return self

    def __next__(self) -> Batch:
        if self._next >= self._last:
            raise StopIteration
        while len(self._ahead) < AHEAD and self._next + len(self._ahead) < self._last:
            self._ahead.append(self._pool.submit(self.batch, self._next + len(self._ahead)))
        self._next += 1
        return self._ahead.popleft().result()

    def batch(self, number: int) -> Batch:
        """Batch `number` of every trial, counted from 0."""
        streams = {id(stream): stream for stream in self._streams}
        length = max(stream.length(number) for stream in streams.values()) if self._bucketed else None
        read = {key: stream.batch(number, length) for key, stream in streams.items()}
        return {name: np.stack([read[id(stream)][name] for stream in self._streams]) for name in read[next(iter(read))]}

    def get_state(self) -> dict[str, int]:
        """The cursor, as JSON-able numbers."""
        return {"batches": self._next}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Continues at a saved cursor."""
        self._drop()
        self._next = state["batches"]

    def close(self) -> None:
        """Drops what was read ahead and ends the threads, those of the streams too."""
        self._drop()
        self._pool.shutdown()
        for stream in self._streams:
            stream.close()

    def _drop(self) -> None:
        while self._ahead:
            self._ahead.popleft().cancel()
