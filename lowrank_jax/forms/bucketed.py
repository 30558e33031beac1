"""Training batches of rows that differ in length, each batch padded to one of its task's buckets."""

from collections.abc import Mapping

from lowrank_jax.data.pipeline import Batches
from lowrank_jax.tasks.base import ChoiceTask, LabelTask


def bucketed_stream(
    task: LabelTask | ChoiceTask,
    batch_size: int,
    seed: int,
    process_index: int,
    process_count: int,
    pad: Mapping[str, int],
) -> Batches:
    """The training batches, this process's share.

    Args:
      task: of the run.
      batch_size, seed, process_index, process_count: as in `base.Form.stream`.
      pad: feature that is padded -> the value it is padded with.
    """
    source = task.train_source()
    return Batches(
        source,
        task.features,
        batch_size,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
        lengths=task.lengths(source),
        buckets=task.buckets,
        pad=pad,
    )
