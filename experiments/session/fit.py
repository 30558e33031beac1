"""Keys of a config that are left to the data by a 0: filled in, said, and kept with the run for a resumption."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.config.schema import RunConfig
from experiments.records.form import CHOICES
from lowrank_jax.core.errors import UserError
from lowrank_jax.sharding.mesh import BATCH_AXES
from lowrank_jax.tasks.base import Task

EXAMPLES = 200_000  # rows of an epoch where no data is read: more steps than any warm-up of the configs
SHARED = ("task.seq_len", "train.batch_size")  # of the trials of one program


def fit(config: RunConfig, task: Task | None, mesh: Any) -> RunConfig:
    """The config with its length in steps alone, and each 0 of CHOICES as the data have it.

    Args:
      task: built; None for a bench on random tokens, which takes epochs of EXAMPLES rows.
      mesh: over which a batch is divided.
    """
    examples = EXAMPLES if task is None else len(task.train_source())
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    config = dataclasses.replace(config, train=config.train.over(examples, shards * config.train.accumulate))
    if task is not None and getattr(config.task, "seq_len", None) == 0:
        config = fill(config, {"task.seq_len": task.seq_len})
    return config


def chosen(before: RunConfig, after: RunConfig) -> dict[str, int]:
    """{key of CHOICES: value} of what `fit` has filled in."""
    pairs = {key: (_get(before, key), _get(after, key)) for key in CHOICES}
    epochs = bool(before.train.epochs)  # then the steps are no choice
    return {key: now for key, (then, now) in pairs.items() if then == 0 and now and not (epochs and "steps" in key)}


def fill(config: RunConfig, values: Mapping[str, int]) -> RunConfig:
    """The config with values of CHOICES, as a run that is resumed has them from its first session."""
    for key, value in values.items():
        section, name = key.split(".")
        part = dataclasses.replace(getattr(config, section), **{name: value})
        config = dataclasses.replace(config, **{section: part})
    return config


def described(values: Mapping[str, int], task: Any, config: RunConfig) -> str:
    """What the data have decided and why, in a line; "" where nothing was left to them."""
    rows = len(task.train_source())
    why = {
        "task.seq_len": lambda: f"the longest {'text' if config.task.packed else 'row'} has {task.longest:,} tokens",
        "train.batch_size": lambda: f"of {rows:,} rows",
        "train.steps": lambda: f"{values['train.steps'] * config.train.batch_size / rows:.1f} passes over them",
    }
    words = ", ".join(f"{key}={value} ({why[key]()})" for key, value in values.items())
    return f"from the data: {words}; set a key to have it otherwise" if words else ""


def check_shared(names: Sequence[str], values: Sequence[Mapping[str, int]]) -> None:
    """Makes sure that what the data decided lets runs share a program: batches of one size, rows of one length.

    They differ where one of the runs began on another number of devices.

    Args:
      values: `chosen` of each run, or what it has kept from its first session.

    Raises:
      UserError: names two runs and the key.
    """
    for name, one in zip(names, values, strict=True):
        for key in SHARED:
            if one.get(key) != values[0].get(key):
                raise UserError(
                    f"{names[0]} and {name} cannot share a program: the data gave them {key}={values[0].get(key)} and "
                    f"{one.get(key)} when they began; run them separately, or all again with --fresh"
                )


def _get(config: RunConfig, key: str) -> int | None:
    section, name = key.split(".")
    return getattr(getattr(config, section), name, None)
