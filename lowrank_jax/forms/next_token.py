"""The form `next_token`: targets among the tokens, scored by decoding or by the loss on held-out text."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.types import ApplyFn, Objective
from lowrank_jax.data.pipeline import Batches, one_pass
from lowrank_jax.forms.base import Evaluation, Setting, Shapes
from lowrank_jax.forms.chooser import CHOICE, exam_choices
from lowrank_jax.forms.evaluate import make_loss_evaluator, make_trials_loss_evaluator
from lowrank_jax.forms.forgetting import FORGETTING, ForgettingOptions, text_loss
from lowrank_jax.forms.generation import GENERATION, SAMPLES, generation, samples
from lowrank_jax.ops.losses import chunked_next_token_loss
from lowrank_jax.sharding.mesh import batch_share
from lowrank_jax.tasks.base import LikelihoodTask, Task


def next_token_objective(
    apply_fn: ApplyFn, chunk_tokens: int = 0, unroll: int = 1, smoothing: float = 0.0
) -> Objective:
    """Sum over targets of -log p(token_t | tokens_<t), weighted; in packed rows, given its document's tokens only.

    Args:
      apply_fn: a causal model with methods "hidden" and "logits".
      chunk_tokens: for how many positions logits are computed at a time; 0 for all.
      unroll: chunks an iteration of the compiled loop.
      smoothing: of the labels; see `ops.losses.next_token_loss`.
    """

    def objective(variables, batch, rngs):
        packed = {name: batch[name] for name in ("segments",) if name in batch}
        hidden = apply_fn(variables, batch["tokens"], rngs=rngs, method="hidden", **packed)

        def logits_fn(chunk):
            return apply_fn(variables, chunk, rngs=rngs, method="logits")

        loss, weight, correct = chunked_next_token_loss(
            hidden,
            logits_fn,
            batch["tokens"],
            batch["weights"],
            chunk_tokens=chunk_tokens,
            unroll=unroll,
            smoothing=smoothing,
        )
        return loss, {"weight": weight, "correct": correct}

    return objective


def likelihood(setting: Setting, task: LikelihoodTask) -> Evaluation | None:
    """The loss on the task's held-out text; None without any.

    Raises:
      UserError: the task is never scored by a loss.
    """
    if not isinstance(task, LikelihoodTask):
        raise UserError("the evaluation 'likelihood' needs a task with held-out text; take 'generation'")
    source = task.validation_source()
    if source is None:
        return None
    objective = next_token_objective(setting.apply_fn, setting.chunk_tokens, setting.unroll)
    sums = make_loss_evaluator(objective, setting.options)

    def batches():
        return one_pass(source, task.features, setting.batch_size, **batch_share(setting.mesh))

    def evaluate(variables):
        return task.validation_metrics(*sums(variables, map(setting.place, batches())))

    def many(axes, mesh):
        of_trials = make_trials_loss_evaluator(objective, axes, mesh, setting.options)

        def evaluate_all(trainable, frozen):
            return [task.validation_metrics(*pair) for pair in of_trials(trainable, frozen, batches())]

        return evaluate_all

    return Evaluation(evaluate, many)


def forgetting(setting: Setting, task: Task, options: ForgettingOptions) -> Evaluation:
    """The loss on text that the run is not trained on; see `forgetting.text_loss`."""
    objective = next_token_objective(setting.apply_fn, setting.chunk_tokens, setting.unroll)
    return text_loss(setting, task, options, objective)


class NextToken:
    """See `base.Form`.

    Args:
      config: of the task; where it is `segmented`, several documents share a row, and "segments" numbers them.
    """

    name, head, num_labels, bucketed, once = "next_token", None, 0, False, ()
    smooths = True
    counted = "tokens that are predicted (without prompts and padding)"
    evaluations: ClassVar = {
        GENERATION: generation,
        "likelihood": likelihood,
        SAMPLES: samples,
        CHOICE: exam_choices,
        FORGETTING: forgetting,
    }

    def __init__(self, config: Any = None):
        self.segmented = bool(getattr(config, "segmented", False))

    def batch_shapes(self, batch_size: int, seq_len: int) -> Shapes:
        """Tokens, and the weights of the targets among them; for packed rows also each token's document, by number."""
        rows = (batch_size, seq_len)
        packed = {"segments": (rows, jnp.int32)} if self.segmented else {}
        return {"tokens": (rows, jnp.int32), "weights": (rows, jnp.float32), **packed}

    def objective(self, setting: Setting) -> Objective:
        """See `next_token_objective`."""
        return next_token_objective(setting.apply_fn, setting.chunk_tokens, setting.unroll, setting.smoothing)

    def stream(self, task: Task, batch_size: int, seed: int, process_index: int, process_count: int) -> Batches:
        """Batches of one length, in the seed's order unless the task says otherwise."""
        return Batches(
            task.train_source(),
            task.features,
            batch_size,
            seed=seed,
            shuffle=not getattr(task, "ordered", False),
            process_index=process_index,
            process_count=process_count,
        )

    def random_features(self, rng: np.random.Generator, vocab_size: int) -> dict[str, Callable]:
        """Random tokens, all of them targets, of one document a row."""
        tokens = {"tokens": lambda shape: rng.integers(0, vocab_size, shape, np.int32)}
        return {**tokens, "weights": np.ones, "segments": np.ones}

    def record_notes(self, task: Task) -> dict[str, Any]:
        """Differences from the data as stored, whether these are the official ones, and why a metric is missing."""
        found = {"notes": list(getattr(task, "notes", ())), "partial": getattr(task, "partial", False)}
        found["missing"] = dict(getattr(task, "missing", {}))
        return {name: value for name, value in found.items() if value}
