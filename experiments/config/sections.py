"""The dataclass of every section of a config, by name; they live with the code that they configure."""

import importlib
from typing import Any

SECTIONS = {
    "base": "lowrank_jax.bases.base:BaseConfig",
    "adapter": "lowrank_jax.adapters.base:AdapterConfig",
    "optimizer": "lowrank_jax.train.optimizer:OptimizerConfig",
    "schedule": "lowrank_jax.train.schedule:ScheduleConfig",
    "restart": "lowrank_jax.train.restart:RestartConfig",
    "train": "lowrank_jax.train.rhythm:LoopConfig",
    "checkpoint": "lowrank_jax.checkpoints.manager:CheckpointConfig",
    "mesh": "lowrank_jax.sharding.mesh:MeshConfig",
    "tracking": "lowrank_jax.train.tracking.modes:TrackingConfig",
    "export": "experiments.session.export:ExportConfig",
    "start": "experiments.session.warm_start:StartConfig",
}
# Dataclass of an entry of "evals" by its type; types that are not listed take the first, which says only when.
EVALS = {
    "": "lowrank_jax.train.evaluations:EvalConfig",
    "samples": "experiments.session.evals:SamplesConfig",
    "generation": "experiments.session.evals:GenerationConfig",
    "forgetting": "experiments.session.evals:ForgettingConfig",
    "choice": "experiments.session.evals:ChoiceConfig",
}
TASKS = {
    "uuid": "lowrank_jax.tasks.uuid:UuidConfig",
    "text": "lowrank_jax.tasks.text:TextConfig",
    "glue": "lowrank_jax.tasks.glue.task:GlueConfig",
    "mnli": "lowrank_jax.tasks.mnli:MnliConfig",
    "nlg": "lowrank_jax.tasks.nlg.task:NlgConfig",
}


def experiment_types() -> dict[str, Any]:
    """Section -> dataclass; "task" -> {task name: dataclass}. Imports the rooms, so jax too."""
    found = {section: load(target) for section, target in SECTIONS.items()}
    return {**found, "task": {name: load(target) for name, target in TASKS.items()}}


def eval_type(entry: Any) -> type:
    """The dataclass of an entry of "evals"; the entry need not be checked yet, and may be anything."""
    kind = entry.get("type") if hasattr(entry, "get") else None
    return load(EVALS.get(kind, EVALS[""]) if isinstance(kind, str) else EVALS[""])


def load(target: str) -> type:
    """The class at "module:name"."""
    module, name = target.split(":")
    return getattr(importlib.import_module(module), name)
