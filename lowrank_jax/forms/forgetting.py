"""An evaluation of what a run forgets: the loss on text that it is not trained on, before the first step and later."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jax.sharding import Mesh

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.ranges import Range, check_ranges
from lowrank_jax.core.types import Objective
from lowrank_jax.data.packing import join_documents, mark
from lowrank_jax.data.pipeline import one_pass
from lowrank_jax.data.row_kinds import TEXT
from lowrank_jax.data.rows import Rows
from lowrank_jax.forms.base import Evaluation, Setting
from lowrank_jax.forms.evaluate import make_loss_evaluator, make_trials_loss_evaluator
from lowrank_jax.sharding.mesh import batch_share
from lowrank_jax.tasks.base import Task, pad_id, row_features
from lowrank_jax.tasks.framing import PLAIN

FORGETTING = "forgetting"  # the type of the evaluation
# Its score; not "loss", which is the held-out loss of the task and decides which weights are best.
TEXT_LOSS = "text_loss"
BATCH = 16  # rows at a time, rounded up until the mesh divides them
CHARACTERS = 16  # of a text that are encoded for each token still wanted: a novel has far more than are read


@dataclasses.dataclass(frozen=True)
class ForgettingOptions:
    """Which texts, and how much of each: the first rows * tokens tokens, in the file's order, the same in every run.

    Attributes:
      path: one source of texts or several, of the kinds that `task.path` takes; each has a score of its own.
      rows, tokens: how many rows of each source, and of how many tokens; a row's first token is only read.
      add_bos: whether each row begins with BOS, as Llama 2 and Gemma expect; it counts among the tokens.
    """

    path: str | tuple[str, ...] = ()
    rows: Annotated[int, Range(least=1)] = 64
    tokens: Annotated[int, Range(least=2)] = 256
    add_bos: bool = False

    def __post_init__(self):
        check_ranges(self, "evals")
        path = (self.path,) if isinstance(self.path, str) else tuple(self.path)
        object.__setattr__(self, "path", tuple(one for one in path if one))
        if not self.path:
            raise UserError('evals: "forgetting" has no path; give it a file of texts that the run is not trained on')
        if again := [one for one in self.path if self.path.count(one) > 1]:
            raise UserError(f"evals: a forgetting evaluation has {again[0]} twice; leave one out")
        names = [name_of(one) for one in self.path]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"evals: two files of a forgetting evaluation are called {twice[0]}; rename one")

    @property
    def targets(self) -> int:
        """How many tokens of a source are predicted."""
        return self.rows * (self.tokens - 1)


def name_of(source: str) -> str:
    """A source's name in the records: "novels_validation" of data/novels_validation.jsonl.xz."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", Path(source).name.partition(".")[0]) or "text"


def text_loss(setting: Setting, task: Task, options: ForgettingOptions, objective: Objective) -> Evaluation:
    """The mean loss per token of each source, in nats, over `options.targets` tokens.

    Args:
      setting, task: of the run.
      options: which texts.
      objective: of the form, without smoothing; it sums next-token losses.

    Raises:
      UserError: rows that are no texts, too little of them, or rows longer than the model's positions.
    """
    before = np.array(getattr(task, "framing", PLAIN).prefix_ids, np.int32)
    length, positions = len(before) + options.tokens, setting.model.max_position_embeddings
    if length > positions:
        raise UserError(
            f"evals: a forgetting evaluation of {length} tokens a row exceeds the model's {positions} positions; lower "
            "its tokens"
        )
    targets = np.arange(length) > len(before)
    sources = {name_of(one): _tokens(setting.tokenizer, one, options) for one in options.path}
    size = -(-min(BATCH, options.rows) // setting.mesh.size) * setting.mesh.size
    sums = make_loss_evaluator(objective, setting.options)

    def features(row: np.ndarray) -> dict[str, np.ndarray]:
        example = {"tokens": np.concatenate([before, row]), "targets": targets}
        return row_features(example, length, pad_id(setting.tokenizer))

    def batches(rows: np.ndarray, size: int) -> Iterator[dict[str, np.ndarray]]:
        return one_pass(rows, features, size, **batch_share(setting.mesh))

    def evaluate(variables: Any) -> dict[str, float]:
        found = {}
        for name, rows in sources.items():
            loss, weight = sums(variables, map(setting.place, batches(rows, size)))
            found[f"{name}/{TEXT_LOSS}"] = loss / weight
        return found

    def many(axes: Any, mesh: Mesh) -> Callable[[Any, Any], list[dict[str, float]]]:
        of_trials = make_trials_loss_evaluator(objective, axes, mesh, setting.options)
        few = min(size, setting.batch_size)  # the logits of all trials are in memory together, as in a step

        def evaluate_all(trainable: Any, frozen: Any) -> list[dict[str, float]]:
            found = {name: of_trials(trainable, frozen, batches(rows, few)) for name, rows in sources.items()}
            trials = zip(*found.values(), strict=True)
            return [
                {f"{name}/{TEXT_LOSS}": loss / weight for name, (loss, weight) in zip(found, trial, strict=True)}
                for trial in trials
            ]

        return evaluate_all

    return Evaluation(evaluate, many)


def _tokens(tokenizer: Any, source: str, options: ForgettingOptions) -> np.ndarray:
    """int32 [rows, tokens]: the source's texts joined by EOS and cut into rows, one after another."""
    each = options.tokens - options.add_bos
    wanted, found, texts = options.rows * each, 0, Rows(source)
    if texts.kind != TEXT:
        raise UserError(f'{source}: a forgetting evaluation reads rows of "text", not of kind {texts.kind!r}')
    parts = []
    for index in range(len(texts)):
        text = texts[index]["text"][: CHARACTERS * (wanted - found)]
        parts.append(join_documents([text], tokenizer, add_eos=tokenizer.eos_id is not None))
        found += len(parts[-1])
        if found >= wanted:
            break
    if found < wanted:
        less = f"set rows to {found // each}" if found >= each else "lower tokens"
        raise UserError(
            f"{source}: its texts make {found // each} rows of {options.tokens} tokens, and {options.rows} are asked "
            f"for; give a longer file, or {less} in config.evals"
        )
    rows = np.concatenate(parts)[:wanted].reshape(options.rows, each).astype(np.int32)
    return np.pad(rows, ((0, 0), (1, 0)), constant_values=mark(tokenizer, "bos")) if options.add_bos else rows
