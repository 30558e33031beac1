"""The form `label`: a label or a score of a row of tokens, predicted by an encoder's head."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import optax

from lowrank_jax.core.types import ApplyFn, Objective
from lowrank_jax.data.pipeline import Batches
from lowrank_jax.forms.base import Evaluation, Setting, Shapes
from lowrank_jax.forms.bucketed import bucketed_stream
from lowrank_jax.forms.evaluate import make_predictor
from lowrank_jax.forms.held_out import row_outputs
from lowrank_jax.tasks.base import LabelTask

LABEL_BATCH = 128  # held-out rows at a time
REGRESSION = "regression"
SCORES = (0, 5)  # range of a bench's random scores: STS-B's


def label_objective(apply_fn: ApplyFn, regression: bool = False, types: bool = True) -> Objective:
    """Sum over examples of -log p(label), or of (score - label)^2, weighted.

    Args:
      apply_fn: an encoder with a head, (tokens, mask=, types=) -> float32 logits [B, labels] or scores [B].
      regression: the second of the two above.
      types: the model takes token types.
    """

    def objective(variables, batch, rngs):
        given = {name: batch[name] for name in ("mask", *(("types",) if types else ()))}
        outputs = apply_fn(variables, batch["tokens"], rngs=rngs, **given).astype(jnp.float32)
        labels, weights = batch["labels"], batch["weights"]
        if regression:
            losses, correct = jnp.square(outputs - labels), jnp.zeros_like(weights)
        else:
            losses = optax.losses.softmax_cross_entropy_with_integer_labels(outputs, labels)
            correct = jnp.argmax(outputs, axis=-1) == labels
        tokens = jnp.sum(batch["mask"] * weights[:, None])
        sums = {"weight": jnp.sum(weights), "correct": jnp.sum(correct * weights), "tokens": tokens}
        return jnp.sum(losses * weights), sums

    return objective


def labels(setting: Setting, task: LabelTask) -> Evaluation:
    """Predicts the task's held-out sets and scores them; for many trials in one program."""
    return row_outputs(setting, task, make_predictor(setting.apply_fn, setting.takes_types), task.features, LABEL_BATCH)


class Label:
    """See `base.Form`.

    Args:
      config: of the task, with `head` ("classification" or "regression") and `num_labels`.
    """

    name, bucketed, once = "label", True, ("head", "pooler")
    counted = "tokens that are read (without padding)"
    evaluations: ClassVar = {"labels": labels}

    def __init__(self, config: Any):
        self.head, self.num_labels = config.head, config.num_labels

    @property
    def regression(self) -> bool:
        """Whether the label is a score."""
        return self.head == REGRESSION

    def batch_shapes(self, batch_size: int, seq_len: int) -> Shapes:
        """Tokens with their types and mask, and a label and a weight a row."""
        rows, dtype = (batch_size, seq_len), jnp.float32 if self.regression else jnp.int32
        features = {"tokens": (rows, jnp.int32), "types": (rows, jnp.int32), "mask": (rows, jnp.bool_)}
        return {**features, "labels": ((batch_size,), dtype), "weights": ((batch_size,), jnp.float32)}

    def objective(self, setting: Setting) -> Objective:
        """See `label_objective`."""
        return label_objective(setting.apply_fn, self.regression, setting.takes_types)

    def stream(self, task: LabelTask, batch_size: int, seed: int, process_index: int, process_count: int) -> Batches:
        """Batches padded to the task's buckets."""
        return bucketed_stream(task, batch_size, seed, process_index, process_count, task.pad)

    def random_features(self, rng: np.random.Generator, vocab_size: int) -> dict[str, Callable]:
        """Random tokens and labels, without padding."""

        def draw(shape):
            return rng.uniform(*SCORES, shape) if self.regression else rng.integers(0, self.num_labels, shape)

        tokens = {"tokens": lambda shape: rng.integers(0, vocab_size, shape, np.int32), "types": np.zeros}
        return {**tokens, "mask": np.ones, "labels": draw, "weights": np.ones}

    def record_notes(self, task: LabelTask) -> dict[str, Any]:
        """Whether a split differs from the official one, and a line for each difference from the official data."""
        return {"partial": task.partial, "notes": list(task.notes)}
