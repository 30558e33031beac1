"""configs/sweeps/rates_*.py: rows that fit both bases, rates and ranks in few programs, one run a rate and seed."""

import collections
import math
from pathlib import Path

import pytest
from config_files import unpack_file
from grids import swept

from configs.hyperparameters import rates
from experiments.sweeps.compatible import group_key
from experiments.sweeps.grid import Grid, check_cells
from lowrank_jax.adapters import AdapterConfig
from lowrank_jax.adapters.base import AdapterSpec
from lowrank_jax.adapters.mora import square_size
from lowrank_jax.core.errors import UserError
from lowrank_jax.models.registry import get_model

ROOT = Path(__file__).parents[1]
GRIDS = {"rates_gsm8k": "mora_finetune", "rates_dolly": "mora_finetune", "rates_uuid": "mora_uuid"}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def grid_of(name, arg=""):
    return Grid(f"configs/{GRIDS[name]}.py", f"configs/sweeps/{name}.py:{arg}")


def stages(grid):
    return collections.Counter(cell.stage for cell in grid.cells.values())


def far(cells):
    return dict.fromkeys(("far1", "far2", "far3"), cells)


def test_rates_are_in_equal_factors():
    assert rates.rates_tried(1e-4, 4, 3) == [1e-4, 2.15e-4, 4.64e-4, 1e-3]
    literature = rates.rates_tried(1e-4, 13, 4)
    assert (literature[0], literature[4], literature[-1]) == (1e-4, 1e-3, 1e-1)


@pytest.mark.parametrize("name", ["rates_gsm8k", "rates_dolly"])
def test_the_grids_of_answers(name):
    """19 rows that a run takes; LoRA's four ranks share a program, so 13 programs."""
    grid = grid_of(name, "rates=2,seeds=1,steps=40,model=gemma3-270m")
    assert stages(grid) == {"swept": 38, "wider1": 19, "wider2": 19, "wider3": 19, "near": 57, **far(19)}
    swept = [cell for cell in grid.cells.values() if cell.stage == "swept"]
    check_cells(swept)
    assert len({group_key(cell.plain) for cell in swept}) == 13
    assert {cell.plain["train"]["steps"] for cell in swept} == {40}
    assert all(cell.plain["evals"]["forgetting"]["add_bos"] for cell in swept)
    adapted = [cell.plain for cell in swept if cell.plain["trainable"] == "adapters"]
    assert {plain["adapter"]["alpha"] for plain in adapted} == {16.0}
    scalings = {plain["labels"]["method"]: plain["adapter"]["scaling"] for plain in adapted}
    assert scalings == {"lora": "standard", "rslora": "rslora", "dora": "standard", "mora": "standard"}


def test_the_best_is_by_held_out_loss_and_the_first_seed_is_not_trained_again():
    grid = grid_of("rates_gsm8k", "rates=3")

    def outcome(rate, _):
        held = {"step": 150, "loss": abs(rate - 2.15e-4)}  # training prefers the smallest
        return {"losses": [[1, rate]], "evaluations": [held]}

    ran = swept(grid, grid.select(only="method=dora,rank=8"), outcome)
    assert ran[:3] == [("swept", rate, 0) for rate in (1e-4, 2.15e-4, 4.64e-4)]
    assert ran[3:] == [("near", rate, seed) for seed in (1, 2) for rate in (2.15e-4, 1e-4, 4.64e-4)]


def test_the_grid_of_pairs():
    """11 rows of five rates; Gemma's rows wait for SmolLM2's."""
    grid = grid_of("rates_uuid")
    assert stages(grid) == {"swept": 55, "wider1": 11, "wider2": 11, "wider3": 11, "near": 99, **far(33)}
    check_cells(list(grid.cells.values()))
    plain = next(iter(grid.cells.values())).plain
    assert (plain["task"]["pairs"], plain["train"]["batch_size"], plain["train"]["steps"]) == (500, 125, 300)
    assert plain["train"]["eval_steps"] == [50, 100, 150, 200, 250]
    laptop = grid_of("rates_uuid", "model=pico-llama")
    assert stages(laptop) == {"swept": 30, "wider1": 6, "wider2": 6, "wider3": 6, "near": 54, **far(18)}
    check_cells(list(laptop.cells.values()))
    plain = next(iter(laptop.cells.values())).plain
    assert (plain["base"]["name"], plain["task"]["pairs"], plain["train"]["steps"]) == ("pico-llama", 64, 50)
    near = [cell for cell in laptop.cells.values() if cell.stage == "near"]
    assert {(cell.plain["seed"], cell.plain["task"]["seed"]) for cell in near} == {(0, 0), (1, 1), (2, 2)}
    gemma = grid_of("rates_uuid", "model=gemma3-270m")
    assert set(grid.cells) < set(gemma.cells)
    near = [cell for name, cell in gemma.cells.items() if name not in grid.cells]
    assert (len(near), {cell.stage for cell in near}) == (33, {"near"})
    assert {cell.plain["base"]["name"] for cell in near} == {"gemma3-270m"}
    trials = {trial for cell in near for trial in cell.trials}
    assert trials <= set(grid.cells)
    assert {gemma.cells[trial].plain["base"]["name"] for trial in trials} == {"smollm2-135m"}


def losses_of(best_at):
    """Outcomes of (rate, seed) by the distance from the best rate of each seed, in decades."""
    return lambda rate, seed: {"losses": [[1, abs(math.log10(rate / best_at[seed]))]]}


MIDDLE, HIGH, LOW = (3.16e-3,) * 3, (3.16e-3, 1e-1, 1e-1), (3.16e-3, 1e-4, 1e-4)


@pytest.mark.parametrize(
    ("best_at", "far"),
    [
        (MIDDLE, []),
        (HIGH, [("far1", 3.16e-2, seed) for seed in (1, 2)] + [("far2", 1e-1, seed) for seed in (0, 1, 2)]
         + [("far3", 3.16e-1, seed) for seed in (0, 1, 2)]),
        (LOW, [("far1", 3.16e-4, seed) for seed in (1, 2)] + [("far2", 1e-4, seed) for seed in (0, 1, 2)]
         + [("far3", 3.16e-5, seed) for seed in (0, 1, 2)]),
    ],
)  # fmt: skip
def test_a_best_mean_at_an_end_of_the_rates_with_all_seeds_is_widened(best_at, far):
    """At one seed the best is in the middle; a rate tried at one seed gets the others, then the series goes on."""
    grid = grid_of("rates_uuid")
    ran = swept(grid, grid.select(only="method=lora,rank=8"), losses_of(best_at))
    assert [rate for stage, rate, seed in ran if (stage, seed) == ("near", 1)] == [3.16e-3, 1e-3, 1e-2]
    found = [run for run in ran if run[0].startswith("far")]
    assert [(stage, seed) for stage, _, seed in found] == [(stage, seed) for stage, _, seed in far]
    assert [rate for _, rate, _ in found] == pytest.approx([rate for _, rate, _ in far], rel=5e-3)


def test_gemma_takes_the_best_rate_by_the_mean_over_seeds():
    grid = grid_of("rates_uuid", "model=gemma3-270m")
    best_at = (3.16e-3, 1e-2, 1.2e-2)  # of one seed 3.16e-3; of the mean 1e-2
    ran = swept(grid, grid.select(only="method=lora,rank=8"), losses_of(best_at))
    assert ran[-3:] == [("near", rate, 0) for rate in (1e-2, 3.16e-3, 3.16e-2)]


@pytest.mark.parametrize("base", ["smollm2-135m", "gemma3-270m"])
def test_every_square_fits_and_none_of_the_next_rank_does(base):
    model = get_model(base)
    wide, heads = model.hidden_size, model.num_attention_heads * model.head_dim
    values = model.num_key_value_heads * model.head_dim
    kernels = ((wide, heads), (wide, values), (heads, wide), (wide, model.intermediate_size))
    kernels += ((model.intermediate_size, wide),)

    def sizes(rank):
        config = AdapterConfig("mora", rank=rank)
        specs = (AdapterSpec(d_in, d_out, rank, config=config) for d_in, d_out in kernels)
        return [square_size(spec) for spec in specs]

    assert all(sizes(rank) for rank in rates.MORA_RANKS)
    (left_out,) = set(rates.RANKS) - set(rates.MORA_RANKS)
    with pytest.raises(UserError, match="too large"):
        sizes(left_out)


def test_uuid_pairs_by_rslora_and_dora():
    rslora, dora = (unpack_file(f"configs/mora_uuid.py:scale=gpu,method={name}") for name in ("rslora", "dora"))
    assert (rslora.labels["method"], rslora.adapter.method, rslora.adapter.scaling) == ("rslora", "lora", "rslora")
    assert (dora.labels["method"], dora.adapter.method, dora.adapter.scaling) == ("dora", "dora", "standard")
