"""The reasons why a row of a table cannot be run: the base's shapes give them, and no record is of such a row."""

import math
from pathlib import Path

import pytest

from experiments.records.results import load_results
from experiments.tables.nlg import sheet
from experiments.tables.uuid import rows
from lowrank_jax.models.registry import get_model

RECORDS = Path(__file__).parents[2] / "experiments" / "results"
BASE = "smollm2-135m"


def covered(runs):
    """The names of the records that a reason covers: each says that the reason no longer holds."""
    found = []
    for run in runs:
        labels, base = run["labels"], (run["config"].get("base") or {}).get("name")
        method, rank = labels.get("method"), labels.get("rank")
        pairs = rows.is_of(run, "gpu") and (base, method, rank) in rows.EMPTY
        texts = any((base, method) == (name, one) and (rank or 0) >= least for name, one, least in sheet.EMPTY)
        if pairs or texts:
            found.append(run["name"])
    return found


def record(base, method, rank, **labels):
    config = {"experiment": "mora_uuid" if "scale" in labels else "lora_nlg", "base": {"name": base}}
    return {"name": f"{method} {rank}", "config": config, "labels": {"method": method, "rank": rank, **labels}}


def test_no_record_is_of_a_row_that_cannot_be_run():
    runs = [run for run in load_results([RECORDS]) if "config" in run]
    assert runs
    assert covered(runs) == []


def test_a_record_of_such_a_row_is_found():
    wrong = [record(BASE, "mora", 256, scale="gpu"), record(BASE, "bitfit", None), record(BASE, "lora", 256)]
    right = [
        record("qwen3-0.6b", "mora", 256, scale="gpu"),
        record(BASE, "mora", 32, scale="gpu"),
        record(BASE, "mora", 256, scale="paper"),
    ]
    right += [record(BASE, "lora", 192), record("gpt2-medium", "bitfit", None), record("gpt2-medium", "lora", 256)]
    assert covered(wrong + right) == ["mora 256", "bitfit None", "lora 256"]


@pytest.mark.parametrize("base", [BASE, "gemma3-270m"])
def test_the_reasons_hold_for_the_base(base):
    model = get_model(base)
    wide = model.hidden_size
    square = round(math.sqrt((wide + model.intermediate_size) * 256))
    assert square > wide
    for method in ("mora", "lora"):
        assert f"square {square} > width {wide}" in rows.EMPTY[base, method, 256]


def test_smollm2_has_no_higher_rank_and_no_biases():
    model = get_model(BASE)
    wide, values = model.hidden_size, model.num_key_value_heads * model.head_dim
    assert f"{wide} x {values}, has no rank above {values}" in sheet.EMPTY[BASE, "lora", values + 1]
    assert (model.attention.qkv_bias, model.attention.out_bias, model.mlp_bias) == (False, False, False)


def test_a_table_of_another_base_has_that_base_s_reason():
    run = record("gemma3-270m", "mora", 8, scale="gpu", stage="full") | {"status": "finished", "losses": [[1, 2.0]]}
    run["config"]["optimizer"] = {"learning_rate": 1e-3}
    (setting,) = rows.settings([run], "gpu")
    notes = {(row.method, row.rank): row.note for row in setting.rows}
    assert notes["mora", 256] == "r=256: square 830 > width 640"
    assert notes["fft", None] == "not run"
