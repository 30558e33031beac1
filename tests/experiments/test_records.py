"""Records as JSON lines: read with torn and repeated lines, appended by several processes, converted from folders."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.records import json_files, lines, run_folder, run_record
from experiments.records.lines import Recorded, append, line_of, read_lines
from experiments.records.results import load_results
from lowrank_jax.core.errors import UserError

ROOT = Path(__file__).parents[2]


def record(name, **more):
    return {"name": name, "status": "finished", "labels": {}, "config": {}, "losses": [[1, 0.1]], **more}


@pytest.fixture
def said(monkeypatch):
    """What is logged."""
    found = []
    monkeypatch.setattr(lines.logging, "warning", lambda text, *values: found.append(text % values))
    return found


def test_of_a_repeated_name_the_last_whole_line_wins(tmp_path):
    path = tmp_path / "grid.jsonl"
    assert append(path, [record("a", loss=1.0), record("b"), record("a", loss=2.0)]) == 3
    path.write_text(path.read_text() + line_of(record("a", loss=3.0))[:-1])
    assert read_lines(path) == {"a": record("a", loss=2.0), "b": record("b")}
    assert [one["name"] for one in load_results([path])] == ["a", "b"]


@pytest.mark.parametrize("torn", ['{"name": "b", "sta', line_of(record("b"))[:-1], '{"name": "\\u00'])
def test_a_torn_line_is_left_out_said_once_and_ended_by_the_next_append(tmp_path, said, torn):
    path = tmp_path / "grid.jsonl"
    path.write_text(line_of(record("a")) + torn)
    for _ in range(2):
        assert [*read_lines(path)] == ["a"]
    assert len(said) == 1
    assert f"{path}: 1 torn line(s) left out" in said[0]
    append(path, [record("b", loss=5.0), record("c")])
    assert read_lines(path) == {"a": record("a"), "b": record("b", loss=5.0), "c": record("c")}
    assert path.read_text().startswith(line_of(record("a")) + torn + "\n")


def test_lines_are_compact_json_and_not_finite_is_null(tmp_path):
    path = tmp_path / "deep" / "grid.jsonl"
    append(path, [record("a", loss=float("nan"))])
    text = path.read_text()
    assert text.count("\n") == 1
    assert '"losses":[[1,0.1]],"loss":null}\n' in text
    assert append(path, [record("a", loss=float("inf"))]) == 0  # the same record


APPEND = """
import sys
from experiments.records.lines import Recorded
who, path = sys.argv[1:]
kept = Recorded(path)
print("ready", flush=True)
sys.stdin.readline()
for i in range(40):
    kept.put({"name": f"own{who}-{i}", "status": "finished", "fill": "x" * 20_000})
    kept.put({"name": f"shared-{i}", "status": "finished", "fill": "y" * 20_000})
"""


def test_several_processes_append_whole_lines(tmp_path):
    """What all of them record is there once."""
    path = tmp_path / "grid.jsonl"
    path.write_text('{"name": "torn by an ear')
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [
        subprocess.Popen([sys.executable, "-c", APPEND, str(who), str(path)], cwd=ROOT, **pipes) for who in range(2)
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=100)
        assert writer.returncode == 0
    torn, *whole = path.read_text().splitlines()
    assert torn == '{"name": "torn by an ear'
    names = [json.loads(line)["name"] for line in whole]
    expected = {f"own{who}-{i}" for who in range(2) for i in range(40)} | {f"shared-{i}" for i in range(40)}
    assert len(names) == len(expected)
    assert {*names} == expected


@pytest.mark.parametrize(
    "text", ['{"text": "mine"}\n', '{"prompt": "a", "completion": ""}', "[1]\n", '{"name": "x"}\n']
)
def test_a_file_of_something_else_is_left_alone(tmp_path, text):
    """--results=mine beside one's own mine.jsonl."""
    path = tmp_path / "mine.jsonl"
    path.write_text(text)
    for write in (lambda: append(path, [record("a")]), lambda: lines.check_results(path)):
        with pytest.raises(UserError, match=r"mine\.jsonl, line 1 is no record of a run"):
            write()
    assert path.read_text() == text
    lines.check_results(tmp_path / "new.jsonl")
    append(tmp_path / "new.jsonl", [record("a")])
    (tmp_path / "new.jsonl").write_text((tmp_path / "new.jsonl").read_text() + '{"name": "b", "sta')  # torn by a kill
    lines.check_results(tmp_path / "new.jsonl")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"forgetting": {"novels": {"start": 3.0}}}, "its forgetting is .* not an object of objects of numbers with"),
        ({"config": {"task": {"path": 7}}}, "its config.task.path is 7, not a string or a list of strings"),
        ({"config": {"task": {"path": ["a", 7]}}}, r"its config.task.path is \['a', 7\], not a string or a list"),
        ({"config": {"task": {"seq_len": "x"}}}, "its config.task.seq_len is 'x', not a number"),
        ({"config": {"train": {"batch_size": {}}}}, "its config.train.batch_size is {}, not a number"),
        (
            {"config": {"adapter": {"mora": {"compression": 1.0}}}},
            "its config.adapter.mora.compression is 1.0, not a s",
        ),
        ({"config": {"adapter": {"mora": "sharing"}}}, "its config.adapter.mora is 'sharing', not an object"),
    ],
)
def test_a_field_that_the_tables_read_and_no_run_writes_so_is_named(tmp_path, more, said):
    path = tmp_path / "grid.jsonl"
    path.write_text(line_of(record("a", **more)))
    with pytest.raises(UserError, match=said):
        load_results([path])


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "grid.jsonl"
    append(path, [record("a")])
    before = path.read_bytes()
    write = lines.os.write
    monkeypatch.setattr(lines.os, "write", lambda descriptor, text: write(descriptor, text[:10]))
    with pytest.raises(UserError, match="No space left on device; free some space"):
        append(path, [record("b")])
    assert path.read_bytes() == before


def test_recorded_reads_again_what_others_add_and_old_folders(tmp_path):
    for place in (tmp_path / "grid", tmp_path / "grid.jsonl"):
        kept = Recorded(place)
        assert kept.path == tmp_path / "grid.jsonl"
        assert kept.get("absent") is None
    json_files.write_json(tmp_path / "grid" / "old.json", record("old"))
    assert kept.get("old") == record("old")
    kept.put(record("old"))
    assert not kept.path.exists()  # the folder has it
    Recorded(tmp_path / "grid").put(record("new"))
    assert kept.get("new") == record("new")
    kept.put(record("old", loss=1.0))
    assert kept.get("old") == record("old", loss=1.0)


def test_results_are_found_in_lines_folders_and_files_alike(tmp_path):
    append(tmp_path / "all" / "lines.jsonl", [record("a"), record("b")])
    json_files.write_json(tmp_path / "all" / "cells" / "c.json", record("c"))
    json_files.write_json(tmp_path / "all" / "runs" / "d" / run_folder.RESULT, record("d"))
    (tmp_path / "all" / "runs" / "d" / "metrics.jsonl").write_text('{"step": 1, "name": "no", "status": 1}\n')
    (tmp_path / "all" / "rows.jsonl").write_text('{"text": "no record"}\n[1]\n')

    def names(*places):
        return [one["name"] for one in load_results([tmp_path / place for place in places])]

    assert names("all") == ["a", "b", "c", "d"]
    assert names("all/lines") == names("all/lines.jsonl") == ["a", "b"]
    assert names("all/cells") == ["c"]
    append(tmp_path / "all" / "cells.jsonl", [record("e"), record("c", loss=1.0)])
    assert names("all/cells") == ["e", "c"]  # the file first
    assert load_results([tmp_path / "all" / "cells"])[1] == record("c", loss=1.0)
    for place in ("absent", "absent.jsonl", "all/runs.jsonl"):
        with pytest.raises(UserError, match="there is no folder"):
            names(place)


# ---- scripts/convert_results.py ----


@pytest.fixture(scope="module")
def convert(load_script):
    return load_script("convert_results").main


@pytest.mark.parametrize("grid", ["uuid_laptop", "quantized", "glue_mrpc_cpu"])
def test_converted_records_equal_the_folders(convert, tmp_path, capsys, grid):
    """Record for record and byte for byte, on the repository's own."""
    kept = ROOT / "experiments" / "results" / f"{grid}.jsonl"
    records = read_lines(kept)
    folder = tmp_path / grid
    for name, one in records.items():
        json_files.write_json(folder / f"{name}.json", one)
    assert convert([str(folder)]) == 0
    assert convert([str(folder), "--check"]) == 0
    assert f"{len(records)} records, equal" in capsys.readouterr().out
    written = tmp_path / f"{grid}.jsonl"
    assert read_lines(written) == records == {path.stem: run_record.read_result(path) for path in folder.iterdir()}
    assert sorted(written.read_text().splitlines()) == sorted(kept.read_text().splitlines())
    assert [*read_lines(written)] == sorted(records)


def test_a_folder_without_records_is_no_success(convert, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert convert([str(tmp_path / "empty"), "--check"]) == 2
    assert "has no .json file of a run" in capsys.readouterr().err
    (tmp_path / "empty" / "a.json").write_text('{"name": "a", "status": "finished", "losses": 5}')
    assert convert([str(tmp_path / "empty")]) == 2
    assert "its losses is 5" in capsys.readouterr().err


def test_a_check_names_what_differs_and_no_record_is_lost(convert, tmp_path, capsys):
    folder = tmp_path / "grid"
    json_files.write_json(folder / "a.json", record("a"))
    append(tmp_path / "grid.jsonl", [record("a", loss=1.0), record("b")])
    assert convert([str(folder), "--check"]) == 1
    assert "differs in a, b" in capsys.readouterr().out
    json_files.write_json(folder / "other.json", {"bench": 1})
    assert convert([str(folder)]) == 2
    assert "other.json is no record of a run of that name" in capsys.readouterr().err
    assert convert([str(tmp_path / "absent")]) == 2


def test_the_repositorys_records_are_whole_lines_by_name():
    files = sorted((ROOT / "experiments" / "results").glob("*.jsonl"))
    assert len(files) >= 6
    for path in files:
        text = path.read_text()
        assert text.endswith("\n")
        assert all(line_of(json.loads(line)) == line for line in text.splitlines(keepends=True))
    assert sum(path.stat().st_size for path in files) < 10e6  # a clone compresses them: 5.2 MB to 1.0


@pytest.mark.parametrize(
    "chosen",
    [[], "x", 5, {"seed": 3}, {"task.packed": 1}, {"train.log_every": 5}, {"a.b": 3}, {"train.steps": "x"},
     {"train.steps": True}, {"train.batch_size": None}, {"train.batch_size": 7.5}, {"task.seq_len": 0}],
    ids=repr,
)  # fmt: skip
def test_what_the_data_decided_is_whole_numbers_of_known_keys(tmp_path, chosen):
    """A run that resumes is built with them."""
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"task": {"name": "text"}, "chosen": chosen}))
    with pytest.raises(UserError, match=r"config\.json: its chosen.*; start again with --fresh"):
        run_folder.look(tmp_path, {"task": {"name": "text"}})
