"""Fills in the keys of a config that a 0 leaves to the data; a run prints and records them, and resumes with them."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.config.schema import RunConfig
from experiments.records.checks import CHOICES
from lowrank_jax.core.errors import UserError
from lowrank_jax.sharding.mesh import BATCH_AXES, make_mesh
from lowrank_jax.tasks.base import Task, round_up
from lowrank_jax.tasks.text import ROUNDED
from lowrank_jax.train.compiled import memory
from lowrank_jax.train.rhythm import FITTED_STEPS

EXAMPLES = 200_000  # rows of an epoch where no data is read: more steps than any warm-up of the configs
SHARED = ("task.seq_len", "train.batch_size")  # the same for all trials of one program


def fit(config: RunConfig, task: Task | None, mesh: Any) -> RunConfig:
    """The config with its length in steps, not epochs, and a value from the data for each 0 of CHOICES.

    Args:
      task: with its data; None for a benchmark on random tokens, whose epochs have EXAMPLES rows.
      mesh: over which a batch is divided.
    """
    examples = EXAMPLES if task is None else len(task.train_source())
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    config = dataclasses.replace(config, train=config.train.over(examples, shards * config.train.accumulate))
    if task is not None and getattr(config.task, "seq_len", None) == 0:
        config = fill(config, {"task.seq_len": task.seq_len})
    return config


def chosen(before: RunConfig, after: RunConfig) -> dict[str, int]:
    """{key of CHOICES: value} of the values that `fit` has filled in."""
    pairs = {key: (_get(before, key), _get(after, key)) for key in CHOICES}
    epochs = bool(before.train.epochs)  # then the steps are no choice
    return {key: now for key, (then, now) in pairs.items() if then == 0 and now and not (epochs and "steps" in key)}


def fill(config: RunConfig, values: Mapping[str, int]) -> RunConfig:
    """The config with these values of CHOICES; a resumed run takes them from its first session."""
    for key, value in values.items():
        section, name = key.split(".")
        part = dataclasses.replace(getattr(config, section), **{name: value})
        config = dataclasses.replace(config, **{section: part})
    return config


def check_kept(name: str, config: RunConfig, values: Mapping[str, int]) -> None:
    """Makes sure that a run goes on with the batch that it began with: none of the remedies for a batch is its own.

    Args:
      config: without `values`.
      values: what the data decided when it began.

    Raises:
      UserError: that batch does not divide over the present devices.
    """
    if (size := values.get("train.batch_size")) is None:
        return
    shape, parts = make_mesh(config.mesh).shape, config.train.accumulate
    shards = math.prod(shape[axis] for axis in BATCH_AXES)
    if size % (shards * parts):
        raise UserError(
            f"{name} began with train.batch_size={size} from the data, which does not divide over {shards} devices; "
            "resume it on as many as it began on, give them to mesh.tensor, or begin again with --fresh"
        )


def described(values: Mapping[str, int], task: Any, config: RunConfig) -> str:
    """One line with the values chosen from the data and why; "" where there are none."""
    rows = len(task.train_source())
    separate = getattr(config.task, "segmented", False)
    joined = getattr(config.task, "packed", False) and not separate
    all_rows = f", all together {task.total:,}" if separate else ""
    why = {
        "task.seq_len": lambda: (
            f"all rows have {task.longest:,} tokens"
            if joined
            else f"the longest row has {task.longest:,} tokens{all_rows}"
        ),
        "train.batch_size": lambda: f"of {rows:,} rows",
        "train.steps": lambda: f"{values['train.steps'] * config.train.batch_size / rows:.1f} passes over them",
    }
    words = ", ".join(f"{key}={value} ({why[key]()})" for key, value in values.items())
    return f"from the data: {words}; set a key to have it otherwise" if words else ""


def remarks(asked: RunConfig, task: Any, config: RunConfig) -> list[str]:
    """A line for each way in which a run is too large or too short for its data; each names the keys that change it.

    Args:
      asked: the config before `fit`.
      task: with its data; None for a benchmark on random tokens.
      config: the config that is run.
    """
    if task is None or not asked.train.epochs:  # steps that were asked for are not few by accident
        return []
    train, count, found = config.train, len(task.train_source()), []
    rows = f"{count} {'packed rows' if getattr(asked.task, 'packed', False) else 'rows'}"
    if count < train.batch_size:
        found.append(
            f"train.batch_size={train.batch_size} is more than the {rows} of the data, which a batch then has more "
            "than once; a lower one takes less memory and makes more steps"
        )
    if train.steps < FITTED_STEPS:
        steps, epochs = (
            f"{n} {word}{'s' * (n > 1)}" for n, word in ((train.steps, "step"), (asked.train.epochs, "epoch"))
        )
        enough = math.ceil((FITTED_STEPS - 0.5) * train.batch_size / count)  # steps are rounded: 99.5 make 100
        found.append(
            f"only {steps}, in which little may be learned: {epochs} of {rows} in batches of "
            f"{train.batch_size}, at a rate of {config.optimizer.learning_rate:g}; for more, raise train.epochs, lower "
            "train.batch_size, or raise optimizer.learning_rate; "
            f"train.epochs={enough} makes {FITTED_STEPS} steps"
        )
    return found


@contextlib.contextmanager
def with_sizes(config: RunConfig, task: Any) -> Iterator[None]:
    """Adds the sizes in use to the error of a step that does not fit, with the keys that change them.

    Raises:
      memory.TooLarge: as the step's, and longer.
    """
    try:
        yield
    except memory.TooLarge as error:
        sizes = f"here train.batch_size is {config.train.batch_size}"
        if (length := getattr(task, "seq_len", None)) is not None:
            by_key = "task.seq_len is" if hasattr(config.task, "seq_len") else "a row's tokens are"
            sizes += f" and {by_key} {length}"
        if getattr(config.task, "segmented", False) and length and round_up(task.longest, ROUNDED) < length:
            sizes += (
                ", up to which packed rows are filled: a lower task.seq_len will do, and with task.packed=False "
                f"a row has at most {task.longest} tokens, as the longest has"
            )
        error.args = (f"{error}; {sizes}",)
        raise


def check_shared(names: Sequence[str], values: Sequence[Mapping[str, int]]) -> None:
    """Refuses runs that cannot share a program: the data decided batches of different sizes, or rows of other lengths.

    They differ where one of the runs began on another number of devices.

    Args:
      values: of each run its `chosen`, now or from its first session.

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
