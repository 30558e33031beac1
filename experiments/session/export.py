"""What a finished run leaves to take home: the adapter alone, and the merged model if asked for."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax

from experiments.session.experiment import Experiment
from lowrank_jax import adapters
from lowrank_jax.bases.base import export_params
from lowrank_jax.checkpoints.adapters_only import save_adapter
from lowrank_jax.core.paths import flatten
from lowrank_jax.core.trees import combine
from lowrank_jax.interop.carried import carry
from lowrank_jax.layouts.segments import Segments
from lowrank_jax.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """What to write beside the records.

    Attributes:
      adapter: the trained leaves alone, with their scales and the base's fingerprint, in `adapter/`. Full fine-tuning
        has no adapter: it is kept by its checkpoint and by `merged`.
      merged: dtype of the merged model in Hugging Face's layout in `model/`; "" writes none. Of a quantised base, what
        its codes stand for with the update, as arrays on the device; scripts/merge_adapter.py merges into the
        published weights instead, on the host.
    """

    adapter: bool = True
    merged: Literal["", "float32", "bfloat16", "float16"] = ""


def export_run(folder: Path, experiment: Experiment, state: TrainState, frozen: Any, fingerprint: str) -> None:
    """Writes what the run's config asks for; every process takes part, process 0 writes."""
    config, plan = experiment.config.export, experiment.plan
    if config.adapter and experiment.config.trainable != "full":
        variables = combine(state.trainable, frozen)
        scales = {path: jax.device_get(scale).tolist() for path, scale in flatten(variables.get("scales", {})).items()}
        save_adapter(
            folder / "adapter",
            state.trainable,
            adapters.describe(plan),
            scales,
            experiment.base_record(fingerprint),
        )
    if config.merged:
        params = Segments().undo(adapters.merge(experiment.variables(state, frozen), plan))
        base = experiment.base
        beside = carry(base.path, base.tokenizer)
        export_params(params, base.config, folder / "model", config.merged, tokenizer=base.tokenizer, carried=beside)
