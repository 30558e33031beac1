"""experiments.tables.glue.lora_table2, its cells and figure and the published numbers, over fabricated GLUE results."""

import subprocess
import sys
from pathlib import Path

import pytest

from experiments.papers import lora
from experiments.records import json_files, run_folder, run_record
from experiments.records.results import load_results
from experiments.tables import style
from experiments.tables.glue import figure as lora_figure
from experiments.tables.glue import lora_table2
from experiments.tables.glue import rows as glue_rows

ROOT = Path(__file__).parents[2]


def plain(task="mrpc", method="lora", rank=8, rate=1e-3, seed=0, model="minilm-l6", epochs=3, **more):
    adapter = {"method": method, "rank": rank, "targets": more.pop("targets", ["query", "value"])}
    if method == "mora":
        adapter["mora"] = {"compression": more.pop("compression", "sharing")}
    if drop := more.pop("drop", 0):
        adapter["bottleneck"] = {"drop_layers": drop}
    config = {
        "experiment": "lora_glue",
        "seed": seed,
        "labels": dict(method=method, rank=rank, model=model, task=task, stage="full") | more.pop("labels", {}),
        "base": {"name": model},
        "adapter": adapter,
        "task": {"name": "glue", "task": task, **more.pop("data", {})},
        "optimizer": {"learning_rate": rate},
        "start": {"adapter": more.pop("start", None), "head": "fresh"},
        "train": {"epochs": epochs, "batch_size": 16},
    }
    assert not more
    return config


def record(mains, status="finished", sign=None, trainable=75_000, head=1_000, partial=(), **how):
    """One run with the main score of each epoch; `sign` replaces what tells a collapse in the last one."""
    config = plain(**how)
    last = {"spread": 1.0} if config["labels"]["task"] == "stsb" else {"distinct": 2.0}
    evaluations = [{"step": 100 * (i + 1), "main": main, "nonfinite": 0.0, **last} for i, main in enumerate(mains)]
    if sign:
        evaluations[-1] |= sign
    return run_record.result_record(
        run_folder.run_name(config),
        config,
        status,
        wall_seconds=9.0,
        train_seconds=8.0,
        parameters={"trainable": trainable, "frozen": 10**7, "head": head},
        evaluations=evaluations,
        losses=[(100 * len(mains), 0.5)],
        environment={},
        partial=bool(partial),
        notes=list(partial),
    )


def five(mains, **how):
    """Five seeds whose last epoch scores `mains`, and whose best one 0.02 more."""
    return [record([main + 0.02, main], seed=seed, **how) for seed, main in enumerate(mains)]


def cell_of(results, task="mrpc", label="LoRA 8", model="minilm-l6"):
    (row,) = [row for row in glue_rows.board(results, model).rows if row.label == label]
    return row.cells[task]


def test_medians_over_seeds_last_and_best():
    cell = cell_of(five([0.70, 0.80, 0.75, 0.90, 0.60]))
    assert (cell.last, cell.best) == (pytest.approx(75), pytest.approx(77))
    assert cell.last_std == pytest.approx(11.180, abs=1e-3)
    assert (cell.seeds, cell.collapsed, cell.marks, cell.parameters) == (5, 0, "", 74_000)
    assert cell.text == "75.0+-11.2 / 77.0+-11.2"
    assert cell_of([record([0.7, 0.6])]).text == "60.0 / 70.0"


def test_the_rate_is_the_best_median_at_the_last_epoch():
    best_epoch_only = [record([0.99, 0.5], seed=seed, rate=3e-3) for seed in range(5)]
    results = five([0.7] * 5, rate=1e-3) + five([0.6, 0.6, 0.6, 0.9, 0.9], rate=3e-4) + best_epoch_only
    cell = cell_of(results)
    assert cell.rate == 1e-3
    assert cell.tried == {3e-4: pytest.approx(0.6), 1e-3: pytest.approx(0.7), 3e-3: pytest.approx(0.5)}
    one_lucky_seed = record([0.95], rate=1e-2)
    assert cell_of([*results, one_lucky_seed]).rate == 1e-3
    text = lora_table2.shown(glue_rows.board(results, "minilm-l6")).text()
    assert "0.001 (0.0003: 60.0, 0.001: 70.0, 0.003: 50.0)\n" in text
    edge = lora_table2.shown(glue_rows.board([r for r in results if r not in best_epoch_only], "minilm-l6")).text()
    assert "0.001 (0.0003: 60.0, 0.001: 70.0) edge" in edge
    tie = five([0.7] * 5, rate=2e-3)
    assert cell_of([*results, *tie]).rate == 2e-3


def test_collapsed_runs_are_flagged_and_left_out():
    dead = [record([0.7, 0.68], seed=9 + i, sign={"distinct": 1.0}) for i in range(2)]
    cell = cell_of(five([0.8, 0.82, 0.84])[:3] + dead)
    assert (cell.last, cell.seeds, cell.collapsed, cell.marks) == (pytest.approx(82), 5, 2, "c")
    assert cell.notes == ("2 of 5 collapsed",)
    text = lora_table2.shown(glue_rows.board(five([0.8, 0.82, 0.84])[:3] + dead, "minilm-l6")).text()
    assert "82.0+-2.0 / 84.0+-2.0 [c]" in text
    assert "LoRA 8, MRPC: 2 of 5 collapsed." in text
    assert "[c] some seeds collapsed" in text
    assert "[s]" not in text
    everything = cell_of([record([0.0], seed=i, task="cola", sign={"distinct": 1.0}) for i in range(5)], "cola")
    assert (everything.last, everything.why, everything.marks) == (None, "all 5 collapsed", "c")


@pytest.mark.parametrize("sign", [{"nonfinite": 3.0}, {"spread": 9e-4}, {"spread": None}, {"main": None}])
def test_what_counts_as_a_collapse(sign):
    cell = cell_of([record([0.5], task="stsb", sign=sign), record([0.8], task="stsb", seed=1)], "stsb")
    assert (cell.collapsed, cell.last) == (1, pytest.approx(80))
    assert cell_of([record([0.5], task="stsb", sign={"spread": 2e-3})], "stsb").collapsed == 0


def test_a_rate_that_mostly_collapses_does_not_win_by_its_survivor():
    wild = [record([0.3], seed=i, rate=1e-2, sign={"distinct": 1.0}) for i in range(4)]
    assert cell_of([*five([0.7] * 5), *wild, record([0.9], seed=4, rate=1e-2)]).rate == 1e-3


def test_lost_and_stopped_runs_are_said():
    diverged = record([], "diverged", seed=7)
    cell = cell_of([*five([0.7] * 3)[:3], diverged])
    assert (cell.seeds, cell.marks, cell.notes) == (3, "s", ("1 of 4 diverged at step 0",))
    stopped = cell_of([record([0.5, 0.6], "interrupted")])
    assert (stopped.last, stopped.marks) == (pytest.approx(60), "s")
    assert "1 of 1 interrupted at step 200" in stopped.notes
    only = cell_of([record([], "diverged")])
    assert (only.last, only.why) == (None, "diverged at step 0")


def test_partial_data_and_contamination_are_marked():
    results = [record([0.7], task="mnli", partial=["mnli train: 3000 rows, officially 392702"])]
    text = lora_table2.shown(glue_rows.board(results, "minilm-l6")).text()
    assert "70.0 / 70.0 [p]" in text
    assert "LoRA 8, MNLI: mnli train: 3000 rows, officially 392702." in text
    assert "MNLI [x]" in text
    assert "contaminated: minilm-l6 saw AllNLI" in text
    some = record([0.7], data={"max_dev_examples": 32})
    assert cell_of([some | {"notes": ["mrpc dev: 32 of 408 rows scored"]}]).marks == "p"
    other = lora_table2.shown(glue_rows.board([record([0.7], task="mnli", model="bert-base")], "bert-base")).text()
    assert "[x]" not in other
    assert "[p]" not in other


def test_settings_are_never_mixed():
    by_hand = [record([0.95], epochs=30, seed=seed) for seed in range(2)]
    cell = cell_of(five([0.7] * 5) + by_hand)
    assert (cell.last, cell.seeds) == (pytest.approx(70), 5)
    assert cell.notes == ("2 runs of other settings left out",)
    assert cell_of(by_hand + five([0.7] * 5)) == cell
    elsewhere = five([0.7] * 3, data={"data_dir": "/a"})[:3] + [record([0.7, 0.7], seed=8, data={"data_dir": "/b"})]
    assert cell_of(elsewhere).seeds == 4  # where the files lie is no setting


def test_rows_say_what_sets_them_apart():
    results = [
        record([0.1], method="mora"),
        record([0.2], method="mora", compression="rotation"),
        record([0.3], targets=["query", "attention/out"]),
        record([0.4], method="pfeiffer", rank=48, drop=8),
        record([0.5], labels={"protocol": "dagger", "reading": "paper"}),
        record([0.6], data={"train_examples": 100}),
        record([0.7], method="fft", rank=None),
        record([0.8], labels={"stage": "rates"}),
        record([0.9], model="other"),
    ]
    table = glue_rows.board(results, "minilm-l6")
    shown = {row.label: row.cells["mrpc"].last for row in table.rows}
    assert shown == {
        "FFT": pytest.approx(70),
        "BitFit": None,
        "LoRA 8": None,
        "LoRA 8 100 examples": pytest.approx(60),
        "LoRA 8 dagger": pytest.approx(50),
        "LoRA 8 query+out": pytest.approx(30),
        "MoRA 8 sharing": pytest.approx(10),
        "MoRA 8 rotation": pytest.approx(20),
        "Adapter-H 8": None,
        "Adapter-P 16": None,
        "Adapter-P 48 drop 8": pytest.approx(40),
    }
    assert list(shown)[:3] == ["FFT", "BitFit", "LoRA 8"]
    assert {row.cells["mrpc"].why for row in table.rows if row.label == "BitFit"} == {"not run"}


def test_a_start_from_mnli_is_a_row_that_shares_the_other_tasks():
    results = [record([0.6], task="rte"), record([0.5], task="cola")]
    results += [record([0.8], task="rte", start=f"runs/mnli{seed}", seed=seed) for seed in range(2)]
    plain_row, started = (cell_of(results, "rte", label) for label in ("LoRA 8", "LoRA 8 MNLI start"))
    assert (plain_row.last, started.last, started.seeds) == (pytest.approx(60), pytest.approx(80), 2)
    assert cell_of(results, "cola", "LoRA 8 MNLI start").last == pytest.approx(50)


def test_averages_are_of_complete_rows_and_the_paper_stands_below():
    results = [*five([0.7] * 5), *five([0.5] * 5, task="cola"), *five([0.6] * 5, method="mora")]
    table = glue_rows.board(results, "minilm-l6")
    rows = {row.label: row for row in table.rows}
    assert table.tasks == ("mrpc", "cola")
    assert rows["LoRA 8"].average(table.tasks) == pytest.approx(60)
    assert rows["LoRA 8"].average(table.tasks, "best") == pytest.approx(62)
    assert rows["MoRA 8 sharing"].average(table.tasks) is None
    text = lora_table2.shown(table).text()
    lines = text.splitlines()
    assert "60.0 / 62.0" in next(line for line in lines if line.startswith("LoRA 8 "))
    assert "incomplete" in next(line for line in lines if line.startswith("MoRA 8 sharing"))
    assert "The paper's Table 2, ANOTHER base model, roberta-base" in lines
    ours = next(line for line in lines if line.startswith("LoRA  "))
    assert "89.7+-0.7" in ours
    assert ours.endswith("76.6 (87.2)")  # (89.7 + 63.4) / 2 = 76.55, halves up
    assert "No runs on this base: MNLI, SST-2, QNLI, QQP, RTE, STS-B." in lines
    assert "0.001 (0.001: 70.0)" in text
    same = lora_table2.shown(glue_rows.board([record([0.7], model="roberta-large")], "roberta-large")).text()
    assert "the same base model, roberta-large" in same
    assert "Adpt-H+" in same


def test_markdown_has_whole_rows():
    text = lora_table2.shown(glue_rows.board(five([0.7] * 5), "minilm-l6")).text("markdown")
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 3
    assert all(len({line.count("|") for line in block.splitlines()}) == 1 for block in tables)


def test_nothing_run_prints_the_paper():
    text = lora_table2.shown(glue_rows.board([], "minilm-l6")).text()
    assert "nothing run yet" in text
    assert text.count("not run") == len(glue_rows.ROWS) * len(lora.TASKS)
    assert "87.5+-0.3" in text


def test_the_figure_is_drawn_only_from_data(tmp_path):
    results = [*five([0.7] * 5), *five([0.5] * 5, task="cola")]
    results += five([0.6] * 5, method="mora") + five([0.4] * 5, task="cola", method="mora", compression="sharing")
    results += five([0.8] * 5, method="fft", rank=None, trainable=22_000_000)
    table = glue_rows.board(results, "minilm-l6")
    path = lora_figure.draw(table, tmp_path / "plots")
    assert path.name == "glue_minilm-l6.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert 5_000 < path.stat().st_size < 100_000
    assert lora_figure.draw(glue_rows.board([], "minilm-l6"), tmp_path / "none") is None
    disjoint = [record([0.7]), record([0.7], method="mora", task="rte")]
    assert lora_figure.draw(glue_rows.board(disjoint, "minilm-l6"), tmp_path / "none") is None


def test_program(tmp_path):
    for result in five([0.7] * 5):
        json_files.write_json(tmp_path / f"{result['name']}.json", result)
    assert len(load_results([tmp_path])) == 5
    command = [sys.executable, "-m", "experiments.tables", "lora_table2", f"--results={tmp_path}"]
    done = subprocess.run([*command, f"--figures={tmp_path}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    slow = f"reading the records at {tmp_path} ...\n"  # after two seconds
    assert done.stderr in ("", slow)
    assert "70.0+-0.0 / 72.0+-0.0" in done.stdout
    assert f"drew {tmp_path}/glue_minilm-l6.png" in done.stdout


def test_the_papers_rows_have_their_averages():
    assert len(lora.TABLE2) == 14
    for row in lora.TABLE2:
        assert len(row.scores) == len(lora.TASKS)
        assert row.spreads is None or len(row.spreads) == len(lora.TASKS)
        assert sum(row.scores) / 8 == pytest.approx(row.average, abs=0.055)
        assert (row.spreads is None) == (row.quoted and row.method != "adapterdrop")
    assert [row.label for row in lora.TABLE2 if row.dagger] == ["Adpt-P+", "Adpt-P+", "Adpt-H+", "Adpt-H+", "LoRA+"]


def test_the_names_are_those_of_the_config_and_the_task():
    from configs.hyperparameters.glue import STARTED, TASKS
    from lowrank_jax.adapters.registry import FAMILIES
    from lowrank_jax.data.builders.glue.specs import GLUE

    assert lora.TASKS == TASKS
    assert set(glue_rows.TASKS) == set(GLUE)
    assert glue_rows.STARTED == STARTED
    assert FAMILIES.keys() <= style.METHODS.keys()
    assert {row.method for row in lora.TABLE2} <= style.METHODS.keys()
