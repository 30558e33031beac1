"""--preview and --together=auto: what cells need, from shapes; how far a sweep is; how many trials fit."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from experiments import room
from experiments.records import leases
from experiments.sweeps import engine, preview
from experiments.sweeps.grid import Grid
from lowrank_jax.core.errors import UserError
from lowrank_jax.train.compiled import memory


@pytest.fixture
def sweep(grid_files):
    root = leases.Root(str(grid_files / "root"))
    grid = Grid(str(grid_files / "config.py"), str(grid_files / "grid.py"))
    return engine.Sweep(grid, str(grid_files / "runs"), root=root)


def rows(text):
    """cell -> the rest of its line, by columns of two spaces and more."""
    lines = [[word.strip() for word in line.split("  ") if word.strip()] for line in text.splitlines()[2:]]
    return {line[0]: line[1:] for line in lines if len(line) == 7}


def test_the_preview_lists_needs_time_and_state(sweep):
    """Of each program one cell is asked for; times of the cells to come are those of their program's records."""
    cells, root = sweep.grid.select(), sweep.root
    trials, full = [cell for cell in cells if "rates" in cell.name], [cell for cell in cells if cell.trials]
    asked = []

    def ask(pairs):
        asked.extend(pairs)
        alone = {"trainable": 1234, "frozen": 1, "bytes": 3 * 2**29, "limit": 2**30}
        return {name: alone if "fft" in name else {"error": "no such data"} for name, _ in pairs}

    lines = rows(preview.preview(sweep, cells, ask))
    assert len(lines) == len(cells) == 7
    assert {line[-1] for line in lines.values()} == {"to run", "waits for 3 trials", "waits for 2 trials"}
    assert {line[-2] for line in lines.values()} == {"unknown"}
    assert sorted("fft" in name for name, _ in asked) == [False, True]
    rate = [plain["optimizer"]["learning_rate"] for _, plain in asked]
    assert all(isinstance(value, float) for value in rate)  # no "best:" reaches the programs

    done, claimed, failed = trials[0], trials[1], trials[3]
    for cell, why in ((done, ""), (claimed, ""), (failed, "exit status 3")):
        lease = leases.Lease(root, cell.name, "worker")
        assert lease.take()
        if cell is done:
            record = {"name": cell.name, "status": "finished", "config": cell.plain, "losses": [[20, 0.5]]}
            lease.record(record | {"labels": {}, "wall_seconds": 80.0, "together": 2})
        if cell is not claimed:
            lease.release(why)
    said = preview.preview(sweep, cells, ask)
    lines, fft = rows(said), next(cell for cell in full if "fft" in cell.name)
    assert lines[done.name][-4:] == ["1,234", "1.50 GiB (too much)", "80 s", "finished"]
    assert lines[claimed.name][-2] == "40 s"  # 20 steps of 2 s: two trials shared the 80 s of a program
    assert lines[claimed.name][-1].startswith("claimed by worker (pid ")
    assert lines[failed.name][-4:] == ["unknown", "unknown", "unknown", "failed: exit status 3"]
    assert lines[fft.name][-2:] == ["3.3 min", "waits for 3 trials"]
    *_, note, total = said.splitlines()
    assert note == "unknown: no such data"
    assert total == (
        "7 cells: 1 finished, 1 claimed, 2 to run, 1 failed, 1 waits for 3 trials, 1 waits for 2 trials; "
        "about 4.7 min left on one worker, 2 cells of unknown length aside"
    )


def test_room_counts_the_programs_that_run(monkeypatch, tmp_path):
    """One cell's need is that of its compiled step; of the trials that fit, the last does and one more does not."""
    from experiments.cli import complete_file
    from experiments.config.plain import to_plain

    config = complete_file("configs/mora_uuid.py:method=lora,rank=4")
    for key, value in {
        "base.name": "toy-llama", "base.random_init": True, "adapter.targets": ("query",), "task.pairs": 8,
        "task.eval_pairs": 2, "train.batch_size": 8, "train.steps": 4, "train.eval_steps": (), "train.eval_every": 0,
        "schedule.warmup_steps": 1,
    }.items():  # fmt: skip
        section, last = key.split(".")
        with config.unlocked():
            config[section][last] = value
    plain = to_plain(config)
    file = tmp_path / "cells.json"
    file.write_text(json.dumps([{"name": "one", "config": plain}, {"name": "bad", "config": plain | {"seed": -1}}]))
    found = room.answer(json.loads(file.read_text()), fits=False)
    assert found["one"]["trainable"] == 4 * (32 + 32) * 2
    assert "seed" in found["bad"]["error"]

    one, two, three = room.counted([plain], (1, 2, 3))
    assert found["one"]["bytes"] < one < two < three  # alone its batch is divided over the devices
    monkeypatch.setattr(room, "counted", lambda _: (one, two))
    for limit, each in ((three / room.SHARE * 1.01, 3), (three / room.SHARE * 0.99, 2), (one, 1)):
        monkeypatch.setattr(memory, "device_limit", lambda *_, limit=limit: int(limit))
        assert room.fitting([plain])["fits"] == each * len(jax.local_devices())
    monkeypatch.setattr(memory, "device_limit", lambda *_: None)
    with pytest.raises(UserError, match="give --together a number"):
        room.fitting([plain])


def test_auto_asks_once_a_program_and_a_failing_count_is_said(sweep, monkeypatch):
    calls, said = [], []

    def asked(words, **_):
        calls.append(json.loads(Path(words[3].partition("=")[2]).read_text()))
        return SimpleNamespace(returncode=0, stdout='{"fits": 2, "one": 1, "more": 1, "limit": 9}\n', stderr="")

    monkeypatch.setattr(subprocess, "run", asked)
    count = preview.trials_that_fit(said.append)
    cells = [(cell.name, cell.plain) for cell in sweep.grid.select("method=fft") if not cell.trials]
    assert [count(cells), count(cells[:2])] == [2, 2]
    assert len(calls) == len(said) == 1
    assert [cell["name"] for cell in calls[0]] == [name for name, _ in cells]
    failed = SimpleNamespace(returncode=2, stdout="", stderr="warning\nerror: no such base\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(UserError, match="cannot be counted: no such base"):
        preview.room(cells)
    assert [preview.parse_together(text) for text in ("auto", "8")] == [1, 8]
    for text in ("0", "-1", "x", "1.5", ""):
        with pytest.raises(UserError, match="write a whole number above 0, or auto"):
            preview.parse_together(text)
