"""--preview and --together=auto: what cells need, from shapes; how far a sweep is; how many trials fit."""

import json
import re
import sys
from pathlib import Path

import jax
import pytest

from experiments import room
from experiments.records import leases
from experiments.sweeps import compatible, counted, engine, joined, preview
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

    def ask(pairs, joined):
        assert not any(joined.values())
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


def test_the_preview_names_what_tells_its_rows_apart(tmp_path, monkeypatch):
    """MoRA's two compressions at one rank, whose names differ in a hash alone."""
    monkeypatch.chdir(Path(__file__).parents[2])
    grid = Grid("configs/mora_uuid.py", "configs/sweeps/rates_uuid.py:model=pico-llama")
    cells = grid.select("method=(mora|lora),.*rank=8")
    need = {"trainable": 1, "bytes": 1}
    said = preview.preview(engine.Sweep(grid, str(tmp_path)), cells, lambda pairs, joined: {n: need for n, _ in pairs})
    kinds = {(cell.arg, rows(said)[cell.name][0]) for cell in cells}
    assert sorted(kind for _, kind in kinds) == ["lora", "mora rotation", "mora sharing"]


def test_the_preview_tells_cells_apart_that_differ_in_data_alone(tmp_path, sweep):
    """A column says which; it is absent where all have the same data, and seeds are no data."""
    (tmp_path / "config.py").write_text(
        "from ml_collections import ConfigDict\n\n\ndef get_config(arg=None):\n"
        "    task = {'name': 'text', 'path': 'a.jsonl', 'rows': 5, 'seed': 0}\n"
        "    return ConfigDict({'experiment': 'x', 'task': task})\n"
    )
    (tmp_path / "grid.py").write_text(
        "def cells():\n    one = {'task.rows': 5, 'task.path': 'a.jsonl'}\n"
        "    return [dict(overrides=one), dict(overrides=one | {'task.rows': 9}), "
        "dict(overrides=one | {'task.path': 'b.jsonl', 'task.seed': 1})]\n"
    )
    grid = Grid(str(tmp_path / "config.py"), str(tmp_path / "grid.py"))
    apart = engine.Sweep(grid, str(tmp_path / "runs"), root=leases.Root(str(tmp_path / "root")))
    ask = lambda pairs, joined: {name: {"error": "no such data"} for name, _ in pairs}  # noqa: E731
    text = preview.preview(apart, grid.select(), ask)
    assert text.splitlines()[0].split()[:4] == ["cell", "method", "rank", "data"]
    for said in ("path=a.jsonl, rows=5", "path=a.jsonl, rows=9", "path=b.jsonl, rows=5"):
        assert text.count(said) == 1
    assert "data" not in preview.preview(sweep, sweep.grid.select(), ask).splitlines()[0]


def test_data_are_told_apart_by_few_keys():
    """What follows from a task or a path is left out, whichever key comes first in the alphabet."""
    tasks = [{"buckets": [8, 16], "seed": 0, "task": "mrpc"}, {"buckets": [8], "seed": 1, "task": "rte"}]
    assert preview.data_apart([{"task": task} for task in tasks]) == ["task=mrpc", "task=rte"]
    paths = [{"path": "a", "validation_path": "b"}, {"path": "c", "validation_path": "d"}, {"validation_path": "d"}]
    assert preview.data_apart([{"task": task} for task in paths]) == ["path=a", "path=c", ""]
    assert preview.data_apart([{"task": {"path": "a", "seed": seed}} for seed in (0, 1)]) == ["", ""]


def test_the_preview_of_joined_cells_has_their_programs(sweep):
    """With --together the memory is that of a program of several cells, and there are as many programs as are made."""
    cells, asked = sweep.grid.select(), {}
    sweep.together = 2

    def ask(pairs, joined):
        asked.update({name: [plain, *joined[name]] for name, plain in pairs})
        return {
            name: {"trainable": 10, "joined": [20] * len(joined[name]), "bytes": 2**29 * (1 + len(joined[name]))}
            for name, _ in pairs
        }

    text = preview.preview(sweep, cells, ask)
    lines, trials = rows(text), [cell.name for cell in cells if not cell.trials]
    fft, lora = ([name for name in trials if kind in name] for kind in ("fft", "lora"))
    assert (len(fft), len(lora)) == (3, 2)
    assert [lines[name][2:4] for name in fft] == [
        ["10", "1.00 GiB for 2"],
        ["20", "1.00 GiB for 2"],
        ["10", "0.50 GiB"],
    ]
    assert [lines[name][2:4] for name in lora] == [["10", "1.00 GiB for 2"], ["20", "1.00 GiB for 2"]]
    alone = [lines[cell.name][3] for cell in cells if cell.trials]
    assert alone == ["0.50 GiB", "0.50 GiB"]  # they wait for trials, and share a program with none of them
    rates = {name: [plain["optimizer"]["learning_rate"] for plain in plains] for name, plains in asked.items()}
    assert [len(set(values)) for values in rates.values()] == [2, 1, 2, 1]  # the second fft program is like the third
    note = text.splitlines()[-2]
    assert note == "--together: 5 programs of up to 2 cells; memory is the whole program's"


def test_joined_programs_are_those_that_fit(sweep):
    cells = sweep.grid.select()
    plains, sizes = {cell.name: sweep.grid.stand_in(cell) for cell in cells}, []

    def fits(pairs):
        sizes.append(len(pairs))
        if len(pairs) == 2:
            raise UserError("the device does not say")
        return 9

    found = joined.programs(cells, plains, room=fits)
    assert sizes == [3, 2]  # of a cell alone nothing is asked
    assert [len(names) for names in found] == [3, 1, 1, 1, 1]
    assert sorted(name for names in found for name in names) == sorted(plains)
    assert joined.programs(cells, plains) == [[cell.name] for cell in cells]


def test_room_counts_the_programs_that_run(monkeypatch, tmp_path, capfd):
    """One cell's need is that of its compiled step; of the trials that fit, the last does and one more does not."""
    from experiments.cli import complete_file
    from experiments.config.plain import to_plain
    from experiments.config.schema import unpack_run
    from experiments.session.build import build
    from experiments.session.experiment import Experiment
    from experiments.session.trial_group import TrialGroup

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
    found = room.answer(json.loads(file.read_text()), False, str(tmp_path / "known.json"))
    assert found["one"]["trainable"] == 4 * (32 + 32) * 2
    assert "seed" in found["bad"]["error"]
    assert re.findall(r"program (.*)", capfd.readouterr().err) == ["1 of 2: one", "2 of 2: bad"]
    experiment = build(unpack_run(plain))
    run = memory.memory_report(experiment.compile())
    assert found["one"]["bytes"] == run.needed * len(jax.local_devices())  # as with a run's options
    with monkeypatch.context() as patch:  # a second time nothing is compiled
        patch.setattr(Experiment, "compile", None)
        again = room.answer([{"name": "one", "config": plain}], False, str(tmp_path / "known.json"))["one"]
        assert again | {"limit": 0} == found["one"] | {"limit": 0}
        with pytest.raises(TypeError):  # of another shape
            room.answer([{"name": "one", "config": plain | {"adapter": {**plain["adapter"], "rank": 2}}}], False)

    both = [{"name": "one", "config": plain, "joined": [plain | {"seed": 1}]}]
    said = []
    monkeypatch.setattr(room, "say", said.append)
    known = str(tmp_path / "known.json")
    pair = room.answer(both, False, known)["one"]
    assert (pair["trainable"], pair["joined"]) == (found["one"]["trainable"], [found["one"]["trainable"]])
    group = TrialGroup([unpack_run(plain), unpack_run(plain | {"seed": 1})])
    assert pair["bytes"] == memory.memory_report(group.compile()).needed * len(jax.local_devices())
    assert said == ["1 of 1: one and 1 more together"]
    with monkeypatch.context() as patch:
        patch.setattr(TrialGroup, "compile", None)
        assert room.answer(both, False, known)["one"] | {"limit": 0} == pair | {"limit": 0}

    one, two, three = room.counted([plain], (1, 2, 3))
    assert found["one"]["bytes"] < one < two < three  # alone its batch is divided over the devices
    wrong = plain | {"adapter": {**plain["adapter"], "rank": 10**5}}
    assert room.counted([wrong, plain], (1,)) == [one]  # one wrong cell does not keep the others from sharing
    with pytest.raises(UserError, match="LoRA rank 100000 exceeds"):
        room.counted([wrong])
    monkeypatch.setattr(room, "counted", lambda _: (one, two))
    for limit, each in ((three / room.SHARE * 1.01, 3), (three / room.SHARE * 0.99, 2), (one, 1)):
        monkeypatch.setattr(memory, "device_limit", lambda *_, limit=limit: int(limit))
        assert room.fitting([plain])["fits"] == each * len(jax.local_devices())
    monkeypatch.setattr(memory, "device_limit", lambda *_: None)
    with pytest.raises(UserError, match="give --together a number"):
        room.fitting([plain])


ASKED = """
import json, sys, time
flags = dict(word[2:].partition("=")[::2] for word in sys.argv[1:])
cells = json.load(open(flags["cells"]))
with open(sys.argv[0] + ".log", "a") as log:
    log.write(json.dumps([flags.get("known"), [cell["name"] for cell in cells]]) + "\\n")
print("a warning", file=sys.stderr)
for place, cell in enumerate(cells, 1):
    print(f"program {place} of {len(cells)}: {cell['name']}", file=sys.stderr, flush=True)
if any("wrong" in cell["config"] for cell in cells):
    print("error: no such base", file=sys.stderr)
    sys.exit(2)
if "fits" in flags:
    print(json.dumps({"fits": 2, "one": 1, "more": 1, "limit": 9}))
else:  # more than a pipe holds
    print(json.dumps({cell["name"]: {"trainable": 1, "bytes": 1, "more": "x" * 100_000} for cell in cells}))
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """program() -> what the stand-in for experiments.room was asked: [file of what is known, names of cells], ..."""
    file = tmp_path / "room.py"
    file.write_text(ASKED)
    monkeypatch.setattr(preview, "ROOM_PROGRAM", (sys.executable, str(file)))
    return lambda: [json.loads(line) for line in Path(f"{file}.log").read_text().splitlines()]


def test_auto_asks_once_a_program_and_a_failing_count_is_said(sweep, program, capfd):
    """It says what it does before it asks, and repeats the line of each program that is compiled."""
    said = []
    count = preview.trials_that_fit(said.append)
    cells = [(cell.name, cell.plain) for cell in sweep.grid.select("method=fft") if not cell.trials]
    assert [count(cells), count(cells[:2])] == [2, 2]
    assert program() == [[None, [name for name, _ in cells]]]
    assert (
        said[0]
        == f"--together=auto: counting how many cells like {cells[0][0]} fit in one program; it is compiled twice"
    )
    assert said[1].endswith("2 fit in one program")
    assert len(said) == 2
    assert capfd.readouterr().err.splitlines()[-1] == f"program 3 of 3: {cells[-1][0]}"
    with pytest.raises(UserError, match="cannot be counted: no such base"):
        preview.room([(name, plain | {"wrong": 1}) for name, plain in cells])
    assert [preview.parse_together(text) for text in ("auto", "8")] == [1, 8]
    for text in ("0", "-1", "x", "1.5", ""):
        with pytest.raises(UserError, match="write a whole number above 0, or auto"):
            preview.parse_together(text)


def test_the_preview_says_at_once_what_it_does(sweep, program, capfd):
    """Its progress goes to stderr, and the program is given the file of what earlier previews have counted."""
    cells = sweep.grid.select()
    lines = rows(preview.preview(sweep, cells))
    assert len(lines) == 7
    asked = program()
    assert [[known, len(names)] for known, names in asked] == [[str(sweep.workdir / "preview.json"), 2]]
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "counting what 7 cells need: each of their 2 programs is compiled, unless preview.json has it; nothing is run",
        *(f"program {place} of 2: {name}" for place, name in enumerate(asked[0][1], 1)),
    ]


def test_cells_of_equal_shapes_are_one_program():
    """Also runs that cannot share a program: with merges each changes its base, and a seed draws random weights."""
    plain = {
        "seed": 0, "optimizer": {"learning_rate": 1e-3}, "adapter": {"method": "lora", "rank": 8, "alpha": 16},
        "restart": {"every": 5}, "base": {"random_init": True}, "schedule": {},
        "labels": {"stage": "a"},
    }  # fmt: skip
    same = plain | {"seed": 1, "optimizer": {"learning_rate": 1e-2}, "labels": {"stage": "b"}}
    assert compatible.group_key(plain) != compatible.group_key(same)
    assert compatible.shapes_key(plain) == compatible.shapes_key(same)
    wider = plain | {"adapter": {**plain["adapter"], "rank": 4}}
    assert compatible.shapes_key(plain) != compatible.shapes_key(wider)


def test_what_is_known_is_kept_and_a_damaged_file_counts_as_none(tmp_path):
    path = tmp_path / "known.json"
    for text in ("{", "[1]", '{"a": 1}'):
        path.write_text(text)
        assert counted.Counted(path).get("one") is None
    first = counted.Counted(path)
    for number in range(counted.MOST + 5):
        first._found[str(number)] = {}
    first.put("one", {"trainable": 1, "frozen": 2, "bytes": None})
    second = counted.Counted(path)
    assert second.get("one") == {"trainable": 1, "frozen": 2, "bytes": None}
    assert second.get("two") is None
    assert len(json.loads(path.read_text())) == counted.MOST
    counted.Counted(tmp_path / "known.json" / "below").put("one", {})  # it cannot be written
    counted.Counted(None).put("one", {})


@pytest.mark.parametrize(
    "damaged", [{"trainable": "x", "bytes": 1}, {"trainable": [1], "bytes": None}, {"trainable": 1, "bytes": "y"}]
)
def test_damaged_needs_are_counted_again(tmp_path, damaged):
    path = tmp_path / counted.FILE
    path.write_text(json.dumps({counted._digest("one"): damaged}))
    assert counted.Counted(path).get("one") is None


def test_previews_at_the_same_time_keep_what_each_has_counted(tmp_path):
    first, second = counted.Counted(tmp_path / counted.FILE), counted.Counted(tmp_path / counted.FILE)
    first.put("one", {"trainable": 1, "bytes": 1})
    second.put("two", {"trainable": 2, "bytes": None})
    found = counted.Counted(tmp_path / counted.FILE)
    assert (found.get("one"), found.get("two")) == ({"trainable": 1, "bytes": 1}, {"trainable": 2, "bytes": None})
