"""Counts, for the record of a finished run, the large singular values of what it has added to its base."""

from typing import Any

from experiments.session.experiment import Experiment
from lowrank_jax import adapters
from lowrank_jax.adapters.analysis.updates import ABOVE, by_kind, counts
from lowrank_jax.layouts.segments import Segments
from lowrank_jax.train.state import TrainState


def update_spectrum(experiment: Experiment, state: TrainState, frozen: Any) -> dict[str, Any]:
    """{"above", "counts": {kind of matrix: mean over the layers}}: see `adapters.analysis.updates`.

    The base is read or drawn again, as merges may have changed it; every process takes part.

    Args:
      experiment, state, frozen: the finished run.
    """
    final = adapters.merge(experiment.variables(state, frozen), experiment.plan)
    initial = experiment.weights.load_base().params
    undo = Segments().undo
    return {"above": ABOVE, "counts": by_kind(counts(undo(initial), undo(final)))}
