"""What every task provides, by the form of its examples: targets among the tokens, or a label of all of them."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lowrank_jax.core.errors import UserError
from lowrank_jax.data.pipeline import Source

# The examples that rows are packed into at least, if they are short enough; as many as the largest batch that is chosen
# from the data has (`train.rhythm.FITTED_BATCH`).
FEWEST = 64
Target = str | tuple[str, ...]
Features = dict[str, np.ndarray]  # {"tokens": int32 [T], "weights": float32 [T]}


@runtime_checkable
class Task(Protocol):
    """A benchmark: turns examples into features.

    Its config says which form it has (`forms.registry.FORMS`), and `evaluation` is one of that form's.

    weights[t] = 1 says that token t is a target, predicted from tokens[:t]; padding is on the right, with weight 0.
    """

    name: str
    evaluation: str
    seq_len: int

    def train_source(self) -> Source:
        """Random access to the training examples."""
        ...

    def features(self, example: Any) -> Features:
        """One example as model input."""
        ...


@runtime_checkable
class Prompted(Protocol):
    """What is scored by decoding: `forms.generation` decodes and passes the texts to `score`.

    Optional, and used where they are there: `fitted(prompts, room)` cuts prompts to `room` ids; `places()` names each
    prompt's file and row, and `shortening` a remedy, for the error of one that is too long; `stops`, strings that end a
    text, and `end_ids`, further tokens that do.
    """

    max_new_tokens: int
    stop_id: int | None

    def prompts(self, sample: int | None = None) -> list[tuple[str, Target]]:
        """(prompt, target) texts, the same ones at every call; a target is a text, or several that are all right."""
        ...

    def prompt_tokens(self, prompt: str) -> list[int]:
        """The ids that decoding starts from: exactly those before the target in training."""
        ...

    def score(self, predictions: Sequence[str], targets: Sequence[Any]) -> dict[str, float]:
        """Metrics by name."""
        ...


@runtime_checkable
class GenerationTask(Task, Prompted, Protocol):
    """A task that is scored by decoding."""


@runtime_checkable
class LikelihoodTask(Task, Protocol):
    """A task that is scored by the loss on held-out data."""

    def validation_source(self) -> Source | None:
        """Random access to the held-out examples, or None when there are none."""
        ...

    def validation_metrics(self, loss_sum: float, weight_sum: float) -> dict[str, float]:
        """Metrics of one whole pass over `validation_source`, from the summed loss in nats and the summed weights."""
        ...


class HeldOut(Protocol):
    """What `forms.held_out.row_outputs` needs of a task or an exam; see `LabelTask` and `ChoiceTask`."""

    buckets: tuple[int, ...]
    pad: Mapping[str, int]

    def lengths(self, source: Any) -> np.ndarray:
        """Number of tokens of each row."""
        ...

    def validation_sources(self) -> dict[str, Any]:
        """Name -> random access to a held-out set."""
        ...

    def score(self, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Metrics of the outputs of each held-out set."""
        ...


@runtime_checkable
class LabelTask(Task, Protocol):
    """A task that is scored by a label or a score of each example, with an encoder's head.

    Its rows differ in length; `data.pipeline` pads "tokens" and "types" of a batch to one of `buckets` and adds
    "mask". A batch is then {"tokens", "types": int32 [B, T], "mask": bool [B, T], "labels": int32 or float32 [B],
    "weights": float32 [B], 0 for rows that only fill up a batch of an evaluation}.
    """

    head: str  # "classification" or "regression" of models.parts.heads
    num_labels: int
    label_names: tuple[str, ...]
    buckets: tuple[int, ...]  # ascending; seq_len is the last
    pad: Mapping[str, int]  # feature that is padded -> the value it is padded with
    partial: bool  # whether any split differs from the official one
    notes: tuple[str, ...]  # a line for each departure from the official data, and for rows that are cut

    def lengths(self, source: Any) -> np.ndarray:
        """Number of tokens of each row, int32 [len(source)], without reading rows."""
        ...

    def validation_sources(self) -> dict[str, Any]:
        """Name -> random access to a held-out set; a single set is called ""."""
        ...

    def score(self, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Metrics of the logits [n, num_labels] (or scores [n, 1]) of each held-out set; "main" is the paper's."""
        ...


@runtime_checkable
class ChoiceTask(Task, Protocol):
    """A task that is scored by which of several completions of a prompt the model finds likeliest.

    Rows differ in length, and batches are padded to one of `buckets`. `features` gives the prompt with its right
    completion, {"tokens": int32 [n], "weights": float32 [n]}, of which the completion's tokens are the targets;
    `candidates` gives all K completions:

        {"tokens": int32 [n, K], each prompt with a completion, padded on the right to the row's longest;
         "starts": int32 [K], the place of each completion's first token; "counts": int32 [K], how many tokens it has,
         0 where the row has fewer than K; "targets": int32 [K, M], those tokens; "sizes": int32 [K], its UTF-8 bytes}
    """

    likelihood: str  # of a completion: one of forms.choice.LIKELIHOODS
    buckets: tuple[int, ...]  # ascending; seq_len is the last
    pad: Mapping[str, int]  # feature that is padded -> the value it is padded with
    partial: bool  # whether any split differs from the official one
    notes: tuple[str, ...]  # a line for each departure from the official data, and for rows that are cut

    def candidates(self, example: Any) -> dict[str, np.ndarray]:
        """A held-out row with all of its completions."""
        ...

    def lengths(self, source: Any) -> np.ndarray:
        """Number of tokens of each row, with its longest completion where all are read: int32 [len(source)]."""
        ...

    def validation_sources(self) -> dict[str, Any]:
        """Name -> random access to a held-out set; a single set is called ""."""
        ...

    def score(self, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Metrics of the completions' likelihoods [n, K] of each held-out set; "main" is the paper's."""
        ...


def make_features(
    tokens: Sequence[int] | np.ndarray, weights: Sequence[float] | np.ndarray, seq_len: int, pad_id: int
) -> Features:
    """Pads tokens and weights on the right to `seq_len`; the weight of position 0 is 0, as nothing precedes it.

    Args:
      tokens, weights: of equal length, at most `seq_len`.
      seq_len: T.
      pad_id: fills the rest, with weight 0.

    Returns:
      {"tokens": int32 [T], "weights": float32 [T]}.

    Raises:
      UserError: more than `seq_len` tokens: a task cuts its rows itself, and says what is lost (`data.cuts`).
    """
    if len(tokens) != len(weights):
        raise ValueError(f"{len(tokens)} tokens but {len(weights)} weights")
    if len(tokens) > seq_len:
        raise UserError(f"an example has {len(tokens)} tokens, seq_len is {seq_len}; raise it")
    padded = np.full(seq_len, pad_id, np.int32)
    padded[: len(tokens)] = tokens
    scored = np.zeros(seq_len, np.float32)
    scored[1 : len(tokens)] = weights[1:]
    return {"tokens": padded, "weights": scored}


def row_features(example: Mapping[str, Any], seq_len: int, pad_id: int) -> Features:
    """Padded arrays of an example {"tokens", "targets" (absent: all), "segments" (of packed rows; padded with 0)}."""
    tokens = example["tokens"]
    weights = np.asarray(example.get("targets", np.ones(len(tokens), bool)), np.float32)
    made = make_features(tokens, weights, seq_len, pad_id)
    if "segments" in example:
        made["segments"] = np.zeros(seq_len, np.int32)
        made["segments"][: len(tokens)] = example["segments"]
    return made


def pad_id(tokenizer: Any) -> int:
    """The tokenizer's padding id; 0 where it has none, as padding on the right is neither read nor scored."""
    return 0 if tokenizer.pad_id is None else tokenizer.pad_id


def round_up(length: int, multiple: int) -> int:
    """The smallest multiple that is not below `length`."""
    return -(-length // multiple) * multiple


def packed_length(longest: int, total: int) -> int:
    """The length of examples that several rows share, where the data choose it: at least the longest row's tokens.

    No longer than makes FEWEST examples of all rows: of little data a batch would otherwise have the same rows again
    and again, at the memory of long rows.

    Args:
      longest: tokens of the longest row.
      total: tokens of all rows.
    """
    return max(longest, -(-total // FEWEST))


def spaced(rows: Sequence[Any], count: int | None) -> list[Any]:
    """`count` of the rows, evenly spaced; all where there are no more, or for None."""
    total, kept = len(rows), min(count or len(rows), len(rows))
    return [rows[index * total // kept] for index in range(kept)]


def check_score_input(predictions: Sequence[str], targets: Sequence[Any]) -> None:
    """Raises ValueError unless there is one prediction per target and at least one of each."""
    if len(predictions) != len(targets) or not targets:
        raise ValueError(f"{len(predictions)} predictions for {len(targets)} targets")
