"""Tables of records with odd values: scores too large to compute with, and parts that are missing."""

import copy
import json
import math
from types import SimpleNamespace

import pytest
from fuzz.targets import ROOT

from experiments import tables
from experiments.records.run_record import final_loss
from experiments.sweeps.engine import Sweep
from experiments.tables.nlg.rows import Column, rows

GRIDS = {"e2e_smollm2": 1, "glue_minilm": 9, "quantized": 1}  # every so many of their lines
# Table -> its grid, and for one without a grid of its own the task and the experiment that the records are given.
SHOWN = {
    "lora_table3": ("e2e_smollm2",),
    "lora_table18": ("e2e_smollm2",),
    "lora_table14": ("e2e_smollm2", "webnlg"),
    "lora_table4": ("e2e_smollm2", "wikisql"),
    "lora_table16": ("e2e_smollm2", "mnli", "lora_mnli"),
    "lora_table2": ("glue_minilm",),
    "quantized": ("quantized",),
    "sweep": ("e2e_smollm2",),
}
SCORES = {"webnlg": "decode/all/bleu", "wikisql": "decode/logical_form", "mnli": "matched"}
LARGE = (1.7e308, -1.7e308, 2**1023, 1e101)


@pytest.fixture(scope="module")
def recorded():
    """Grid -> lines of its file."""
    results = ROOT / "experiments" / "results"
    return {name: (results / f"{name}.jsonl").read_text().splitlines()[::by] for name, by in GRIDS.items()}


@pytest.fixture
def made(recorded, tmp_path):
    """made(table, spoil) -> the table's text, of records of which `spoil` may change each."""

    def make(name, spoil):
        grid, task, experiment = (*SHOWN[name], None, None)[:3]
        file, records = tmp_path / "found.jsonl", [json.loads(line) for line in recorded[grid]]
        for number, record in enumerate(records):
            if task:
                record["labels"]["task"] = task
                record["config"]["experiment"] = experiment or record["config"]["experiment"]
                record["evaluations"][-1][SCORES[task]] = 0.5
            spoil(record, number)
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
        options = SimpleNamespace(results=[str(file)], model=None)
        return tables.make(tables.find([name]), options).text()

    return make


def _with_numbers(record, value):
    for one in record["evaluations"]:
        one |= dict.fromkeys((key for key in one if key != "step"), value)
    record["losses"] = [[step, value] for step, _ in record["losses"]]


@pytest.mark.parametrize("name", SHOWN)
def test_scores_that_are_too_large_count_as_not_finite(made, name):
    """Of half of the runs. Their means, deviations and percentages would be infinite, which some sums refuse."""

    def odd(number):
        return name != "quantized" and number % 2

    large = made(name, lambda record, number: odd(number) and _with_numbers(record, LARGE[number // 2 % len(LARGE)]))
    assert large == made(name, lambda record, number: odd(number) and _with_numbers(record, None))


@pytest.mark.parametrize("name", SHOWN)
def test_parts_of_a_config_may_be_missing(made, name):
    """Of every third record: those are shown without what is missing, or not at all."""
    gone = ["optimizer", "base", "parameters", "losses", "adapter", "task", "config", "experiment"]
    gone = gone[:-2] if name == "sweep" else gone  # which refuses records of several experiments

    def spoil(record, number):
        key = gone[number // 3 % len(gone)]
        if number % 3 == 1:
            record.pop(key, record["config"].pop(key, None))

    assert made(name, spoil)


def test_the_edge_of_a_grid_is_that_of_the_rates_tried_on_the_row_s_task(recorded):
    """WikiSQL's own rates decide; WebNLG, which has none, takes E2E's."""

    def run(task, stage, rate):
        record = copy.deepcopy(
            next(one for one in map(json.loads, recorded["e2e_smollm2"]) if one["labels"]["method"] == "fft")
        )
        record["labels"] |= {"task": task, "stage": stage}
        record["config"]["optimizer"]["learning_rate"] = rate
        record["evaluations"][-1]["decode/logical_form"] = 0.5
        return record

    tried = [run("e2e", "rates", rate) for rate in (1e-5, 2e-4, 1e-3)]
    own = [run("wikisql", "rates", rate) for rate in (5e-5, 2e-4, 5e-4)]
    columns = [Column("", "logical_form")]
    for task, rate, edge in (
        ("wikisql", 5e-4, True),
        ("wikisql", 2e-4, False),
        ("webnlg", 5e-4, False),
        ("webnlg", 1e-3, True),
    ):
        (row,) = rows([*tried, *own, run(task, "full", rate)], "smollm2-135m", (task,), columns, ())
        assert row.edges == ((rate,) if edge else ()), task


def test_a_loss_that_is_too_large_is_no_final_loss():
    losses = [[step, 1.7e308] for step in range(20)]
    assert final_loss({"status": "finished", "losses": losses}) == math.inf


def test_a_quantised_run_beside_one_of_no_loss_has_no_ratio(made):
    """Nor a mean of training losses where none was finite."""

    def spoil(record, number):
        _with_numbers(record, None)
        record["evaluations"][-1]["loss"] = 0.0

    assert "met" not in made("quantized", spoil)
    assert "met" in made("quantized", lambda record, number: None)


def test_a_run_of_endless_seconds_leaves_the_time_left_to_the_others():
    """Two of 1.7e308 s have no finite sum."""
    cells = {name: SimpleNamespace(steps=10) for name in "abc"}
    settled = {
        name: ("finished", {"wall_seconds": wall}) for name, wall in zip("abc", (1.7e308, 1.7e308, 20.0), strict=True)
    }
    sweep = SimpleNamespace(settled=settled, grid=SimpleNamespace(cells=cells))
    assert Sweep.time_left(sweep, [SimpleNamespace(steps=5)]) == "about 10 s left"
    for _, result in sweep.settled.values():
        result["together"] = 2  # the time of a program of two
    assert Sweep.time_left(sweep, [SimpleNamespace(steps=5)]) == "about 5 s left"
    settled.pop("c")
    assert Sweep.time_left(sweep, [SimpleNamespace(steps=5)]) == "time left unknown"
