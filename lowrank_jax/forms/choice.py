"""The form `choice`: a causal model picks one of a prompt's completions, the likeliest; trained on the right one."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from lowrank_jax.core.types import ApplyFn, Objective
from lowrank_jax.data.pipeline import Batches
from lowrank_jax.forms.base import Setting, Shapes
from lowrank_jax.forms.bucketed import bucketed_stream
from lowrank_jax.forms.chooser import CHOICE, choices, exam_choices
from lowrank_jax.forms.forgetting import FORGETTING
from lowrank_jax.forms.generation import GENERATION, SAMPLES, exam_texts, samples
from lowrank_jax.forms.next_token import forgetting, next_token_objective
from lowrank_jax.tasks.base import ChoiceTask


def choice_objective(apply_fn: ApplyFn, chunk_tokens: int = 0, unroll: int = 1) -> Objective:
    """Sum over the right completions' tokens of -log p, as `next_token.next_token_objective` has it; counts all tokens.

    Args: as there.
    """
    objective = next_token_objective(apply_fn, chunk_tokens, unroll)

    def counted(variables, batch, rngs):
        loss, sums = objective(variables, {name: batch[name] for name in ("tokens", "weights")}, rngs)
        return loss, {**sums, "tokens": jnp.sum(batch["mask"], dtype=jnp.float32)}

    return counted


class Choice:
    """See `base.Form`.

    Args:
      config: of the task; nothing of it matters here.
    """

    name, head, num_labels, bucketed, once = "choice", None, 0, True, ()
    counted = "tokens that are read (without padding)"
    evaluations: ClassVar = {
        "choices": choices,
        SAMPLES: samples,
        CHOICE: exam_choices,
        GENERATION: exam_texts,
        FORGETTING: forgetting,
    }

    def __init__(self, config: Any = None):
        del config

    def batch_shapes(self, batch_size: int, seq_len: int) -> Shapes:
        """Tokens, the weights of the targets among them, and which are no padding."""
        rows = (batch_size, seq_len)
        return {"tokens": (rows, jnp.int32), "weights": (rows, jnp.float32), "mask": (rows, jnp.bool_)}

    def objective(self, setting: Setting) -> Objective:
        """See `choice_objective`."""
        return choice_objective(setting.apply_fn, setting.chunk_tokens, setting.unroll)

    def stream(self, task: ChoiceTask, batch_size: int, seed: int, process_index: int, process_count: int) -> Batches:
        """Prompts with their right completions, padded to the task's buckets."""
        return bucketed_stream(task, batch_size, seed, process_index, process_count, {**task.pad, "weights": 0})

    def random_features(self, rng: np.random.Generator, vocab_size: int) -> dict[str, Callable]:
        """Random tokens, all of them targets, without padding."""
        return {
            "tokens": lambda shape: rng.integers(0, vocab_size, shape, np.int32),
            "weights": np.ones,
            "mask": np.ones,
        }

    def record_notes(self, task: ChoiceTask) -> dict[str, Any]:
        """Whether a split differs from the official one, and a line for each difference from the official data."""
        return {"partial": task.partial, "notes": list(task.notes)}
