"""Every number that a config can hold has a range, in the library as for flags; the recorded configs lie inside."""

import dataclasses
import json
import math
import typing
from pathlib import Path

import jax
import pytest

from experiments.config import schema, sections
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.ranges import OutOfRange, Range

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
HUGE = (2**31, 2**63, 2**70)
# (allowed, refused) besides what no int and no float may be.
COUNT, FROM_0 = ((1, 2, 2**31 - 1), (0, -1, *HUGE)), ((0, 1, 2**31 - 1), (-1, *HUGE))
ABOVE_0 = ((1e-30, 1, 3e38), (0, 0.0, -1e-9, -1, 1e-60))
ANY_FROM_0 = ((0, 1e-60, 1.5), (-1e-9, -1))
SHARE = ((0, 0.5, 0.9999), (-1e-9, -1, 1, 1.0, 1 - 1e-12, 2**70))
AXIS = ((-1, 1, 8), (0, -2, *HUGE))
FIELDS = {
    "seed": ((0, 2**31, 2**32 - 1), (-1, 2**32, 2**63, 2**70)),
    "base.scan_unroll": COUNT,
    "base.num_labels": COUNT,
    "base.classifier_dropout": SHARE,
    "adapter.rank": COUNT,
    "adapter.alpha": ABOVE_0,
    "adapter.dropout": SHARE,
    "adapter.init_std": ABOVE_0,
    "adapter.rank_pattern": COUNT,
    "adapter.alpha_pattern": ABOVE_0,
    "adapter.bottleneck.drop_layers": FROM_0,
    "adapter.prefix.tokens": FROM_0,
    "adapter.prefix.infix": FROM_0,
    "optimizer.learning_rate": ABOVE_0,
    "optimizer.b1": SHARE,
    "optimizer.b2": SHARE,
    "optimizer.eps": ABOVE_0,
    "optimizer.weight_decay": ANY_FROM_0,
    "optimizer.clip_norm": ANY_FROM_0,
    "optimizer.multipliers": ABOVE_0,
    "restart.every": FROM_0,
    "restart.prune": SHARE,
    "restart.warmup_steps": FROM_0,
    "schedule.warmup_steps": FROM_0,
    "schedule.warmup_fraction": SHARE,
    "schedule.end_fraction": ((0, 0.5, 1), (-1e-9, 1.001, 2**70)),
    "train.steps": FROM_0,
    "train.epochs": ((0, 1, 100_000), (-1, 100_001, *HUGE)),
    "train.stop_at": FROM_0,
    "train.batch_size": FROM_0,
    "train.accumulate": COUNT,
    "train.chunk_tokens": FROM_0,
    "train.label_smoothing": SHARE,
    "train.log_every": COUNT,
    "tracking.observe_every": FROM_0,
    "train.eval_every": FROM_0,
    "train.eval_steps": COUNT,
    "checkpoint.every": FROM_0,
    "checkpoint.keep": COUNT,
    "mesh.data": AXIS,
    "mesh.fsdp": AXIS,
    "mesh.tensor": AXIS,
    "task.uuid.pairs": ((1, 1_000_000), (0, -1, 1_000_001, *HUGE)),
    "task.uuid.seed": ((0, 2**63 - 1), (-1, 2**63, 2**70)),
    "task.uuid.eval_pairs": COUNT,
    "task.text.seq_len": ((0, 2, 2**31 - 1), (1, -1, *HUGE)),
    "task.text.max_seq_len": ((2, 2**31 - 1), (1, 0, -1, *HUGE)),
    "task.glue.seq_len": COUNT,
    "task.glue.buckets": COUNT,
    "task.glue.train_examples": COUNT,
    "task.glue.subset_seed": ((0, 2**32 - 1), (-1, 2**32, 2**70)),
    "task.glue.max_dev_examples": COUNT,
    "task.mnli.seq_len": ((4, 2**31 - 1), (3, 0, -1, *HUGE)),
    "task.mnli.buckets": COUNT,
    "task.mnli.train_examples": COUNT,
    "task.mnli.subset_seed": ((0, 2**32 - 1), (-1, 2**32, 2**70)),
    "task.mnli.max_dev_examples": COUNT,
    "task.nlg.seq_len": ((0, 2, 2**31 - 1), (1, -1, *HUGE)),
    "task.nlg.max_seq_len": ((2, 2**31 - 1), (1, 0, -1, *HUGE)),
    "task.nlg.train_examples": COUNT,
    "task.nlg.max_dev_examples": COUNT,
    "task.nlg.max_prompts": COUNT,
}
NO_INT = (True, False, 1.5, math.nan, math.inf, "1")
NO_FLOAT = (True, False, math.nan, math.inf, -math.inf, 1e39, 10**400, "1")
NEEDED = {
    "base": {"name": "x"},
    "task.text": {"path": "x"},
    "restart": {"every": 99, "warmup_steps": 0, "reset": "random"},
}
WITHIN = {  # a number's place in a field that holds several
    **dict.fromkeys(("rank_pattern", "alpha_pattern", "multipliers"), lambda value: (("query", value),)),
    **dict.fromkeys(("eval_steps", "buckets"), lambda value: (value,)),
}


def classes():
    """{path: dataclass} of every section, the sections within them, and the run itself."""
    found = {"": schema.RunConfig}

    def add(path, cls):
        found[path] = cls
        for name, hint in typing.get_type_hints(cls).items():
            if dataclasses.is_dataclass(hint):
                add(f"{path}.{name}", hint)

    types = sections.experiment_types()
    for name, cls in types.pop("task").items():
        add(f"task.{name}", cls)
    for name, cls in types.items():
        add(name, cls)
    return found


def numbers(hint, ranged=False):
    """(int or float, whether it has a Range) of each number that an annotation allows."""
    if hint in (int, float):
        yield hint, ranged
    elif typing.get_origin(hint) is typing.Annotated:
        kind, *marks = typing.get_args(hint)
        yield from numbers(kind, any(isinstance(mark, Range) for mark in marks))
    elif typing.get_origin(hint) is not typing.Literal:
        for part in typing.get_args(hint):
            yield from numbers(part)


NUMBERS = {
    f"{path}.{name}".removeprefix("."): list(numbers(hint))
    for path, cls in classes().items()
    for name, hint in typing.get_type_hints(cls, include_extras=True).items()
    if list(numbers(hint))
}


def test_every_number_of_every_config_has_a_range():
    bare = [name for name, found in NUMBERS.items() if not all(ranged for _, ranged in found)]
    assert not bare, "annotate them: Annotated[int, Range(least=...)]"
    assert NUMBERS.keys() == FIELDS.keys()  # a new field gets its bounds here too


def made(name, value):
    """(the config made as a library does, the config made from flags), as functions."""
    path, _, field = name.rpartition(".")
    if not path:
        plain = {"task": {"name": "uuid"}, "base": {"name": "x"}}
        whole = schema.unpack_run(plain)
        return lambda: dataclasses.replace(whole, seed=value), lambda: schema.unpack_run({**plain, "seed": value})
    cls, values = classes()[path], {**NEEDED.get(path, {}), field: WITHIN.get(field, lambda value: value)(value)}
    return lambda: cls(**values), lambda: schema.unpack(values, cls, f"config.{path}")


@pytest.mark.parametrize("name", FIELDS)
def test_the_bounds_of(name):
    (kind, _), (allowed, refused) = NUMBERS[name][0], FIELDS[name]
    field = name.rpartition(".")[2]
    for value in allowed:
        for make in made(name, value):
            try:
                make()
            except OutOfRange as error:
                pytest.fail(f"{value!r}: {error}")
            except UserError:  # of two fields together: stop_at beyond steps
                pass
    for value in (*refused, *(NO_INT if kind is int else NO_FLOAT)):
        for make in made(name, value):
            with pytest.raises(UserError) as error:
                make()
            assert field in str(error.value)
            assert "\n" not in str(error.value)


def test_the_flags_name_the_key_and_which_adapter():
    plain = {"task": {"name": "uuid"}, "base": {"name": "x"}}
    for change, words in (
        ({"adapter": {"alpha": 0}}, "config.adapter.alpha is 0; it must be above 0"),
        ({"optimizer": {"eps": 0}}, "config.optimizer.eps is 0; it must be above 0"),
        ({"adapters": [{}, {"rank": 0}]}, "config.adapters[1].rank is 0; it must be at least 1"),
        ({"adapter": {"rank_pattern": [["up", 0]]}}, "config.adapter.rank_pattern[0][1] is 0; it must be at least 1"),
        ({"task": {"name": "uuid", "eval_pairs": 0}}, "config.task.eval_pairs is 0; it must be at least 1"),
        ({"adapter": {"bottleneck": {"drop_layers": -1}}}, "config.adapter.bottleneck.drop_layers is -1; it must be"),
        ({"seed": 2**32}, "config.seed is 4294967296; it must lie in [0, 4294967295]"),
    ):
        with pytest.raises(OutOfRange) as error:
            schema.unpack_run({**plain, **change})
        assert str(error.value).startswith(words)


def test_a_longer_seed_would_repeat_another_run():
    assert (jax.random.PRNGKey(2**32) == jax.random.PRNGKey(0)).all()
    assert (jax.random.PRNGKey(2**32 - 1) != jax.random.PRNGKey(0)).any()


def test_recorded_configs_lie_inside():
    """Each section that any record holds, once."""
    distinct, types = set(), sections.experiment_types()
    for line in (line for path in RESULTS.glob("*.jsonl") for line in path.read_text().splitlines()):
        config = json.loads(line).get("config")
        if isinstance(config, dict) and "task" in config:
            distinct |= {(name, json.dumps(section)) for name, section in config.items() if name in types}
            distinct.add(("seed", json.dumps(config["seed"])))
    assert len(distinct) > 50
    for name, text in distinct:
        section = json.loads(text)
        if name == "seed":
            assert 0 <= section < 2**32
        elif name == "task":
            cls = types["task"][section["name"]]
            schema.unpack({key: value for key, value in section.items() if key != "name"}, cls, "config.task")
        elif section is not None:
            schema.unpack(section, types[name], f"config.{name}")
