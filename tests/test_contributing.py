"""The worked examples of CONTRIBUTING.md: their code is taken from the text and run."""

import os
import re
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, get_args, get_origin

import pytest
from by_path import module_at
from fakes import SWEEP
from fuzz import doors

from experiments import sweep
from experiments.records.results import load_results
from experiments.sweeps import engine
from experiments.sweeps.grid import Grid
from lowrank_jax.adapters import registry
from lowrank_jax.adapters.base import AdapterConfig

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
# A block of code follows the paragraph that ends with its file's name, or goes on after it without another name.
FILES = dict(re.findall(r"`([\w/]+\.py)`[^`]*:\n\n```python\n(.*?)```", TEXT, re.S))


def write(folder: Path, name: str) -> Path:
    """The example's file below a folder."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(FILES[name])
    return path


def load(folder: Path, name: str):
    """The example's file as a module."""
    return module_at(write(folder, name))


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> tuple[Path, Path, Path]:
    """(folder, config, grid) of the table's example."""
    folder = tmp_path_factory.mktemp("example")
    return folder, write(folder, "configs/rank_study.py"), write(folder, "configs/sweeps/rank_study_toy.py")


class TrialsHere:
    """Stands in for the process of experiments.trials that a sweep starts: the program runs in this one."""

    def __init__(self, command, env, pass_fds):
        assert tuple(command[:3]) == engine.TRIALS_PROGRAM
        with pytest.MonkeyPatch.context() as patch:
            for name in env.keys() - os.environ.keys():  # whose claims are lent
                patch.setenv(name, env[name])
            self.ended = doors.call("trials", *command[3:])

    def wait(self):
        assert (self.ended.status, self.ended.fault) == (0, ""), self.ended
        return 0


def test_every_example_is_there():
    assert sorted(FILES) == [
        "configs/rank_study.py",
        "configs/sweeps/rank_study_toy.py",
        "experiments/tables/rank_study.py",
        "lowrank_jax/adapters/vera.py",
        "tests/adapters/test_vera.py",
    ]
    assert re.findall(r"```python\n    \"(.*?)\": \"(.*?)\",\n```", TEXT) == [
        ("rank_study", "experiments.tables.rank_study")
    ]
    assert TEXT.count("```python") == len(FILES) + 1


def test_a_family(tmp_path, monkeypatch):
    """Registered as the text says, VeRA starts at zero, learns, and merges into what its branch computes."""
    family = load(tmp_path, "lowrank_jax/adapters/vera.py").FAMILY
    monkeypatch.setitem(registry.FAMILIES, family.name, family)
    field = AdapterConfig.__dataclass_fields__["method"]
    if get_origin(field.type) is Literal:
        monkeypatch.setattr(field, "type", Literal[(*get_args(field.type), family.name)])
    load(tmp_path, "tests/adapters/test_vera.py").test_it_learns_and_merges()


def test_a_tables_cells(study):
    """The grid over the config: four cells, of which those of one seed can share a program."""
    _, config, grid = study
    cells = Grid(str(config), str(grid)).select()
    assert [(cell.plain["adapter"]["rank"], cell.plain["seed"]) for cell in cells] == [(8, 0), (8, 1), (16, 0), (16, 1)]
    assert all(cell.name.startswith(f"rank_study-lora-r{cell.plain['adapter']['rank']}-") for cell in cells)


def test_a_table(study, monkeypatch):
    """One seed of the grid, run by the command of the text, and printed by its module through the list of tables."""
    interface = pytest.importorskip("experiments.tables.table")
    from experiments import tables

    folder, config, grid = study
    command = re.search(r"python -m experiments\.sweep --config=configs/rank_study\.py .*", TEXT).group()
    words = command.replace("configs/sweeps/rank_study_toy.py", str(grid)).replace("configs/rank_study.py", str(config))
    words = words.replace("experiments/results/", f"{folder}/").split()[3:]
    given = dict(word.removeprefix("--").split("=", 1) for word in words)
    assert given.keys() == {"config", "grid", "together", "results"}
    options = SimpleNamespace(**SWEEP | given, workdir=f"{folder}/runs")
    options.only = "seed0"
    monkeypatch.setattr(engine, "subprocess", SimpleNamespace(Popen=TrialsHere))
    monkeypatch.setattr("experiments.tables.figures.draw_run", lambda _result, path: path)
    before = signal.getsignal(signal.SIGTERM)
    done = doors.call("sweep", main=lambda: sweep.sweep_main(options))
    signal.signal(signal.SIGTERM, before)
    assert (done.status, done.fault) == (0, ""), done

    module = load(folder, "experiments/tables/rank_study.py")
    monkeypatch.setitem(tables.TABLES, "rank_study", "experiments.tables.rank_study")
    monkeypatch.setitem(sys.modules, "experiments.tables.rank_study", module)
    assert tables.find(["rank_study"]) is module
    table = module.table(load_results([folder / "rank_study"]), None)
    assert isinstance(table, interface.Table)
    assert [(line[0], line[2], line[3]) for line in table.lines] == [
        ("method", "paper", "seeds"),
        ("LoRA 8", "0.36", "1"),
        ("LoRA 16", "0.25", "1"),
    ]
    assert all(3 < float(line[1]) < 7 for line in table.lines[1:])
    assert module.figures(table, folder) == []
