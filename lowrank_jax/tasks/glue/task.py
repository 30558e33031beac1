"""GLUE (arXiv 1804.07461): the eight tasks of LoRA's Table 2, and WNLI, scored as that table does."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import unknown_name
from lowrank_jax.core.ranges import Range, check_ranges
from lowrank_jax.data.builders.glue.specs import GLUE
from lowrank_jax.data.cuts import describe_cuts
from lowrank_jax.data.encoded import EncodedRows, encode_rows
from lowrank_jax.metrics.classification import accuracy, check_library, f1, matthews
from lowrank_jax.metrics.correlation import pearson, spearman
from lowrank_jax.tasks.base import pad_id
from lowrank_jax.tasks.glue.splits import read_splits

log = logging.getLogger(__name__)
SMALLEST_BUCKET = 32
MATTHEWS, WITH_F1 = ("cola",), ("mrpc", "qqp")


@dataclass(frozen=True)
class GlueConfig:
    """Which data set, how much of it, and how long its rows may be.

    Attributes:
      task: a name of `specs.GLUE`.
      seq_len: most tokens of a row, special ones included; pairs lose the end of their longer text first.
      buckets: lengths that batches are padded to, ascending up to seq_len; None: seq_len, its half, its quarter, ...
        down to 32.
      train_examples: size of the low-data training sets (Tables 16 and 17); None takes all. A plain random sample, not
        balanced over classes; with the same subset_seed a smaller sample is part of a larger one.
      subset_seed: of that sample.
      data_dir: folder of the tsv files; see `load_glue`.
      allow_partial: runs on files whose number of rows is not the official one, and on MNLI with one of its
        two dev sets; `GlueTask.notes` says which.
      max_dev_examples: rows of each dev set that are scored, evenly spaced; None takes all.
    """

    form: ClassVar[str] = "label"
    task: str = "cola"
    seq_len: Annotated[int, Range(least=1)] = 128
    buckets: tuple[Annotated[int, Range(least=1)], ...] | None = None
    train_examples: Annotated[int, Range(least=1)] | None = None
    subset_seed: Annotated[int, Range(least=0, most=2**32 - 1)] = 0  # the seeds that RandomState accepts
    data_dir: str | None = None
    allow_partial: bool = False
    max_dev_examples: Annotated[int, Range(least=1)] | None = None

    def __post_init__(self):
        if self.task not in GLUE:
            raise unknown_name("GLUE task", self.task, GLUE)
        check_ranges(self, "task")
        if self.buckets is not None:
            object.__setattr__(self, "buckets", tuple(self.buckets))  # a list where it comes from a ConfigDict or JSON
            if list(self.buckets) != sorted(set(self.buckets)) or self.buckets[-1:] != (self.seq_len,):
                raise UserError(f"task.buckets is {self.buckets}; it must ascend up to seq_len={self.seq_len}")

    @property
    def head(self) -> str:
        """ "classification", or "regression" for STS-B."""
        return "classification" if GLUE[self.task].labels else "regression"

    @property
    def num_labels(self) -> int:
        """Classes; 1 for STS-B."""
        return len(GLUE[self.task].labels) or 1


class GlueTask:
    """The task over one tokenizer; reads, checks and encodes every row at the start.

    Attributes:
      head: "classification", or "regression" for STS-B.
      num_labels, label_names: classes by number; 1 and ("score",) for STS-B.
      seq_len, buckets: lengths that batches are padded to.
      pad: feature that is padded -> the value it is padded with.
      partial: whether any split differs from the official one.
      notes: a line for each such split, for a subset, and for rows that seq_len cuts; a run's record keeps them.
      contents: split -> digest of all its rows.
    """

    name, evaluation = "glue", "labels"

    def __init__(self, config: GlueConfig, tokenizer: Any):
        check_library()
        self.config, spec = config, GLUE[config.task]
        self.head, self.num_labels = config.head, config.num_labels
        self.label_names = spec.labels or ("score",)
        self.seq_len, self.buckets = config.seq_len, config.buckets or default_buckets(config.seq_len)
        self.pad = {"tokens": pad_id(tokenizer), "types": 0}
        notes, self.partial, self.contents = [], False, {}
        self._splits: dict[str, EncodedRows] = {}
        for split in read_splits(config.task, config):
            self.partial |= split.partial
            notes += split.notes
            if split.digest is None:
                continue
            self.contents[split.split] = split.digest
            made = encode_rows(tokenizer, split.first, split.second, split.labels, config.seq_len)
            self._splits[split.name] = made
            if note := describe_cuts(f"{config.task} {split.split}", "task.seq_len", config.seq_len, made.whole):
                log.warning("%s", note)
                notes.append(note)
        self.notes = tuple(notes)

    def train_source(self) -> EncodedRows:
        """Rows {"tokens", "types", "label"}."""
        return self._splits["train"]

    def validation_sources(self) -> dict[str, EncodedRows]:
        """{"": dev}, or for MNLI {"matched": dev, "mismatched": dev}."""
        return {name: rows for name, rows in self._splits.items() if name != "train"}

    def features(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """{"tokens": int32 [n], "types": int32 [n], "labels": int32 or float32, "weights": 1}; n differs by row."""
        return {
            "tokens": example["tokens"],
            "types": example["types"],
            "labels": example["label"],
            "weights": np.float32(1),
        }

    def lengths(self, source: EncodedRows) -> np.ndarray:
        """Number of tokens of each row, int32 [len(source)]."""
        return source.lengths

    def score(self, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Metrics of the model's outputs on the whole of `validation_sources`.

        "main" is the number of Table 2: Matthews' correlation for CoLA, Pearson's for STS-B, accuracy over the rows of
        both dev sets for MNLI, accuracy for the rest. "distinct" counts the classes that were predicted (1 is a
        collapsed run), "spread" is the standard deviation of predicted scores (0 is one). "nonfinite" counts rows with
        an output that is NaN or infinite; such an output counts as 0 in the other metrics.

        Args:
          outputs: split -> float [n, num_labels] logits, or [n, 1] or [n] scores, in the source's order.

        Returns:
          CoLA {"matthews", "accuracy"}; MRPC, QQP {"accuracy", "f1"}; STS-B {"pearson", "spearman"}; MNLI {"matched",
          "mismatched", "overall"}, or the one of the two that exists; the others {"accuracy"}; and those above.
        """
        sources = self.validation_sources()
        if outputs.keys() != sources.keys():
            raise ValueError(f"outputs of {sorted(outputs)} for the splits {sorted(sources)}")
        arrays = {name: np.asarray(outputs[name], np.float32).reshape(len(outputs[name]), -1) for name in sources}
        for name, array in arrays.items():
            if array.shape != (len(sources[name]), self.num_labels):
                wanted = (len(sources[name]), self.num_labels)
                raise ValueError(f"outputs {array.shape} of the split {name!r}; wanted {wanted}")
        joined = np.concatenate([arrays[name] for name in sources])
        labels = np.concatenate([sources[name].labels for name in sources])
        finite = np.isfinite(joined)
        joined, nonfinite = np.where(finite, joined, 0), float(np.sum(~finite.all(axis=1)))
        if self.head == "regression":
            return {**_score_regression(joined[:, 0], labels), "nonfinite": nonfinite}
        predictions = np.argmax(joined, axis=1)
        metrics = self._score_classes(predictions, labels)
        return {**metrics, "distinct": float(len(np.unique(predictions))), "nonfinite": nonfinite}

    def _score_classes(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        total = accuracy(predictions, labels)
        sources = self.validation_sources()
        if "" not in sources:
            ends = np.cumsum([len(rows) for rows in sources.values()])[:-1]
            parts = zip(sources, np.split(predictions, ends), np.split(labels, ends), strict=True)
            each = {name: accuracy(*part) for name, *part in parts}
            return {**each, **({"overall": total} if len(each) > 1 else {}), "main": total}
        if self.config.task in MATTHEWS:
            correlation = matthews(predictions, labels)
            return {"matthews": correlation, "accuracy": total, "main": correlation}
        metrics = {"accuracy": total, "main": total}
        return {**metrics, "f1": f1(predictions, labels)} if self.config.task in WITH_F1 else metrics


def default_buckets(seq_len: int) -> tuple[int, ...]:
    """seq_len, its half, its quarter, ..., not below 32; ascending."""
    lengths = [seq_len]
    while lengths[0] % 2 == 0 and lengths[0] // 2 >= SMALLEST_BUCKET:
        lengths.insert(0, lengths[0] // 2)
    return tuple(lengths)


def _score_regression(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    correlation = pearson(predictions, labels)
    return {
        "pearson": correlation,
        "spearman": spearman(predictions, labels),
        "main": correlation,
        "spread": float(np.std(predictions)),
    }
