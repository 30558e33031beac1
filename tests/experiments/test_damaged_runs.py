"""A run's folder with something else in it, and records of runs that are damaged or of wrong types."""

import json
import os
import shutil
from pathlib import Path

import pytest
from endings import one_line

from experiments.records import run_record

ROOT = Path(__file__).parents[2]


def replaced(folder, name, kind):
    """Puts a file, folder or pipe where a run has something else."""
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    {"file": path.write_text, "folder": lambda _: path.mkdir(), "pipe": lambda _: os.mkfifo(path)}[kind]("x")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "file") for name in ("checkpoints", "adapter")),
        *((name, kind) for name in ("config.json", "metrics.jsonl", "result.json") for kind in ("folder", "pipe")),
    ],
)
def test_a_run_s_folder_with_something_else_in_it(run, straight, name, kind):
    folder = straight().folder
    replaced(folder, name, kind)
    one_line(run(), folder / name, kind)


def test_fresh_deletes_folders_and_no_links(run, straight, tmp_path):
    folder = straight("kept").folder
    (tmp_path / "run").symlink_to(folder)
    assert "finished already" in run().out
    one_line(run("--fresh"), f"{tmp_path / 'run'} is a link to {folder}", "--fresh deletes folders and no links")
    assert (folder / "result.json").is_file()
    (tmp_path / "run").unlink()
    (tmp_path / "run").symlink_to(tmp_path / "gone")
    one_line(run(), "which is not there; remove the link")
    one_line(run("--fresh"), "which is not there; remove the link")


WRONG = {
    "losses": ["abc", {}, [1], [[1]], [["a", 1.0]], [[1, "a"]], [[1, 10**400]]],
    "evaluations": [{}, "a", [1], [{}], [{"step": "a"}], [{"step": 1, "loss": "a"}]],
    "labels": [[], 5, "a", {"method": {"a": 1}}, {"method": 5}, {"rank": "a"}],
    "status": [5, None, []],
    "name": [5, None, {}],
    "config": [5, [], {"optimizer": 5}, {"optimizer": {"learning_rate": "a"}}, {"train": {"steps": "a"}}, {"base": []}]
    + [{"evals": 3}, {"adapter": {"mora": "rotation"}}, {"adapter": {"targets": [3]}}, {"seed": 2**1024 - 1}],
    "train_seconds": ["a", [], True],
    "wall_seconds": ["a"],
    "parameters": [5, {"trainable": "a"}, [1]],
    "message": [5],
    "base": ["a", {"name": 5}],
    "forgetting": [{"loss": {"base": 1e308}}],
}


@pytest.mark.parametrize("field", WRONG)
def test_a_record_of_wrong_types_is_refused_by_all_who_read_it(straight, run, program, tmp_path, field):
    from experiments import tables
    from experiments.records.lines import Recorded, read_lines
    from experiments.records.results import load_results
    from lowrank_jax.core.errors import UserError

    folder = straight().folder
    result = json.loads((folder / "result.json").read_text())
    assert tables.find(["mora_table2"])
    for value in WRONG[field]:
        line = json.dumps({**result, field: value})
        (folder / "result.json").write_text(line)
        one_line(run(), folder / "result.json", f"its {field}")
        lines = tmp_path / "found.jsonl"
        lines.write_text(json.dumps({"name": "a", "status": "finished"}) + "\n" + line + "\n")
        for read, place in ((load_results, [folder]), (run_record.read_result, folder / "result.json")):
            with pytest.raises(UserError, match=f"its {field}"):
                read(place)
        for read, place in ((read_lines, lines), (Recorded(tmp_path / "found").get, "a"), (load_results, [lines])):
            with pytest.raises(UserError, match=rf"found\.jsonl, line 2 is no record of a run: its {field}"):
                read(place)


def test_every_recorded_result_passes_the_checks():
    from experiments.records.results import load_results

    assert len(load_results([ROOT / "experiments" / "results"])) > 500


@pytest.mark.parametrize("text", ["5", "null", '"a"', "9" * 5000, "[" * 99_999, "", "\x00"])
def test_a_result_that_is_no_record_is_none(tmp_path, text):
    (tmp_path / "result.json").write_text(text)
    assert run_record.read_result(tmp_path / "result.json") is None


@pytest.mark.parametrize("text", ["[]", "{"])
def test_a_result_that_is_no_record_is_written_anew(straight, run, text):
    folder = straight().folder
    (folder / "result.json").write_text(text)
    ended = run()
    assert ended.status == 0, ended.err
    assert run_record.read_result(folder / "result.json")["status"] == "finished"
