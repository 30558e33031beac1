"""An evaluation that computes an output of every held-out row, in batches of several lengths, for the task to score."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lowrank_jax.core.trees import combine
from lowrank_jax.core.types import Array, Tree
from lowrank_jax.data.pipeline import bucketed_pass
from lowrank_jax.forms.base import Evaluation, Setting
from lowrank_jax.forms.evaluate import in_order
from lowrank_jax.sharding.mesh import batch_share, replicated
from lowrank_jax.tasks.base import HeldOut


def row_outputs(
    setting: Setting,
    task: HeldOut,
    predict: Callable[[Tree, dict[str, Any]], Array],
    features: Callable[[Any], Mapping[str, np.ndarray]],
    rows: int,
) -> Evaluation:
    """Computes the outputs of the task's held-out sets and scores them; for many trials in one program.

    Args:
      setting: of the run.
      task: of the run, or an exam.
      predict: (variables, batch) -> outputs [B, ...]; not jitted.
      features: a row of a held-out set -> arrays, of which the task's `pad` says which are padded.
      rows: about how many are in a batch; rounded up until the mesh divides it.
    """
    outputs = jax.jit(predict, out_shardings=replicated(setting.mesh), compiler_options=setting.options)
    size = -(-rows // setting.mesh.size) * setting.mesh.size

    def batches(source: Any) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        share = batch_share(setting.mesh)
        lengths = task.lengths(source)
        return bucketed_pass(source, features, size, lengths=lengths, buckets=task.buckets, pad=task.pad, **share)

    def one(variables: Tree) -> dict[str, float]:
        found = {}
        for name, source in task.validation_sources().items():
            placed = ((indices, setting.place(batch)) for indices, batch in batches(source))
            made = ((indices, np.asarray(outputs(variables, batch))) for indices, batch in placed)
            found[name] = in_order(len(source), made)
        return task.score(found)

    def many(axes: Any, mesh: Mesh) -> Callable[[Tree, Tree], list[dict[str, float]]]:
        def each(trainable, frozen, batch):
            return predict(combine(trainable, frozen), batch)

        whole = NamedSharding(mesh, PartitionSpec())
        stacked = jax.vmap(each, in_axes=(0, axes, None))
        outputs = jax.jit(stacked, out_shardings=whole, compiler_options=setting.options)

        def evaluate(trainable: Tree, frozen: Tree) -> list[dict[str, float]]:
            found = {}
            for name, source in task.validation_sources().items():
                pairs = ((at, np.asarray(outputs(trainable, frozen, batch))) for at, batch in batches(source))
                found[name] = in_order(len(source), ((at, np.moveaxis(values, 0, 1)) for at, values in pairs))
            trials = next(iter(found.values())).shape[1]
            return [task.score({name: rows[:, i] for name, rows in found.items()}) for i in range(trials)]

        return evaluate

    return Evaluation(one, many)
