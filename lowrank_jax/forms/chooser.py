"""Evaluations that pick one of a prompt's completions, the likeliest: of the run's own task, or of an exam."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import unknown_name
from lowrank_jax.core.ranges import Range
from lowrank_jax.core.types import ApplyFn, Array, Tree
from lowrank_jax.data.builders.exams.source import EXAMS
from lowrank_jax.forms.base import Evaluation, Setting, examinee_of
from lowrank_jax.forms.held_out import row_outputs
from lowrank_jax.tasks.base import ChoiceTask
from lowrank_jax.tasks.exams.options import ExamOptions
from lowrank_jax.tasks.exams.task import ChoiceExam

CHOICE = "choice"  # the type of an evaluation that asks an exam's questions
CHOICE_BATCH = 32  # held-out rows at a time, each with all of its completions
LIKELIHOODS = ("sum", "per_token", "per_byte")


@dataclasses.dataclass(frozen=True)
class ChoiceOptions(ExamOptions):
    """The exam of an evaluation of the type "choice".

    Attributes:
      batch: questions at a time; 0: CHOICE_BATCH.
    """

    batch: Annotated[int, Range(least=0)] = 0

    def __post_init__(self):
        super().__post_init__()
        if not self.task:
            raise UserError(f"evals: an evaluation of the type {CHOICE!r} needs a task: one of {', '.join(EXAMS)}")


def make_chooser(apply_fn: ApplyFn, likelihood: str) -> Callable[[Tree, dict[str, Array]], Array]:
    """(variables, batch of `ChoiceTask.candidates`) -> float32 [B, K], the log-likelihood of each completion.

    A completion c of the prompt p has L = sum over its tokens of log p(c_t | p, c_<t), in nats:

        sum: L;    per_token: L / number of its tokens;    per_byte: L / UTF-8 bytes of its text

    A completion that a row does not have is at -inf. Padding is on the right, where a causal model never looks. Where
    "tokens" has one column for all completions, they are single tokens after the same prompt, which is read once.

    Args:
      apply_fn: a causal model with methods "hidden" and "logits"; logits are computed at the targets alone.
      likelihood: one of LIKELIHOODS.

    Raises:
      UserError: `likelihood` is none of them.
    """
    if likelihood not in LIKELIHOODS:
        raise unknown_name("task.likelihood", likelihood, LIKELIHOODS)

    def likelihoods(variables, batch):
        targets, counts = batch["targets"], batch["counts"]
        rows, choices, most = targets.shape
        columns = batch["tokens"].shape[2]
        tokens = jnp.moveaxis(batch["tokens"], 2, 1).reshape(rows * columns, -1)
        hidden = apply_fn(variables, tokens, method="hidden")
        # A token is predicted at the place before it.
        places = batch["starts"][:, :columns, None] + jnp.arange(most) - 1
        places = jnp.clip(places, 0, tokens.shape[1] - 1).reshape(rows * columns, most, 1)
        read = jnp.take_along_axis(hidden, places, axis=1)
        logits = apply_fn(variables, read, method="logits").astype(jnp.float32).reshape(rows, columns, most, -1)
        if columns < choices:
            chosen = jnp.take_along_axis(logits[:, 0], jnp.moveaxis(targets, 2, 1), axis=-1)
            chosen = jnp.moveaxis(chosen, 1, 2)
        else:
            chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        each = jnp.where(jnp.arange(most) < counts[..., None], chosen - jax.nn.logsumexp(logits, axis=-1), 0.0)
        total = jnp.sum(each, axis=-1)
        divisor = {"sum": jnp.ones_like(counts), "per_token": counts, "per_byte": batch["sizes"]}[likelihood]
        return jnp.where(counts > 0, total / jnp.maximum(divisor, 1), -jnp.inf)

    return likelihoods


def choices(setting: Setting, task: ChoiceTask) -> Evaluation:
    """Picks the likeliest completion of each held-out row and scores the picks; for many trials in one program."""
    return row_outputs(setting, task, make_chooser(setting.apply_fn, task.likelihood), task.candidates, CHOICE_BATCH)


def exam_choices(setting: Setting, task: Any, options: ChoiceOptions) -> Evaluation:
    """Picks the likeliest option of each question of an exam; for many trials in one program.

    Raises:
      UserError: as `ChoiceExam`.
    """
    exam = ChoiceExam(options, examinee_of(setting, task, options.add_bos))
    predict = make_chooser(setting.apply_fn, exam.likelihood)
    return row_outputs(setting, exam, predict, exam.candidates, options.batch or CHOICE_BATCH)
