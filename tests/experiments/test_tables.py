"""experiments.tables, figures, papers and runs, over fabricated results."""

import importlib
import json
import math
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.papers import ledger, mora
from experiments.records import json_files, run_folder, run_record
from experiments.records.results import load_results
from experiments.tables.uuid import figure as mora_figure
from experiments.tables.uuid import mora_table2
from experiments.tables.uuid import rows as uuid_rows
from lowrank_jax.core.errors import UserError

ROOT = Path(__file__).parents[2]


def plain(method="mora", rank=8, rate=1e-3, seed=0, stage="full", scale="gpu", pairs=10_000, **labels):
    return {
        "experiment": "mora_uuid",
        "seed": seed,
        "labels": {
            "method": method,
            "rank": None if method == "fft" else rank,
            "scale": scale,
            "stage": stage,
            **labels,
        },
        "base": {"name": "smollm2-135m", "remat": "none"},
        "task": {"name": "uuid", "pairs": pairs, "eval_pairs": 2_000},
        "optimizer": {"learning_rate": rate},
        "train": {"steps": 1_000, "stop_at": 200 if stage == "rates" else 0, "batch_size": 1_000},
    }


def write(folder, accuracy, status="finished", as_folder=False, losses=((1, 2.0), (2, 1.0)), **how):
    config = plain(**how)
    name = run_folder.run_name(config)
    record = run_record.result_record(
        name,
        config,
        status,
        wall_seconds=90.0,
        train_seconds=60.0,
        parameters={"trainable": 4_884_480, "frozen": 134_515_008},
        evaluations=[{"step": s, "char_accuracy": a, "exact_match": a / 2} for s, a in accuracy.items()],
        losses=list(losses),
        environment={},
    )
    path = folder / name / run_folder.RESULT if as_folder else folder / f"{name}.json"
    json_files.write_json(path, record)
    if as_folder:
        json_files.write_json(folder / name / run_folder.CONFIG, config)
        json_files.write_json(
            folder / name / "checkpoints" / "9" / "meta.json", {"status": "x", "labels": {}, "name": "no"}
        )
    return record


PAPER_STEPS = {300: 0.1, 500: 0.2, 700: 0.9, 900: 1.0, 1000: 1.0}


def rows_of(table):
    return {(row.method, row.rank): row for row in table.rows}


def test_rows_take_full_cells_and_say_why_others_are_empty(tmp_path):
    for rate in (1e-3, 3e-3, 1e-2):
        write(tmp_path, {}, stage="rates", rate=rate)
        write(tmp_path, {}, stage="rates", rate=rate, method="lora")
    write(tmp_path, PAPER_STEPS, rate=3e-3)
    write(tmp_path, {30: 0.5}, rate=3e-3, scale="laptop")
    write(tmp_path, {}, "diverged", method="fft", rate=1e-2)
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "other.json").write_text('{"bench": 1}')
    (table,) = uuid_rows.settings(load_results([tmp_path]), "gpu")
    rows = rows_of(table)
    assert list(rows) == list(uuid_rows.ROWS["gpu"])
    mora8 = rows["mora", 8]
    assert (mora8.rate, mora8.tried, mora8.seeds, mora8.parameters) == (3e-3, (1e-3, 3e-3, 1e-2), 1, 4_884_480)
    assert mora8.accuracy[700] == pytest.approx(90.0)
    assert mora8.exact == pytest.approx(50.0)
    assert rows["lora", 8].note == "not run (only 3 rates tried)"
    assert rows["lora", 32].note == "not run"
    assert rows["mora", 256].note == "r=256: square 735 > width 576"
    assert rows["fft", None].note == "diverged at step 2, lr 0.01"
    text = mora_table2.shown(table).text()
    line = next(line for line in text.splitlines() if line.startswith("MoRA    8"))
    assert "90.0 | 87.4" in line
    assert "4,884,480" in line
    assert "0.003 (0.001, 0.003, 0.01)" in line
    assert "90 s" in line
    assert next(line for line in text.splitlines() if line.startswith("MoRA    256")).count("| 100.0") == 3


def test_the_scores_are_those_of_the_task():
    from lowrank_jax.tasks.uuid import score_uuids

    assert set(score_uuids(["x"], ["0" * 36])) == {uuid_rows.ACCURACY, uuid_rows.EXACT}


def test_the_reason_for_the_empty_row_is_true():
    def square(d_in, d_out, rank):
        return int(math.sqrt((d_in + d_out) * rank) + 0.5)

    assert square(576, 1536, 256) == 735 > 576
    assert square(576, 1536, 32) < 576


def test_seeds_give_the_median_and_are_counted(tmp_path):
    for seed, accuracy in enumerate((0.2, 0.9, 0.4)):
        write(tmp_path, {300: accuracy}, seed=seed)
    write(tmp_path, {300: 0.0}, "diverged", seed=3)
    write(tmp_path, {300: 1.0}, rate=5e-3)  # one seed at another rate does not outvote three
    (table,) = uuid_rows.settings(load_results([tmp_path]), "gpu")
    row = rows_of(table)["mora", 8]
    assert row.accuracy == {300: pytest.approx(40.0)}
    assert row.seeds == 3
    assert row.rate == 1e-3
    assert row.note == "and 1 seeds diverged"


def test_other_steps_stand_beside_the_papers_and_say_so(tmp_path):
    write(tmp_path, {25: 0.1, 100: 0.99}, scale="laptop")
    (table,) = uuid_rows.settings(load_results([tmp_path]), "laptop")
    text = mora_table2.shown(table).text()
    header = text.splitlines()[2]
    assert header.index("step 25") < header.index("step 100") < header.index("paper 300") < header.index("paper 900")
    assert "another base model and step scale (LLaMA-2 7B" in text
    assert "99.0" in next(line for line in text.splitlines() if line.startswith("MoRA  "))
    assert "not run" in next(line for line in text.splitlines() if line.startswith("LoRA  "))


def test_settings_are_never_mixed(tmp_path):
    write(tmp_path, PAPER_STEPS)
    write(tmp_path, PAPER_STEPS, method="lora")
    write(tmp_path, {300: 0.3}, pairs=40_000, setting="hard")
    first, second = uuid_rows.settings(load_results([tmp_path]), "gpu")
    assert rows_of(first)["mora", 8].accuracy[300] == pytest.approx(10.0)
    assert [(row.method, row.rank) for row in second.rows] == [("mora", 8)]
    assert "(hard; task.pairs: 10000 -> 40000)" in mora_table2.shown(second).text().splitlines()[0]


def test_nothing_run_prints_the_paper(tmp_path):
    (table,) = uuid_rows.settings([], "paper")
    text = mora_table2.shown(table).text()
    assert text.count("not run") == 5
    assert "54.2" in text


def test_markdown_escapes_the_bars(tmp_path):
    write(tmp_path, PAPER_STEPS)
    (table,) = uuid_rows.settings(load_results([tmp_path]), "gpu")
    lines = [line for line in mora_table2.shown(table).text("markdown").splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 7
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_results_are_found_in_run_folders_and_once_by_name(tmp_path):
    write(tmp_path / "runs", PAPER_STEPS, as_folder=True)
    write(tmp_path / "results", PAPER_STEPS)
    found = load_results([tmp_path / "results", tmp_path / "runs"])
    assert len(found) == 1
    assert len(load_results([tmp_path])) == 1
    with pytest.raises(UserError, match="no folder"):
        load_results([tmp_path / "absent"])


def test_figures_are_small_and_drawn_only_from_data(tmp_path):
    curve = [(step, 2.6 / step**0.5) for step in range(1, 401)]
    write(tmp_path, PAPER_STEPS, losses=curve)
    write(tmp_path, PAPER_STEPS, method="lora", losses=curve)
    (table,) = uuid_rows.settings(load_results([tmp_path]), "gpu")
    drawn = mora_figure.draw(table, tmp_path / "plots", "gpu_")
    assert [path.name for path in drawn] == ["gpu_losses.png", "gpu_accuracy.png"]
    write(tmp_path, PAPER_STEPS, method="lora", rank=32, losses=curve)
    (table,) = uuid_rows.settings(load_results([tmp_path]), "gpu")
    drawn = mora_figure.draw(table, tmp_path / "plots", "gpu_")
    assert [path.name for path in drawn] == ["gpu_losses.png", "gpu_lora_ranks.png", "gpu_accuracy.png"]
    for path in drawn:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert 5_000 < path.stat().st_size < 100_000
    (empty,) = uuid_rows.settings([], "gpu")
    assert mora_figure.draw(empty, tmp_path / "none") == []


def test_program(tmp_path):
    def program(*words):
        return subprocess.run(
            [sys.executable, "-m", "experiments.tables", *words], cwd=ROOT, capture_output=True, text=True
        )

    write(tmp_path, PAPER_STEPS)
    done = program("mora_table2", f"--results={tmp_path}", "--scale=gpu")
    assert (done.returncode, "90.0 | 87.4" in done.stdout) == (0, True)
    done = program("ledger")
    assert done.stdout.count("switch") == len(ledger.LEDGER)
    for words in ((), ("table9",), ("mora_table2", f"--results={tmp_path / 'absent'}")):
        done = program(*words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith("error: ")


def test_a_table_that_takes_long_says_what_it_reads(monkeypatch, capsys):
    from experiments.tables import __main__ as program

    options, said = program.flags.FlagValues(), threading.Event()
    program.define_flags(options)
    program.flags.DEFINE_bool("write", False, "", flag_values=options)
    program.flags.DEFINE_string("format", "text", "", flag_values=options)
    program.flags.DEFINE_string("figures", None, "", flag_values=options)
    options(["tables", "--results=a,b"])
    monkeypatch.setattr(program.flags, "FLAGS", options)

    def make(module, given):  # ends once the line is printed
        assert said.wait(60)
        return SimpleNamespace(text=lambda *_: "the table")

    monkeypatch.setattr(program.tables, "make", make)
    monkeypatch.setattr(program, "PATIENCE", 0.0)
    monkeypatch.setattr(program, "print", lambda *a, **k: (print(*a, **k), k and said.set()), raising=False)
    program.main(["tables", "quantized"])
    assert capsys.readouterr() == ("the table\n", "reading the records at a, b ...\n")


def test_the_papers_numbers_have_their_shape():
    assert all(len(row) == len(mora.TABLE2_STEPS) for row in mora.TABLE2.values())
    assert all(len(row) == len(mora.FIG3_STEPS) for row in mora.FIG3.values())
    assert all(len(row) == len(mora.FIG2_STEPS) for row in mora.FIG2.values())
    assert set(mora.FIG3) == set(mora.TABLE2)
    assert pytest.approx(100 * (1 + 1 / 4 + 30 / 16) / 32, abs=0.005) == mora.CHANCE
    # Fig. 2 and Fig. 3 draw the same runs.
    shared = [(600, 600), (700, 700), (800, 800), (900, 900)]
    for rank in (8, 256):
        for two, three in shared:
            ours = mora.FIG2[rank][mora.FIG2_STEPS.index(two)]
            assert ours == pytest.approx(mora.FIG3["lora", rank][mora.FIG3_STEPS.index(three)], abs=0.03)


def test_the_ledger_names_real_switches():
    from experiments.config.schema import unpack
    from experiments.config.sections import experiment_types

    types = experiment_types()
    adapter = types["adapter"]
    for key, choices in {
        "rounding": ("half_up", "floor"),
        "layout": ("half", "pairs"),
        "padding": ("wrap", "zero"),
        "compression": ("sharing", "decoupling", "truncation"),
    }.items():
        for choice in choices:
            unpack({"mora": {key: choice}}, adapter, "config.adapter")
        assert any(point.switch.startswith(f"adapter.mora.{key} = ") for point in ledger.LEDGER)
    sections = {point.switch.split(".")[0] for point in ledger.LEDGER} - {"none"}
    assert sections <= {*types, "evals"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lora_table2", "--scale=gpu"], "lora_table2 does not read --scale, a flag of mora_table2; leave it out"),
        (["mora_table2", "--model=x"], "mora_table2 does not read --model, a flag of lora_table2 and lora_table3 and "),
        (["ledger", "--results=x"], "ledger does not read --results; leave it out"),
        (["speed", "--scale=gpu"], "speed does not read --scale"),
    ],
)
def test_a_flag_that_a_table_does_not_read_is_refused(words, said):
    from experiments.tables.__main__ import table_of

    with pytest.raises(UserError, match=said):
        table_of(words)


def test_an_unknown_model_is_refused_with_the_known_ones():
    """Known are those of the table's configs and of its records; records of other experiments do not count."""
    from experiments import tables
    from experiments.tables import models
    from experiments.tables.__main__ import table_of

    for experiment, known in models.MODELS.items():
        assert set(importlib.import_module(f"configs.{experiment}").MODELS) == set(known)
    grids = (importlib.import_module(f"configs.sweeps.rates_{name}").MODELS for name in ("uuid", "gsm8k", "dolly"))
    assert {model for grid in grids for model in grid} == {*models.RATES}
    assert {*models.SHOWN, "rates"} == {*tables.READERS["model"]}
    said = {
        "mora_table7": "llama2-7b, smollm2-135m, gemma3-270m, pico-llama",
        "lora_table16": "pico-llama, smollm2-135m, gpt2-medium, gpt2-large, gpt3-175b",
        "rates": "smollm2-135m, gemma3-270m, pico-llama",
    }
    for table, known in said.items():
        with pytest.raises(UserError) as raised:
            table_of([table, "--model=zzz", "--results=experiments/results/dolly.jsonl"])
        assert str(raised.value) == f"--model=zzz: no base of {table} has this name; known: {known}"
    own = {"config": {"experiment": "lora_nlg"}, "labels": {"model": "my-base"}}
    models.check_model("lora_table3", "my-base", [own])
    with pytest.raises(UserError, match=r"pico-llama, my-base$"):
        models.check_model("lora_table3", "zzz", [own])
    with pytest.raises(UserError, match="no base of lora_table18"):
        models.check_model("lora_table18", "my-base", [own | {"config": {"experiment": "lora_glue"}}])


def test_every_flag_that_only_some_tables_read_is_of_tables_that_exist():
    from experiments import tables

    assert {
        name for names in (*tables.READERS.values(), *tables.WITHOUT.values()) for name in names
    } <= tables.TABLES.keys()
    tables.check_flags("mora_table2", ["scale", "results", "figures"])
    with pytest.raises(UserError, match="quantized does not read --figures"):
        tables.check_flags("quantized", ["figures"])


@pytest.mark.parametrize(
    "change",
    [{"rows": 5}, {"rows": [5]}, {"rows": [{}]}, {"peer": 5}, {"rows": [{"sides": {"ours": {}}, "work": "a"}]}],
)
def test_a_speed_record_of_other_kinds_is_refused(tmp_path, change):
    from experiments.tables.speed import suite as speed

    data = json.loads((ROOT / "experiments/results/speed/cpu_suite.json").read_text())
    (tmp_path / "a_suite.json").write_text(json.dumps({**data, **change}))
    with pytest.raises(UserError, match="is damaged"):
        speed.load([tmp_path / "a_suite.json"])
