"""Log-likelihoods of continuations, in batches of few shapes; what several requests read alike is read once.

Requests that read the same tokens share one row: the choices of a question whose completions are single tokens (A, B,
C, D), as a completion's last token is predicted and never read. Rows that begin alike (worked examples before each
question, or a question before each of its completions) share that beginning: it is read once, and their rests are read
beside its keys and values (`decoding.prefixes`, `models.parts.shared`). Where there are both, the examples are read
once, each question once beside them, and its completions beside both.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.evaluation.batches import Layout, Row
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.types import ApplyFn, Tree
from lowrank_jax.decoding.decoder import Shared
from lowrank_jax.models.parts.shared import Prefix
from lowrank_jax.tasks.framing import PLAIN, Framing


class Scored(NamedTuple):
    """A continuation's log-likelihood in nats, and whether each of its tokens is the likeliest."""

    value: float
    greedy: bool


@dataclasses.dataclass
class Count:
    """How many tokens, without padding, a model has read.

    Attributes:
      read: in all.
      whole: how many they would have been, had every row been read whole.
    """

    read: int = 0
    whole: int = 0


class Scorer:
    """Scores continuations; batches of one shape share a compiled program.

    Args:
      apply_fn: a causal model with methods "hidden" and "logits".
      variables: its weights.
      config: the model's; its positions are the most tokens of a row, and longer ones lose their beginning, as in
        lm-eval.
      batch_size: most rows of a batch.
      virtual: the virtual tokens around each context.
      shared: of the model's decoder; None: every row is read whole.

    Attributes:
      room: the most tokens of a row without virtual ones.
      count: how many tokens were read.
    """

    def __init__(
        self,
        apply_fn: ApplyFn,
        variables: Tree,
        config: Any,
        batch_size: int = 16,
        virtual: Framing = PLAIN,
        shared: Shared | None = None,
    ):
        positions, heads = config.max_position_embeddings, config.num_attention_heads
        self._variables, self._virtual, self.room = variables, virtual, positions - virtual.count
        self._layout = Layout(positions, config.vocab_size, batch_size, None if shared is None else heads)
        self._score = jax.jit(_scores(apply_fn, shared))
        if shared is not None:
            self._read, self._extend = jax.jit(shared.read), jax.jit(shared.extend)
        self.count = Count()

    def __call__(self, requests: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Scored]:
        """The score of each (context, continuation), both token ids.

        Raises:
          UserError: a continuation is empty or longer than what the model reads, or a context is empty.
        """
        found: list[Scored | None] = [None] * len(requests)
        common, beginning = (), None
        for batch in self._layout(self._rows(requests)):
            if batch.common != common:
                common = batch.common
                beginning = self._prefix(None, *batch.common_arrays()) if common else None
            prefix = self._prefix(beginning, *batch.context_arrays()) if batch.contexts else beginning
            given = batch.row_arrays()
            values, greedy = (np.asarray(each) for each in self._score(self._variables, prefix, *given))
            for place, row in batch.places():
                self.count.read += len(row.tokens) - batch.skipped(place)
                self.count.whole += len(row.tokens)
                for number, (owner, _) in enumerate(row.targets):
                    found[owner] = Scored(float(values[place, number]), bool(greedy[place, number]))
        return [one for one in found if one is not None]

    def _prefix(self, before: Prefix | None, tokens: np.ndarray, lengths: np.ndarray) -> Prefix:
        """Reads beginnings: common ones, or, after the one `before`, the contexts of a batch."""
        self.count.read += int(lengths.sum())
        if before is None:
            return self._read(self._variables, tokens, lengths)
        return self._extend(self._variables, before, tokens, lengths)

    def _rows(self, requests: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Row]:
        rows: dict[Any, Row] = {}
        for owner, (context, continuation) in enumerate(requests):
            if not continuation or not context or len(continuation) > self.room:
                raise UserError(
                    f"request {owner + 1}: {len(continuation)} tokens after a context of {len(context)}; both need at "
                    f"least one, and the model reads {self.room}"
                )
            kept = list(context)[-(self.room + 1 - len(continuation)) :]  # the last target is not read
            before = self._virtual.around(kept)
            tokens = (*before, *continuation[:-1])
            row = rows.setdefault((tokens, len(before)), Row(tokens, len(before) - 1, []))
            row.targets.append((owner, tuple(continuation)))
        return list(rows.values())


def _scores(apply_fn: ApplyFn, shared: Shared | None) -> Any:
    """(variables, prefix, tokens [B, T], starts [B], counts [B, K], targets [B, M, K]) -> sums and greedy, [B, K] each.

    A prefix of None: the rows are whole.
    """

    def scores(variables, prefix, tokens, starts, counts, targets):
        most = targets.shape[1]
        if shared is None or prefix is None:
            hidden = apply_fn(variables, tokens, method="hidden")
        else:
            hidden = shared.hidden(variables, prefix, tokens)
        places = jnp.minimum(starts[:, None] + jnp.arange(most), tokens.shape[1] - 1)
        read = jnp.take_along_axis(hidden, places[..., None], axis=1)
        logits = apply_fn(variables, read, method="logits").astype(jnp.float32)
        chosen = jnp.take_along_axis(logits, targets, axis=-1) - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        inside = jnp.arange(most)[:, None] < counts[:, None, :]
        greedy = jnp.all((jnp.argmax(logits, axis=-1)[..., None] == targets) | ~inside, axis=1)
        return jnp.sum(jnp.where(inside, chosen, 0.0), axis=1), greedy

    return scores
