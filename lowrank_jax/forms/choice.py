"""The form `choice`: a causal model picks one of a prompt's completions, the likeliest; trained on the right one."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lowrank_jax.core.paths import unknown_name
from lowrank_jax.core.types import ApplyFn, Array, Objective, Tree
from lowrank_jax.data.pipeline import Batches
from lowrank_jax.forms.base import Evaluation, Setting, Shapes
from lowrank_jax.forms.bucketed import bucketed_stream
from lowrank_jax.forms.forgetting import FORGETTING
from lowrank_jax.forms.generation import SAMPLES, samples
from lowrank_jax.forms.held_out import row_outputs
from lowrank_jax.forms.next_token import forgetting, next_token_objective
from lowrank_jax.tasks.base import ChoiceTask

CHOICE_BATCH = 32  # held-out rows at a time, each with all of its completions
LIKELIHOODS = ("sum", "per_token", "per_byte")


def choice_objective(apply_fn: ApplyFn, chunk_tokens: int = 0, unroll: int = 1) -> Objective:
    """Sum over the right completions' tokens of -log p, as `next_token.next_token_objective` has it; counts all tokens.

    Args: as there.
    """
    objective = next_token_objective(apply_fn, chunk_tokens, unroll)

    def counted(variables, batch, rngs):
        loss, sums = objective(variables, {name: batch[name] for name in ("tokens", "weights")}, rngs)
        return loss, {**sums, "tokens": jnp.sum(batch["mask"], dtype=jnp.float32)}

    return counted


def make_chooser(apply_fn: ApplyFn, likelihood: str) -> Callable[[Tree, dict[str, Array]], Array]:
    """(variables, batch of `ChoiceTask.candidates`) -> float32 [B, K], the log-likelihood of each completion.

    A completion c of the prompt p has L = sum over its tokens of log p(c_t | p, c_<t), in nats:

        sum: L;    per_token: L / number of its tokens;    per_byte: L / UTF-8 bytes of its text

    A completion that a row does not have is at -inf. Padding is on the right, where a causal model never looks.

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
        tokens = jnp.moveaxis(batch["tokens"], 2, 1).reshape(rows * choices, -1)
        hidden = apply_fn(variables, tokens, method="hidden")
        places = batch["starts"][..., None] + jnp.arange(most) - 1  # a token is predicted at the place before it
        places = jnp.clip(places, 0, tokens.shape[1] - 1).reshape(rows * choices, most, 1)
        read = jnp.take_along_axis(hidden, places, axis=1)
        logits = apply_fn(variables, read, method="logits").astype(jnp.float32).reshape(rows, choices, most, -1)
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        each = jnp.where(jnp.arange(most) < counts[..., None], chosen - jax.nn.logsumexp(logits, axis=-1), 0.0)
        total = jnp.sum(each, axis=-1)
        divisor = {"sum": jnp.ones_like(counts), "per_token": counts, "per_byte": batch["sizes"]}[likelihood]
        return jnp.where(counts > 0, total / jnp.maximum(divisor, 1), -jnp.inf)

    return likelihoods


def choices(setting: Setting, task: ChoiceTask) -> Evaluation:
    """Picks the likeliest completion of each held-out row and scores the picks; for many trials in one program."""
    return row_outputs(setting, task, make_chooser(setting.apply_fn, task.likelihood), task.candidates, CHOICE_BATCH)


class Choice:
    """See `base.Form`.

    Args:
      config: of the task; nothing of it matters here.
    """

    name, head, num_labels, bucketed, once = "choice", None, 0, True, ()
    counted = "tokens that are read (without padding)"
    evaluations: ClassVar = {"choices": choices, SAMPLES: samples, FORGETTING: forgetting}

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
