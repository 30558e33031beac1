"""sweeps.grid: cells and the trials they need, the rate a stage chooses, bad grids, and the grids that ship."""

from pathlib import Path

import pytest

from experiments.sweeps import engine
from experiments.sweeps.grid import Grid, best_value, check_cells
from experiments.sweeps.wandb_file import wandb_sweep
from lowrank_jax.core.errors import UserError

ROOT = Path(__file__).parents[2]


def make(folder, grid="grid.py"):
    return Grid(str(folder / "config.py"), str(folder / grid))


def test_a_tie_takes_the_larger_rate_and_divergence_never_wins():
    def result(rate, losses, status="finished"):
        return {"status": status, "losses": losses, "config": {"optimizer": {"learning_rate": rate}}}

    flat = [[step, 1.0] for step in range(1, 31)]
    late = [[step, 9.0 if step <= 10 else 1.0] for step in range(1, 31)]  # only the last 20 steps count
    path = "optimizer.learning_rate"
    assert best_value([result(1e-3, flat), result(3e-3, late), result(1e-2, flat, "diverged")], path) == 3e-3
    assert best_value([result(1e-3, flat), result(1e-2, [[1, 0.5], [2, None]])], path) == 1e-3
    assert best_value([result(1e-2, flat, "diverged"), result(1e-3, [])], path) is None


def test_only_and_cell_bring_the_trials_they_need(grid_files):
    grid = make(grid_files)
    full = [name for name, cell in grid.cells.items() if cell.stage == "full"]
    assert [cell.stage for cell in grid.select(name=full[0])] == ["rates"] * 3 + ["full"]
    assert {cell.arg for cell in grid.select(only="lora")} == {"method=lora,rank=8"}
    assert len(grid.select(only="rates-")) == 5
    for wrong in (dict(name="nothing"), dict(only="nothing"), dict(only="(")):
        with pytest.raises(UserError):
            grid.select(**wrong)


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ({"overrides": {"optimizer.learning_rat": 1.0}}, "override 'optimizer.learning_rat'"),
        ({"overrides": {"optimizer.learning_rate": "high"}}, "is a str"),
        ({"overrides": {"train.steps": 1.5}}, "is a float"),
        ({"overrides": {"optimizer.learning_rate": "best:rates"}}, "best:rates"),
        ({"args": ""}, "['args']"),
    ],
)
def test_bad_grids(grid_files, cell, words):
    (grid_files / "bad.py").write_text(f"def cells():\n    return [{cell!r}]\n")
    with pytest.raises(UserError) as error:
        make(grid_files, "bad.py")
    assert words in str(error.value)
    (grid_files / "empty.py").write_text("x = 1\n")
    with pytest.raises(UserError, match="neither"):
        make(grid_files, "empty.py")
    with pytest.raises(UserError, match="there is no file"):
        make(grid_files, "absent.py")


def test_cells_alone_are_one_full_stage_and_repeats_are_one(grid_files):
    (grid_files / "flat.py").write_text(
        "def cells():\n    return [dict(arg='rank=8'), dict(arg='rank=8', overrides={'seed': 1})] * 2\n"
    )
    grid = make(grid_files, "flat.py")
    assert [cell.stage for cell in grid.cells.values()] == ["full", "full"]
    assert all("-lr0.001-" in name for name in grid.cells)


@pytest.mark.parametrize("grid", ["uuid_table2.py", "uuid_laptop.py", "uuid_gemma.py"])
def test_the_shipped_grids_fit_the_config(grid):
    """Every full row has at least two trials, each the row's own first steps, or a fixed rate that was tried too."""
    made = Grid(str(ROOT / "configs" / "mora_uuid.py"), str(ROOT / "configs" / "sweeps" / grid))
    full = [cell for cell in made.cells.values() if cell.stage == "full"]
    fixed = [cell for cell in full if not cell.trials]
    assert len(full) > len(fixed)
    assert all(len(cell.trials) >= 2 for cell in full if cell not in fixed)
    rate = lambda cell: (cell.arg, cell.overrides["optimizer.learning_rate"])  # noqa: E731
    assert {rate(cell) for cell in fixed} <= {rate(cell) for cell in made.cells.values() if cell.stage == "rates"}
    for cell in full:
        for trial in (made.cells[name] for name in cell.trials):
            assert trial.steps < cell.steps <= cell.plain["train"]["steps"]
            assert trial.plain["schedule"] == cell.plain["schedule"]


def test_keys_for_every_cell_come_from_the_command_line(tmp_path, monkeypatch):
    """Typed as the config has them; a cell's own override wins; each cell's command gives the cell's config."""
    monkeypatch.chdir(ROOT)
    file = tmp_path / "grid.py"
    file.write_text("def cells():\n    return [dict(arg='method=lora'), dict(arg='', overrides={'train.steps': 9})]\n")
    keys = ["train.steps=7", "optimizer.learning_rate=1e-4", "export.adapter=false", "train.eval_steps=(2,)", "name=3"]
    made = Grid("configs/mora_uuid.py", str(file), [*keys, 'adapters=[{"method": "houlsby"}]'])
    first, second = (cell.plain for cell in made.cells.values())
    assert (first["train"]["steps"], second["train"]["steps"]) == (7, 9)
    assert first["optimizer"]["learning_rate"] == 1e-4
    assert (first["export"]["adapter"], first["train"]["eval_steps"]) == (False, [2])
    assert first["adapters"] == [{"method": "houlsby"}]
    command = engine.Sweep(made, str(tmp_path)).command(next(iter(made.cells.values())))
    assert {"--config.train.steps=7", "--config.export.adapter=false", "--config.train.eval_steps=(2,)"} <= {*command}
    for wrong, words in (
        ("train.step=7", "no 'step' there"),
        ("train.steps=many", "the config has 100"),
        ("export.adapter=1", "wanted true or false"),
        ("train.steps", "has no value"),
        ("evals=quick", "config.evals is not JSON"),
    ):
        with pytest.raises(UserError, match=words):
            Grid("configs/mora_uuid.py", str(file), [wrong])


def test_the_shipped_grid_of_ranks_takes_ones_own_text(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    keys = [f"task.path={tmp_path / 'mine.jsonl'}"]
    cells = list(Grid("configs/mora_uuid.py:data=text", "configs/sweeps/ranks.py", keys).cells.values())
    assert [(cell.plain["labels"]["method"], cell.plain["labels"]["rank"]) for cell in cells] == [
        (method, rank) for method in ("lora", "mora") for rank in (2, 4, 8)
    ]
    assert {cell.plain["task"]["path"] for cell in cells} == {str(tmp_path / "mine.jsonl")}
    sweep = wandb_sweep(cells, {"config": "c.py", "results": ""}, keys)
    assert sweep["command"][3:-1] == ["--config=c.py", f"--config.{keys[0]}"]


WORDS = (
    "task.validation_path=held.jsonl", "task.validation_path=12", "task.validation_path=('a','b')", "base.revision=123",
    "base.revision=1e5", "base.revision=true", "start.adapter=5", "name=7", "task.path=a=b", "task.packed=True",
    "train.eval_steps=5", "train.eval_steps=1,2", "train.eval_steps=[1,2]", "train.eval_steps=()", "adapter.alpha=8",
    "adapter.targets=query", "adapter.targets=('query',)", "tracking.tags=a", "seed=3", "labels.scale=mine",
    "trainable=bitfit", 'trainable=[["adapters/.*", true], [".*", false]]', 'evals={"a": {"every": 2}}', "evals={}",
    'adapters=[{"method": "houlsby"}]', "adapters=[]",
)  # fmt: skip


@pytest.mark.parametrize("word", WORDS)
def test_a_key_of_all_cells_is_what_it_is_for_a_run(word, tmp_path):
    """The cell's config is that of the command that the sweep starts, and of a run with the same flag."""
    from absl import flags
    from ml_collections import config_flags

    from experiments.cli import complete_file
    from experiments.config.json_flags import take
    from experiments.config.labels import with_labels
    from experiments.config.plain import to_plain
    from experiments.sweeps.engine import Sweep

    def of_flags(file, words):
        values, config = flags.FlagValues(), complete_file(file)
        words = take(config, ["run", *words])
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=words)
        values(words)
        return with_labels(to_plain(values["config"].value.copy_and_resolve_references()))

    file = tmp_path / "grid.py"
    file.write_text("def cells():\n    return [dict()]\n")
    config = "configs/mora_uuid.py:data=text"
    made = Grid(config, str(file), [word])
    (cell,) = made.cells.values()
    assert cell.plain == of_flags(config, [f"--config.{word}"])
    words = Sweep(made, str(tmp_path)).command(cell)
    assert cell.plain == of_flags(config, [one for one in words if one.startswith("--config.")])


def test_a_cell_that_no_run_takes_is_refused_before_any_is_trained(grid_files):
    grid_files.joinpath("bad.py").write_text(
        "def cells():\n    return [dict(arg='method=fft', overrides={'train.steps': steps}) for steps in (3, -3)]\n"
    )
    cells = Grid(f"{grid_files / 'config.py'}", str(grid_files / "bad.py")).select()
    with pytest.raises(UserError, match=r"^cell mora_uuid-toy-fft-.*train\.steps"):
        check_cells(cells)
    check_cells(cells[:1])
