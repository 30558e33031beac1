"""The interface of a form: what a kind of task provides for a run, and what it needs to know of the run."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from jax.sharding import Mesh

from lowrank_jax.core.types import ApplyFn, Objective, Tree
from lowrank_jax.data.packing import mark
from lowrank_jax.data.pipeline import Batches
from lowrank_jax.tasks.base import Task
from lowrank_jax.tasks.exams.task import Examinee
from lowrank_jax.tasks.framing import PLAIN, Framing

Shapes = dict[str, tuple[tuple[int, ...], Any]]  # name of a feature -> (shape, dtype)


@dataclasses.dataclass(frozen=True)
class Setting:
    """The parts of a run that an objective and an evaluation need, without weights.

    Attributes:
      apply_fn: the model with its adapters.
      model: its config, one of `models`.
      mesh: the devices.
      dtype: of the computation and the cache.
      tokenizer: of the base; None where no text is read.
      place: puts a host batch on the mesh.
      batch_size: rows of a micro-batch.
      chunk_tokens, unroll, smoothing: of `next_token.next_token_objective`; evaluations are without smoothing.
      end_ids: () -> the tokens at which the base ends a text.
      opening: () -> the ids that the base's tokenizer puts before a text by itself.
      framing: the virtual tokens of a prefix method.
      cuts: of the model's layers into segments (`layouts.segments`).
      options: XLA's for programs that run the layers (`train.compiled.options.compiler_options`); None: its defaults.
    """

    apply_fn: ApplyFn
    model: Any
    mesh: Mesh
    dtype: Any
    tokenizer: Any
    place: Callable[[dict[str, np.ndarray]], dict[str, Any]]
    batch_size: int
    chunk_tokens: int = 0
    unroll: int = 1
    smoothing: float = 0.0
    end_ids: Callable[[], tuple[int, ...]] = tuple
    opening: Callable[[], tuple[int, ...]] = tuple
    framing: Framing = PLAIN
    cuts: tuple[int, ...] = ()
    options: Any = None

    @property
    def takes_types(self) -> bool:
        """Whether the model reads token types: DeBERTa does not."""
        return hasattr(self.model, "type_vocab_size")


def examinee_of(setting: Setting, task: Any, add_bos: bool | None) -> Examinee:
    """A run's model as the one that takes an exam.

    Args:
      setting, task: of the run.
      add_bos: whether prompts begin with BOS; None: as the task's rows do, or as the base's tokenizer begins a text.

    Raises:
      UserError: BOS is wanted and the tokenizer has none.
    """
    tokenizer = setting.tokenizer
    marked = getattr(getattr(task, "config", None), "add_bos", None) if add_bos is None else add_bos
    opening = setting.opening() if marked is None else (mark(tokenizer, "bos"),) if marked else ()
    positions = setting.model.max_position_embeddings
    return Examinee(tokenizer, positions, opening, setting.end_ids(), setting.framing)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores a model, or lets it write texts.

    Attributes:
      one: variables -> {metric: value}; with `texts` a list of {name: text}, one for each text.
      many: (axes of the frozen tree for `jax.vmap`, trial mesh) -> (stacked trainable, frozen) -> metrics of each
        trial, in one program; None where trials are scored one after another.
      texts: whether it gives texts, not metrics.
    """

    one: Callable[[Tree], Any]
    many: Callable[[Any, Mesh], Callable[[Tree, Tree], list[dict[str, float]]]] | None = None
    texts: bool = False


class Form(Protocol):
    """One kind of task. An instance belongs to a task's config; the task itself, with its data, comes later.

    Attributes:
      name: of `registry.FORMS`.
      head: the head that an encoder needs for it, a name of `models.parts.heads`; None for a language model.
      num_labels: classes of that head.
      bucketed: batches differ in length, and the step is compiled for each length.
      counted: a description of the tokens that a run's speed (tok/s) counts.
      once: first names of the parameters that are read at one token a row, not at every token.
      evaluations: name -> a function (setting, task) -> evaluation, or None where the task has no held-out data. An
        evaluation with options takes them as third argument.
    """

    name: str
    head: str | None
    num_labels: int
    bucketed: bool
    counted: str
    once: tuple[str, ...]
    evaluations: Mapping[str, Callable[..., Evaluation | None]]

    def batch_shapes(self, batch_size: int, seq_len: int) -> Shapes:
        """Shapes and dtypes of the longest batch."""
        ...

    def objective(self, setting: Setting) -> Objective:
        """The function that sums losses over a batch, for `train.step.make_step`."""
        ...

    def stream(self, task: Task, batch_size: int, seed: int, process_index: int, process_count: int) -> Batches:
        """The training batches, this process's share."""
        ...

    def random_features(self, rng: np.random.Generator, vocab_size: int) -> dict[str, Callable]:
        """Name of a feature -> shape -> random values, for benchmarks without data."""
        ...

    def record_notes(self, task: Task) -> dict[str, Any]:
        """What a run's record notes about the data."""
        ...
