"""Reads the splits of a GLUE data set as a config asks: samples of the training rows, incomplete files, and notes."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from lowrank_jax.core.errors import UserError
from lowrank_jax.data.builders.glue.source import has_split, load_glue
from lowrank_jax.data.builders.glue.specs import GLUE

TRAIN = "train"


class SplitsConfig(Protocol):
    """The fields that say how much of a data set is read; see `glue.GlueConfig`."""

    @property
    def train_examples(self) -> int | None: ...
    @property
    def subset_seed(self) -> int: ...
    @property
    def data_dir(self) -> str | None: ...
    @property
    def allow_partial(self) -> bool: ...
    @property
    def max_dev_examples(self) -> int | None: ...


class Split(NamedTuple):
    """The rows of one split that are used.

    Attributes:
      split: "train", "dev", "dev_matched", ...
      first, second: the sentences; second is None where rows have only one.
      labels: int32 [n] classes, or float32 [n] scores.
      numbers: [n] of the rows in the whole split, from 0.
      digest: of the whole split; None where its file is missing.
      partial: whether it differs from the official one.
      notes: a line for each difference.
    """

    split: str
    first: list[str]
    second: list[str] | None
    labels: np.ndarray
    numbers: np.ndarray
    digest: str | None
    partial: bool
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """ "train"; of dev sets "", "matched", "mismatched"."""
        return self.split.removeprefix("dev").removeprefix("_")

    def place(self, index: int) -> str:
        """Where row `index` of those that are used is, for messages."""
        return f"{self.split}, row {self.numbers[index] + 1}"


def read_splits(task: str, config: SplitsConfig, splits: Sequence[str] | None = None) -> Iterator[Split]:
    """Each split; one of MNLI's dev sets may be missing where the config allows parts, and has no rows then.

    A sample of the training rows depends on the data and `subset_seed` alone: every method and every run's seed trains
    on the same rows, and a smaller sample is part of a larger one.

    Args:
      task: a name of `specs.GLUE`.
      config: how much of it.
      splits: which; None: all.

    Raises:
      UserError: as `load_glue`; a sample of more rows than there are.
    """
    wanted = tuple(splits or GLUE[task].splits)
    for split in wanted:
        if config.allow_partial and _missing_dev(task, split, wanted, config.data_dir):
            yield Split(
                split, [], None, np.zeros(0, np.int32), np.zeros(0, int), None, True, (f"{task} {split}: no file",)
            )
            continue
        rows, note = load_glue(task, split, config.data_dir, config.allow_partial)
        kept, sampled = _keep(task, split, len(rows), config)
        first = [rows.first[i] for i in kept]
        second = [rows.second[i] for i in kept] if rows.second else None
        notes = tuple(line for line in (note, sampled) if line)
        yield Split(split, first, second, rows.labels[kept], kept, rows.digest(), bool(note), notes)


def _missing_dev(task: str, split: str, wanted: Sequence[str], folder: str | None) -> bool:
    """Whether this is the one of MNLI's two dev sets that the folder lacks, where both are wanted."""
    if not split.startswith("dev_") or has_split(task, split, folder):
        return False
    return any(has_split(task, other, folder) for other in wanted if other.startswith("dev_") and other != split)


def _keep(task: str, split: str, total: int, config: SplitsConfig) -> tuple[np.ndarray, str | None]:
    """(numbers of the rows that are used, a note where they are not all rows)."""
    wanted = config.train_examples if split == TRAIN else config.max_dev_examples
    if wanted is None:
        return np.arange(total), None
    field = "train_examples" if split == TRAIN else "max_dev_examples"
    if wanted > total:
        raise UserError(f"task.{field}={wanted} is more than the {total} rows of {split}; lower it or unset it")
    if split != TRAIN:
        return np.arange(wanted) * total // wanted, f"{task} {split}: {wanted} of {total} rows scored"
    # RandomState's stream is the same in every numpy; default_rng's may change.
    kept = np.random.RandomState(config.subset_seed).permutation(total)[:wanted]
    return kept, f"{task} train: {wanted} of {total} rows, subset_seed={config.subset_seed}"
