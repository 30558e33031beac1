"""Log-likelihoods of continuations, in batches of few shapes: sorted by length, padded on the right, contexts shared.

Requests that read the same tokens share one row: the choices of a question whose completions are single tokens (A, B,
C, D), as a completion's last token is predicted and never read. Longer completions have a row each.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.types import ApplyFn, Tree
from lowrank_jax.tasks.framing import PLAIN, Framing

NARROWEST = 64  # tokens of the shortest rows' bucket
FEWEST = 8  # targets that every program reads: their logits cost little beside the rows, another program seconds
LOGITS = 2**28  # most bytes of a batch's logits


class Scored(NamedTuple):
    """A continuation's log-likelihood in nats, and whether each of its tokens is the likeliest."""

    value: float
    greedy: bool


class _Row(NamedTuple):
    """What is read, the place that predicts the first target, and the targets of each request that reads it."""

    tokens: tuple[int, ...]
    start: int
    targets: list[tuple[int, tuple[int, ...]]]


class Scorer:
    """Scores continuations; batches of one shape share a compiled program.

    Args:
      apply_fn: a causal model with methods "hidden" and "logits".
      variables: its weights.
      positions: the most tokens of a row that it reads; longer ones lose their beginning, as in lm-eval.
      vocabulary: its number of logits.
      batch_size: most rows of a batch.
      virtual: the virtual tokens around each context.
    """

    def __init__(
        self,
        apply_fn: ApplyFn,
        variables: Tree,
        positions: int,
        vocabulary: int,
        batch_size: int = 16,
        virtual: Framing = PLAIN,
    ):
        self._variables, self._virtual, self._batch_size = variables, virtual, batch_size
        self.room, self._vocabulary, self._score = positions - virtual.count, vocabulary, jax.jit(_scores(apply_fn))
        self._widths = [*itertools.takewhile(lambda width: width < positions, _steps(NARROWEST)), positions]

    def __call__(self, requests: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Scored]:
        """The score of each (context, continuation), both token ids.

        Raises:
          UserError: a continuation is empty or longer than what the model reads, or a context is empty.
        """
        found: list[Scored | None] = [None] * len(requests)
        for shape, rows in self._batches(self._rows(requests)):
            given = _arrays(rows, *shape)
            values, greedy = (np.asarray(each) for each in self._score(self._variables, *given))
            for place, row in enumerate(rows):
                for number, (owner, _) in enumerate(row.targets):
                    found[owner] = Scored(float(values[place, number]), bool(greedy[place, number]))
        return [one for one in found if one is not None]

    def _rows(self, requests: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[_Row]:
        """The rows that are read, longest first: what needs too much memory fails at once."""
        rows: dict[Any, _Row] = {}
        for owner, (context, continuation) in enumerate(requests):
            if not continuation or not context or len(continuation) > self.room:
                raise UserError(
                    f"request {owner + 1}: {len(continuation)} tokens after a context of {len(context)}; both need at "
                    f"least one, and the model reads {self.room}"
                )
            kept = list(context)[-(self.room + 1 - len(continuation)) :]  # the last target is not read
            before = self._virtual.around(kept)
            tokens = (*before, *continuation[:-1])
            row = rows.setdefault((tokens, len(before)), _Row(tokens, len(before) - 1, []))
            row.targets.append((owner, tuple(continuation)))
        return sorted(rows.values(), key=lambda row: -len(row.tokens))

    def _batches(self, rows: list[_Row]) -> Any:
        """((B, T, M, K), up to B rows): T tokens read, M targets a continuation, K continuations a row."""

        def shape(row):
            width = next(width for width in self._widths if width >= len(row.tokens))
            return width, max(FEWEST, _power(len(row.targets[0][1])))

        columns = _power(max((len(row.targets) for row in rows), default=1))
        for (width, most), found in _grouped(rows, shape).items():
            size = max(1, min(self._batch_size, LOGITS // (4 * most * self._vocabulary)))
            size = min(size, _power(len(found)))
            for start in range(0, len(found), size):
                yield (size, width, most, columns), found[start : start + size]


def _scores(apply_fn: ApplyFn) -> Any:
    """(variables, tokens [B, T], starts [B], counts [B, K], targets [B, M, K]) -> sums and greedy, both [B, K]."""

    def scores(variables, tokens, starts, counts, targets):
        most = targets.shape[1]
        hidden = apply_fn(variables, tokens, method="hidden")
        places = jnp.minimum(starts[:, None] + jnp.arange(most), tokens.shape[1] - 1)
        read = jnp.take_along_axis(hidden, places[..., None], axis=1)
        logits = apply_fn(variables, read, method="logits").astype(jnp.float32)
        chosen = jnp.take_along_axis(logits, targets, axis=-1) - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        inside = jnp.arange(most)[:, None] < counts[:, None, :]
        greedy = jnp.all((jnp.argmax(logits, axis=-1)[..., None] == targets) | ~inside, axis=1)
        return jnp.sum(jnp.where(inside, chosen, 0.0), axis=1), greedy

    return scores


def _arrays(rows: Sequence[_Row], size: int, width: int, most: int, columns: int) -> tuple[np.ndarray, ...]:
    """The batch; padding is on the right, where a causal model never looks."""
    tokens, starts = np.zeros((size, width), np.int32), np.zeros(size, np.int32)
    counts, targets = np.zeros((size, columns), np.int32), np.zeros((size, most, columns), np.int32)
    for place, row in enumerate(rows):
        tokens[place, : len(row.tokens)], starts[place] = row.tokens, row.start
        for number, (_, ids) in enumerate(row.targets):
            counts[place, number], targets[place, : len(ids), number] = len(ids), ids
    return tokens, starts, counts, targets


def _grouped(rows: Sequence[_Row], key: Any) -> dict[Any, list[_Row]]:
    found: dict[Any, list[_Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def _steps(first: int) -> Any:
    """first, 1.5 first, 2 first, 3 first, 4 first, ...: no row is padded by more than half."""
    while True:
        yield first
        yield first * 3 // 2
        first *= 2


def _power(count: int) -> int:
    """The smallest power of two that is not below `count`."""
    return 1 << (count - 1).bit_length()
