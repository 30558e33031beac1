"""The loss that a quantised base costs, from records."""

import pytest

from experiments.tables.speed.quantized import compared, shown
from lowrank_jax.core.errors import UserError


def record(kind, held_out, name="run", rank=8, status="finished"):
    return {
        "name": f"{name}-{kind}",
        "status": status,
        "labels": {},
        "config": {"name": f"{name}-{kind}", "base": {"name": "b", "quantize": kind}, "adapter": {"rank": rank}},
        "base": {"name": "b"},
        "losses": [[5, 9.0], *([step, 2.0 + step / 100] for step in range(10, 110, 10))],
        "evaluations": [{"step": 50, "loss": 9.0}, {"step": 100, "loss": held_out}],
    }


def test_runs_stand_beside_the_one_without():
    rows = compared([record("nf4", 2.1), record("int8", 2.01), record("none", 2.0), record("nf4", 3.0, rank=16)])
    assert [row["kind"] for row in rows] == ["none", "int8", "nf4"]
    assert [row["more"] for row in rows] == [None, pytest.approx(0.005), pytest.approx(0.05)]
    assert {row["steps"] for row in rows} == {100}
    assert [row["train"] for row in rows] == pytest.approx([2.55] * 3)  # the last ten, without the 9.0
    text = shown(rows).text()
    assert "+0.50%" in text
    assert "<= 1%: met" in text
    assert "<= 3%: missed" in text


def test_records_before_there_was_quantize_are_plain():
    plain = record("none", 2.0)
    del plain["config"]["base"]["quantize"]
    assert [row["kind"] for row in compared([plain, record("int8", 2.0)])] == ["none", "int8"]


@pytest.mark.parametrize(
    "results",
    [[], [record("none", 2.0)], [record("int8", 2.0)], [record("none", 2.0, status="failed"), record("int8", 2.0)]],
)
def test_without_a_pair_there_is_no_table(results):
    with pytest.raises(UserError, match="has no run with"):
        compared(results)
