"""Ranges of fields: what each bound refuses, the messages, and the limits of float32."""

import dataclasses
import math
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.ranges import MOST, OutOfRange, Range, check_ranges

NOT_FINITE = [math.nan, math.inf, -math.inf, np.float32("nan"), 1e39, 10**400, -(10**400)]


@dataclasses.dataclass(frozen=True)
class Config:
    size: Annotated[int, Range(least=1)] = 1
    share: Annotated[float, Range(least=0, below=1)] = 0.0
    rate: Annotated[float, Range(above=0)] = 1.0
    free: Annotated[float, Range()] = 0.0
    axis: Annotated[int, Range(least=1, also=(-1,))] = -1
    limit: Annotated[int, Range(least=1, most=2**40)] | None = None
    marks: tuple[Annotated[int, Range(least=1)], ...] = ()
    pattern: tuple[tuple[str, Annotated[float, Range(above=0)]], ...] = ()
    weights: dict[str, Annotated[float, Range(most=2)]] = dataclasses.field(default_factory=dict)
    name: str = "x"
    anything: Any = None

    def __post_init__(self):
        check_ranges(self, "section")


@pytest.mark.parametrize(
    "values",
    [
        {"size": np.int64(3), "rate": np.float32(0.5)},
        {"size": MOST, "limit": 2**40, "axis": 7},
        {"share": 0, "rate": 2**70, "free": -3e38},
        {"marks": [1, 2], "pattern": [["up", 2]], "weights": {"a": -1}},
        {"anything": math.nan},
    ],
)
def test_what_lies_inside(values):
    Config(**values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"size": 0}, "section.size is 0; it must be at least 1"),
        ({"size": 2**70}, f"section.size is {2**70}; it must be at most {MOST}"),
        ({"size": -(2**70)}, f"section.size is {-(2**70)}; it must be at least 1"),
        ({"size": 2.0}, "section.size is 2.0; it must be a whole number and at least 1"),
        ({"size": True}, "section.size is True; it must be a whole number and at least 1"),
        ({"size": "3"}, "section.size is '3'; it must be a whole number and at least 1"),
        ({"size": None}, "section.size is None; it must be a whole number and at least 1"),
        ({"share": 1.0}, "section.share is 1.0; it must lie in [0, 1)"),
        ({"share": 1 - 1e-12}, "section.share is 0.999999999999, in float32 1; it must lie in [0, 1)"),
        ({"share": -1e-9}, "section.share is -1e-09; it must lie in [0, 1)"),
        ({"share": False}, "section.share is False; it must be a number and lie in [0, 1)"),
        ({"rate": 0}, "section.rate is 0; it must be above 0"),
        ({"rate": 1e-60}, "section.rate is 1e-60, in float32 0; it must be above 0"),
        ({"rate": math.nan}, "section.rate is nan; it must be a finite number and above 0"),
        ({"free": math.inf}, "section.free is inf; it must be a finite number"),
        ({"axis": 0}, "section.axis is 0; it must be at least 1, or -1"),
        ({"axis": -2}, "section.axis is -2; it must be at least 1, or -1"),
        ({"limit": 2**40 + 1}, f"section.limit is {2**40 + 1}; it must lie in [1, {2**40}]"),
        ({"marks": (1, 0)}, "section.marks[1] is 0; it must be at least 1"),
        ({"marks": 3}, "section.marks is 3; it must be a list"),
        ({"pattern": (("up", 1.0), ("down", 0))}, "section.pattern[1][1] is 0; it must be above 0"),
        ({"pattern": (("up",),)}, "section.pattern[0] is ('up',); it must have 2 items"),
        ({"weights": {"a": 3}}, "section.weights.a is 3; it must be at most 2"),
    ],
)
def test_what_lies_outside_is_said_in_one_line(values, words):
    with pytest.raises(OutOfRange) as error:
        Config(**values)
    assert str(error.value) == words
    assert isinstance(error.value, UserError)


@pytest.mark.parametrize("value", NOT_FINITE)
def test_nothing_but_finite_numbers(value):
    for field in ("rate", "free", "share"):
        with pytest.raises(OutOfRange, match=f"section.{field} is "):
            Config(**{field: value})


@pytest.mark.parametrize(("b2", "eps"), [(1 - 1e-12, 1e-8), (0.999, 1e-60)])
def test_adam_ends_in_nan_where_float32_has_rounded_a_bound_away(b2, eps):
    """Why a value must lie in its range as float32 too."""

    def first_update(b2, eps):
        adam = optax.scale_by_adam(0.9, b2, eps)
        gradient = jnp.array([0.0, 1.0], jnp.float32)
        return adam.update(gradient, adam.init(gradient))[0]

    assert not np.isfinite(first_update(b2, eps)).all()
    assert np.isfinite(first_update(0.999, 1e-8)).all()
