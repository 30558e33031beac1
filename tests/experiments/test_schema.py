"""experiments.config.schema: strict unpacking, content hashes, differences."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from experiments.config import plain as plain_form
from experiments.config import schema, sections
from lowrank_jax.core.errors import UserError
from lowrank_jax.train.state import TRAINABLE


@dataclasses.dataclass(frozen=True)
class Inner:
    layout: Literal["half", "pairs"] = "half"
    size: int = 1


@dataclasses.dataclass(frozen=True)
class Outer:
    rate: float
    steps: int = 10
    packed: bool = False
    name: str = "x"
    limit: int | None = None
    marks: tuple[int, ...] = ()
    pattern: tuple[tuple[str, float], ...] = ()
    path: str | tuple[str, ...] = ""
    rules: Sequence[tuple[str, Any]] = ()
    inner: Inner = Inner()
    labels: dict[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.steps < 1:
            raise UserError(f"outer.steps is {self.steps}; it must be at least 1")
        if self.rate < 0:
            raise ValueError("rate is negative")


def unpack(**values):
    return schema.unpack(values, Outer, "config.outer")


@pytest.mark.parametrize("kind", [dict, ConfigDict, FrozenConfigDict])
def test_unpacks_every_kind_of_value(kind):
    section = kind(
        {
            "rate": 1,
            "marks": [3, 5],
            "pattern": [["up", 2], ("down", 0.5)],
            "path": ["a", "b"],
            "inner": {"layout": "pairs"},
            "labels": {"r": 8},
            "limit": 4,
            "rules": [["adapters/.*", True]],
        }
    )
    out = schema.unpack(section, Outer, "config.outer")
    assert out == Outer(
        rate=1.0,
        marks=(3, 5),
        pattern=(("up", 2.0), ("down", 0.5)),
        path=("a", "b"),
        inner=Inner("pairs"),
        labels={"r": 8},
        limit=4,
        rules=(("adapters/.*", True),),
    )
    assert type(out.rate) is float
    assert type(out.pattern[0][1]) is float
    assert schema.unpack(out, Outer, "config.outer") is out


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rat": 1.0}, ["config.outer.rat", "did you mean rate"]),
        ({}, ["config.outer.rate", "missing", "a float"]),
        ({"rate": "1e-3"}, ["config.outer.rate='1e-3'", "a str", "a float"]),
        ({"rate": True}, ["config.outer.rate=True", "a bool", "a float"]),
        ({"rate": 1.0, "steps": 2.0}, ["config.outer.steps=2.0", "an int"]),
        ({"rate": 1.0, "steps": True}, ["config.outer.steps=True", "an int"]),
        ({"rate": 1.0, "packed": 1}, ["config.outer.packed=1", "True or False"]),
        ({"rate": 1.0, "name": None}, ["config.outer.name=None", "a string"]),
        ({"rate": 1.0, "limit": "4"}, ["config.outer.limit='4'", "an int or None"]),
        ({"rate": 1.0, "marks": 3}, ["config.outer.marks=3", "a list of (an int)"]),
        ({"rate": 1.0, "marks": "12"}, ["config.outer.marks='12'", "a list of (an int)"]),
        ({"rate": 1.0, "marks": [1, 2.5]}, ["config.outer.marks[1]=2.5", "an int"]),
        ({"rate": 1.0, "pattern": [["up"]]}, ["config.outer.pattern[0]", "(a string, a float)"]),
        ({"rate": 1.0, "inner": {"layot": "half"}}, ["config.outer.inner.layot", "layout"]),
        ({"rate": 1.0, "inner": {"layout": "thirds"}}, ["config.outer.inner.layout='thirds'", "'half', 'pairs'"]),
        ({"rate": 1.0, "inner": 3}, ["config.outer.inner=3", "section"]),
        ({"rate": 1.0, "labels": {"r": "8"}}, ["config.outer.labels.r='8'", "an int"]),
        ({"rate": 1.0, "steps": 0}, ["outer.steps is 0"]),
        ({"rate": -1.0}, ["config.outer: rate is negative"]),
    ],
)
def test_errors_name_the_key_and_what_is_wanted(values, words):
    with pytest.raises(UserError) as error:
        unpack(**values)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_missing_section_and_scalar_section():
    with pytest.raises(UserError, match=r"config\.outer=3 is not a section"):
        schema.unpack(3, Outer, "config.outer")


def test_to_plain_is_sorted_json():
    config = ConfigDict({"b": (1, 2.5), "a": {"z": np.float32(0.5), "y": np.int64(3)}, "c": None, "d": True})
    plain = plain_form.to_plain(config)
    assert plain == {"a": {"y": 3, "z": 0.5}, "b": [1, 2.5], "c": None, "d": True}
    assert list(plain) == ["a", "b", "c", "d"]
    assert type(plain["a"]["y"]) is int
    assert plain_form.to_plain(Inner())["size"] == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, object(), {1: 2}, {"x": {3, 4}}])
def test_to_plain_refuses_what_json_cannot_hold(value):
    with pytest.raises(UserError, match="config"):
        plain_form.to_plain({"key": value})


def test_hash_follows_content_alone():
    plain = {"seed": 0, "optimizer": {"learning_rate": 1.0, "b1": 0.9}, "labels": {"rank": 8}, "train": {"steps": 10}}
    name = plain_form.config_hash(plain)
    assert len(name) == 10
    assert int(name, 16) >= 0
    same = [
        {**plain, "labels": {"rank": 32}, "name": "mine", "tracking": {"wandb": "online"}, "mesh": {"fsdp": 8}},
        {**plain, "optimizer": {"b1": 0.9, "learning_rate": 1}},
        {**plain, "train": {"steps": 10, "log_every": 7}},
    ]
    assert {plain_form.config_hash(other) for other in same} == {name}
    others = [{**plain, "seed": 1}, {**plain, "train": {"steps": 11}}, {**plain, "new": None}]
    assert len({plain_form.config_hash(other) for other in others} | {name}) == 4
    assert plain_form.config_hash(plain, ignore=("seed",)) == plain_form.config_hash(
        {**plain, "seed": 5}, ignore=("seed",)
    )


def test_diff_lists_paths():
    a = {"seed": 0, "train": {"steps": 10, "eval_steps": [1, 2]}, "old": 1, "packed": True}
    b = {"seed": 0, "train": {"steps": 20, "eval_steps": [1, 3]}, "new": "x", "packed": 1}
    assert plain_form.diff(a, b) == [
        'new: absent -> "x"',
        "old: 1 -> absent",
        "packed: true -> 1",
        "train.eval_steps: [1, 2] -> [1, 3]",
        "train.steps: 10 -> 20",
    ]
    assert plain_form.diff({"x": 1.0}, {"x": 1}) == []


def test_a_key_that_an_older_config_lacks_has_its_default():
    """A run's folder from before a key was added is resumed; a key that is set away from its default is another run."""
    old = {"task": {"name": "uuid", "pairs": 4}, "schedule": {"kind": "linear"}, "adapter": {"method": "mora"}}
    now = {
        "task": {"name": "uuid", "pairs": 4, "seed": 0},
        "schedule": {"kind": "linear", "warmup_start": "zero"},
        "adapter": {"method": "mora", "mora": {"padding": "wrap"}},
    }
    assert plain_form.changes(old, now) == plain_form.changes(now, old) == []
    other = {**now, "schedule": {"warmup_start": "one"}, "adapter": {"method": "mora", "mora": {"padding": "zero"}}}
    assert plain_form.changes(old, other) == [
        'adapter.mora.padding: "wrap" -> "zero"',
        'schedule.warmup_start: "zero" -> "one"',
    ]


@dataclasses.dataclass(frozen=True)
class Task:
    pairs: int = 4


@dataclasses.dataclass(frozen=True)
class Empty:
    size: int = 0


SECTIONS = {**dict.fromkeys(sections.SECTIONS, Empty), "task": {"uuid": Task, "text": Empty}}


def test_unpack_run():
    config = ConfigDict({"experiment": "mora_uuid", "task": {"name": "uuid", "pairs": 9}, "adapter": None})
    config.trainable = [["adapters/.*", True], [".*", False]]
    config.labels = {"rank": 8, "method": "mora"}
    out = schema.unpack_run(config, SECTIONS)
    assert (out.task, out.task_name, out.adapter, out.base) == (Task(9), "uuid", None, Empty())
    assert out.trainable == (("adapters/.*", True), (".*", False))
    assert out.labels == {"rank": 8, "method": "mora"}
    assert (out.name, out.seed) == (None, 0)


def test_every_rule_set_of_the_training_state_is_a_choice():
    for name in TRAINABLE:
        assert schema.unpack_run({"task": {"name": "uuid"}, "trainable": name}, SECTIONS).trainable == name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"optimiser": {}}, "config.optimiser; did you mean optimizer"),
        ({"task": {"name": "uid"}}, "config.task.name='uid'; did you mean uuid"),
        ({"task": {}}, "config.task.name is missing"),
        ({"task": {"name": "uuid", "pair": 3}}, "config.task.pair; did you mean pairs"),
        ({"train": {"sise": 3}}, "config.train.sise; did you mean size"),
        ({"trainable": "ful"}, "config.trainable='ful'; did you mean full"),
        ({"trainable": [["(", True]]}, "no regular expression"),
        ({"seed": "0"}, "config.seed='0'"),
        ({"base": None}, "config.base=None is not a section"),
    ],
)
def test_unpack_run_refuses(change, words):
    with pytest.raises(UserError) as error:
        schema.unpack_run({"task": {"name": "uuid"}, **change}, SECTIONS)
    assert words in str(error.value)


def test_the_rooms_define_every_section():
    types = sections.experiment_types()
    assert set(types) == {*sections.SECTIONS, "task"}
    for cls in [*(types[section] for section in sections.SECTIONS), *types["task"].values()]:
        assert dataclasses.is_dataclass(cls)


def test_content_hash_forgets_defaults_and_remembers_the_rest():
    """A dataclass that gains a key with a default must not rename the runs recorded before."""
    plain = {"seed": 0, "adapter": {"rank": 4}, "task": {"name": "uuid", "pairs": 8}}
    spelt = {**plain, "adapter": {"rank": 4, "dropout": 0.0, "mora": {"padding": "wrap"}}, "optimizer": {"b1": 0.9}}
    assert plain_form.content_hash(spelt) == plain_form.content_hash(plain)
    for other in ({"mora": {"padding": "zero"}}, {"dropout": 0.1}):
        assert plain_form.content_hash({**plain, "adapter": {"rank": 4, **other}}) != plain_form.content_hash(plain)
    assert plain_form.content_hash({**plain, "train": {"stop_at": 5}}) == plain_form.content_hash(plain)


def test_further_adapters():
    """Unpacked as the first is; none of them leaves a recorded run's name as it was."""
    plain = {"task": {"name": "uuid"}, "base": {"name": "toy-llama"}, "adapter": {"rank": 4}}
    assert schema.unpack_run(plain).adapters == ()
    assert plain_form.content_hash({**plain, "adapters": []}) == plain_form.content_hash(plain)
    both = {**plain, "adapters": [{"method": "houlsby", "rank": 8}]}
    (further,) = schema.unpack_run(both).adapters
    assert (further.method, further.rank) == ("houlsby", 8)
    assert plain_form.content_hash(both) != plain_form.content_hash(plain)
    explicit = {**plain, "adapters": [{"method": "houlsby", "alpha": 16.0, "bottleneck": {"drop_layers": 0}}]}
    assert plain_form.content_hash(explicit) == plain_form.content_hash(both)  # rank 8 and these are the defaults
    assert schema.unpack_run(ConfigDict({**plain, "adapters": (ConfigDict({"method": "lin"}),)})).adapters[0].rank == 8
    for wrong, words in ((3, "config.adapters=3"), ([{"rnk": 3}], "config.adapters[0].rnk"), ({}, "config.adapters")):
        with pytest.raises(UserError) as error:
            schema.unpack_run({**plain, "adapters": wrong})
        assert words in str(error.value)


@pytest.mark.parametrize("task", [5, [], "x", None, {"name": []}, {"name": 1}, {}])
def test_a_damaged_configs_hash_and_differences(task):
    """A config.json that somebody edited is compared before anything has checked it."""
    from experiments.config.plain import changes, content_hash

    plain = {"task": {"name": "uuid", "pairs": 8}, "train": {"steps": 9}}
    damaged = {**plain, "task": task, "adapters": [1], "evals": {"a": 2}, "base": [], "train": 3}
    assert content_hash(damaged) != content_hash(plain)
    assert any(line.startswith("task") for line in changes(damaged, plain))
