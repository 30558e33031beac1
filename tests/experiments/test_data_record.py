"""The content of the training data is part of a run: other data under one name are refused, the same data are not."""

import gzip
import json
import os
import shutil
import time

import numpy as np
import pytest

from experiments import sweep
from experiments.config.plain import content_hash
from experiments.records import data_record, json_files, run_folder
from experiments.records.lines import append
from experiments.sweeps.grid import Grid
from lowrank_jax.core.errors import UserError
from lowrank_jax.data import digest

TEXT = dict(
    config="configs/mora_uuid.py:data=text", task__pairs=None, task__eval_pairs=None, task__seq_len=32,
    train__eval_steps="()",
)  # fmt: skip


def write(path, word, rows=20):
    """Rows of one length for words of one length; a .gz differs at every packing, as the time is in it."""
    text = "".join(json.dumps({"text": f"{n:02d} {word} {n * n:04d}"}) + "\n" for n in range(rows))
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode(), mtime=time.time_ns() % 2**31))
    else:
        path.write_text(text)
    return path


def error_line(ended) -> str:
    assert ended.status == 2, ended
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1, ended.err
    return ended.err


@pytest.fixture
def text_run(run, tmp_path):
    """text_run("--fresh", train__stop_at=2) -> a run over train.jsonl.gz, more.jsonl and held.jsonl of tmp_path."""
    files = [tmp_path / name for name in ("train.jsonl.gz", "more.jsonl", "held.jsonl")]
    for path in files:
        write(path, "cats")
    paths = {"task__path": f"('{files[0]}', '{files[1]}')", "task__validation_path": str(files[2])}
    # A tuple cannot override a string: a config of its own.
    (tmp_path / "config.py").write_text(
        "import importlib.util\n"
        "spec = importlib.util.spec_from_file_location('base', 'configs/mora_uuid.py')\n"
        "base = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(base)\n"
        "def get_config(arg=None):\n"
        "    config = base.get_config('data=text')\n"
        f"    config.task = {{**config.task, 'path': {paths['task__path']}}}\n"
        f"    config.task.validation_path = {paths['task__validation_path']!r}\n"
        "    return config\n"
    )

    def call(*words, **changes):
        return run(*words, **{**TEXT, "config": tmp_path / "config.py", **changes})

    call.files = files
    return call


def test_a_run_does_not_go_on_on_other_data_of_one_path_and_number_of_rows(text_run, tmp_path, records):
    """Each file, before and after the end; with the same content a run continues, for every compression."""
    assert text_run(train__stop_at=2).status == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert [*config["data"]] == ["task.path.0", "task.path.1", "task.validation_path.0"]
    assert content_hash(config) == content_hash({key: value for key, value in config.items() if key != "data"})

    def each_refused():
        for path in text_run.files:
            before = path.read_bytes()
            write(path, "dogs")
            line = error_line(text_run())
            assert f"the contents of {path} have changed since" in line
            assert "--name" in line
            assert "--fresh" in line
            path.write_bytes(before)

    each_refused()
    write(text_run.files[0], "cats")  # packed anew
    rest = text_run()
    assert rest.status == 0, rest.err
    assert "digest" not in rest.out
    assert [line["step"] for line in records(tmp_path / "run") if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["data"].keys() == config["data"].keys()

    each_refused()
    assert text_run().out.startswith("run: finished already")
    text_run.files[1].unlink()  # not needed to say so
    assert text_run().out.startswith("run: finished already")


def test_data_that_change_between_the_reading_and_the_digest_are_refused(text_run, tmp_path, monkeypatch):
    from experiments.session import build
    from lowrank_jax.train.compiled import memory

    monkeypatch.setattr(memory, "check_fits", lambda _: None)
    monkeypatch.setattr(build.Experiment, "compile", lambda *_, **__: write(text_run.files[1], "dogs"))
    assert f"{text_run.files[1]} changed while it was read" in error_line(text_run())
    assert not (tmp_path / "run").exists()


def test_a_folder_without_digests_goes_on_with_a_note_and_fresh_takes_other_data(tmp_path, capfd):
    path, folder = write(tmp_path / "a.jsonl", "cats"), tmp_path / "run"
    plain = {"seed": 0, "task": {"name": "text", "path": str(path)}}
    json_files.write_json(folder / run_folder.CONFIG, plain)
    assert run_folder.open_run(folder, plain) == "resume"
    note = capfd.readouterr().out
    assert f"{folder} has no digest of {path}" in note
    assert note.count("\n") == 1
    assert run_folder.data_of(folder) == {"data": data_record.make(plain)}
    assert run_folder.open_run(folder, plain) == "resume"
    assert capfd.readouterr().out == ""
    write(path, "dogs")
    with pytest.raises(UserError, match=f"the contents of {path} have changed"):
        run_folder.open_run(folder, plain)
    assert run_folder.open_run(folder, plain, fresh=True) == "new"
    assert run_folder.open_run(folder, plain) == "resume"


def test_a_row_that_goes_on_from_its_trial_goes_on_on_its_data(tmp_path):
    path, trial = write(tmp_path / "a.jsonl", "cats"), tmp_path / "trial"
    plain = {"task": {"name": "text", "path": str(path)}, "train": {"steps": 9, "stop_at": 2}}
    run_folder.open_run(trial, plain)
    (trial / run_folder.CHECKPOINTS).mkdir()
    (trial / run_folder.METRICS).write_text("")
    full = {**plain, "train": {"steps": 9, "stop_at": 0}}
    write(path, "dogs")
    assert run_folder.continue_from(trial, tmp_path / "row", full)
    with pytest.raises(UserError, match=f"the contents of {path} have changed"):
        run_folder.look(tmp_path / "row", full)


# ---- the record of each kind of data ----


def same(plain, earlier, ended=False):
    """Whether a run with that record continues (or is finished) with the config's present data."""
    try:
        data_record.check(plain, earlier, data_record.make(plain, earlier), ended, "run")
    except data_record.DataChanged:
        return False
    return True


def test_a_file_is_read_once_and_not_at_all_where_its_stamp_is_as_recorded(tmp_path, monkeypatch):
    plain = {"task": {"name": "text", "path": str(write(tmp_path / "a.jsonl", "cats"))}}
    record = json.loads(json.dumps(data_record.make(plain)))
    with monkeypatch.context() as patch:
        patch.setattr(digest, "_digest", lambda *_: pytest.fail("it was read"))
        assert data_record.make(plain, record) == record
    os.utime(tmp_path / "a.jsonl", ns=(1, 1))
    assert same(plain, record)
    (tmp_path / "a.jsonl").write_text("{}")
    assert not same(plain, record)


def glue(folder=None, task="cola"):
    return {"task": {"name": "glue", "task": task, **({"data_dir": str(folder)} if folder else {})}}


def test_glue_is_compared_by_its_rows_wherever_they_lie(tiny_glue, tmp_path, monkeypatch):
    there, moved = tmp_path / "there", tmp_path / "moved"
    shutil.copytree(tiny_glue, there)
    record = data_record.make(glue(there))
    assert [*record] == ["task.train", "task.dev"]
    shutil.copytree(there, moved)
    for file in (moved / "CoLA").iterdir():
        file.with_suffix(".tsv.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    monkeypatch.setenv("LOWRANK_JAX_GLUE_DIR", str(moved))
    assert same(glue(), record, ended=True)
    for split in ("train", "dev"):
        file = there / "CoLA" / f"{split}.tsv"
        before = file.read_text()
        file.write_text(before.replace("plain", "blank"))
        assert not same(glue(there), record)
        with pytest.raises(UserError, match=f"the contents of {file} have changed"):
            data_record.check(glue(there), record, data_record.make(glue(there), record), True, "run")
        file.write_text(before)
    assert same(glue(tmp_path / "gone"), record, ended=True)


def test_a_built_glue_task_knows_its_digests(tiny_glue):
    from lowrank_jax.tasks.glue.task import GlueConfig, GlueTask
    from lowrank_jax.text.tokenizers import ByteTokenizer

    config = GlueConfig(task="mnli", data_dir=str(tiny_glue), allow_partial=True)
    known = data_record.of_task(GlueTask(config, ByteTokenizer()))
    record = data_record.make(glue(tiny_glue, "mnli"))
    assert known == {key: entry["sha256"] for key, entry in record.items()}
    assert len(set(known.values())) == 3


def test_the_adapter_that_a_run_starts_from(tmp_path):
    from lowrank_jax.checkpoints.adapters_only import save_adapter

    def save(value):
        tree = {"adapters": {"a": np.full(3, value, np.float32)}}
        save_adapter(tmp_path / "adapter", tree, {}, {}, {"name": "b", "fingerprint": "f"})

    plain = {"start": {"adapter": str(tmp_path / "adapter")}}
    save(1)
    record = data_record.make(plain)
    os.utime(tmp_path / "adapter" / "adapter.json", ns=(1, 1))
    assert same(plain, record)
    save(2)
    assert not same(plain, record)
    shutil.rmtree(tmp_path / "adapter")
    assert same(plain, record, ended=True)


def test_a_local_base(tmp_path):
    """Its tokenizer at every look; its weights for a run that ended, for the fingerprint compares them at a resume."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    (base / "tokenizer.json").write_text("{}")
    (base / "model.safetensors").write_bytes(bytes(100_000))
    plain = {"base": {"name": str(base)}}
    record = data_record.make(plain)
    assert data_record.unknown(plain, {}) == [f"the config or tokenizer in {base}"]
    (base / "README.md").write_text("new")
    assert same(plain, record)
    (base / "model.safetensors").write_bytes(bytes(range(100)) * 1000)
    assert same(plain, record)
    assert not same(plain, record, ended=True)
    (base / "tokenizer.json").write_text('{"other": 1}')
    assert not same(plain, record)
    for name in ("pico-llama", "smollm2-135m", "some/repository"):
        assert not data_record.make({"base": {"name": name}})


def test_trials_over_other_data_do_not_share_a_program(tiny_glue, tmp_path):
    shutil.copytree(tiny_glue, tmp_path / "glue")
    plains = [glue(tiny_glue), glue(tmp_path / "glue")]
    known = {key: entry["sha256"] for key, entry in data_record.make(plains[1]).items()}
    data_record.check_shared(plains, ["one", "two"], 1, known)
    file = tmp_path / "glue" / "CoLA" / "dev.tsv"
    file.write_text(file.read_text().replace("plain", "blank"))
    known = {key: entry["sha256"] for key, entry in data_record.make(plains[1]).items()}
    with pytest.raises(UserError, match=r"one and two cannot share a program: task\.dev differs"):
        data_record.check_shared(plains, ["one", "two"], 1, known)


# ---- the sweep ----

CONFIG = """
def get_config(arg=None):
    return {{"experiment": "e", "seed": 0, "labels": {{"stage": "full"}}, "optimizer": {{"learning_rate": 1.0}},
             "task": {{"name": "text", "path": r"{folder}/" + arg + ".jsonl"}}}}
"""
GRID = "def cells():\n    return [dict(arg=arg, overrides={}) for arg in ('a', 'b')]\n"


@pytest.mark.parametrize("kept", ["run", "file", "line"])
def test_a_sweep_refuses_the_cell_whose_data_changed_and_goes_on(tmp_path, kept, monkeypatch):
    (tmp_path / "config.py").write_text(CONFIG.format(folder=tmp_path))
    (tmp_path / "grid.py").write_text(GRID)
    grid = Grid(str(tmp_path / "config.py"), str(tmp_path / "grid.py"))
    monkeypatch.setattr(sweep.Sweep, "spawn", lambda *_, **__: pytest.fail("a cell was trained"))
    cells = grid.select()
    for cell, arg in zip(cells, "ab", strict=True):
        write(tmp_path / f"{arg}.jsonl", "cats")
        result = {"name": cell.name, "status": "finished", "config": cell.plain, "data": data_record.make(cell.plain)}
        if kept == "line":
            append(tmp_path / "results.jsonl", [result])
            continue
        file = tmp_path / "results" / f"{cell.name}.json" if kept == "file" else tmp_path / cell.name / "result.json"
        json_files.write_json(file, result)
    name = cells[0].name
    removed = {
        "run": tmp_path / name / "result.json",
        "file": tmp_path / "results" / f"{name}.json",
        "line": f"the line of {name} in {tmp_path / 'results.jsonl'}",  # not the file, which has every other run too
    }[kept]

    def states(together):
        said = []
        made = sweep.Sweep(grid, str(tmp_path), str(tmp_path / "results"), said.append, together=together)
        return list(made.run(cells).values()), said

    assert states(1)[0] == ["finished", "finished"]
    write(tmp_path / "a.jsonl", "dogs")
    for together in (1, 4):
        (first, second), said = states(together)
        assert second == "finished"
        assert first.startswith("failed: ")
        assert f"the contents of {tmp_path / 'a.jsonl'} have changed since; use another --workdir" in first
        assert f"or remove {removed} to train the cell again" in first
        assert sum("refused" in line for line in said) == 1
