"""Values that earlier cells of a grid decide: neighbours of the best, a widened edge, runs once; arguments of grids."""

import pytest
from grids import swept

from experiments.sweeps.best import NotNeeded, chosen_value, parse
from experiments.sweeps.grid import Grid
from lowrank_jax.core.errors import UserError

PATH = "optimizer.learning_rate"
# Rates, stages that add one beyond a best at an end, and two seeds near the best.
SEARCH = """
def stages(arg=None):
    rates = [float(word) for word in (arg or "1e-3").split(",")[0].split("/")]
    tried, found = "swept", [("swept", [dict(arg="rank=8", overrides={"optimizer.learning_rate": r}) for r in rates])]
    for step in range(3):
        value = f"best:{tried}::beyond"
        found.append((f"wider{step}", [dict(arg="rank=8", overrides={"optimizer.learning_rate": value})]))
        tried += f"+wider{step}"
    near = [dict(arg="rank=8", once=True, overrides={"optimizer.learning_rate": f"best:{tried}::{which}", "seed": seed})
            for seed in (0, 1) for which in ("", "lower", "higher")]
    return [*found, ("near", near)]
"""


def trained(grid, loss):
    """`swept` of all cells, with `loss(rate)` in every step; None: the run diverges."""

    def outcome(rate, _):
        found = loss(rate)
        losses = [[step, found] for step in range(1, 21)]
        return {"status": "diverged" if found is None else "finished", "losses": losses}

    return swept(grid, grid.select(), outcome)


@pytest.mark.parametrize(
    ("rates", "best", "wider", "near"),
    [
        ("1e-4/1e-3/1e-2", 1e-3, [], [1e-3, 1e-4, 1e-2]),  # inside: nothing is widened
        ("1e-4/1e-3/1e-2", 1e-1, [1e-1, 1.0], [1e-1, 1e-2, 1.0]),  # the largest, until one beyond it is worse
        ("1e-3/2e-3/4e-3", 1e-4, [5e-4, 2.5e-4, 1.25e-4], [1.25e-4, 6.25e-5, 2.5e-4]),  # still an edge after three
    ],
)
def test_an_edge_is_widened_and_the_best_has_neighbours(grid_files, rates, best, wider, near):
    """One seed of each rate; then two near the best, of which those that were trained already are left out."""
    (grid_files / "search.py").write_text(SEARCH)
    grid = Grid(str(grid_files / "config.py"), f"{grid_files / 'search.py'}:{rates}")
    ran = trained(grid, lambda rate: abs(rate - best))
    tried = [float(rate) for rate in rates.split("/")]
    assert [run[1:] for run in ran if run[0] == "swept"] == [(rate, 0) for rate in tried]
    assert [run[1] for run in ran if run[0].startswith("wider")] == pytest.approx(wider, rel=1e-3)
    seeds = {seed: [rate for stage, rate, one in ran if stage == "near" and one == seed] for seed in (0, 1)}
    assert seeds[1] == pytest.approx(near, rel=1e-3)
    assert seeds[0] == pytest.approx([rate for rate in near if rate not in (*tried, *wider)], rel=1e-3)


def test_a_rate_that_diverged_was_tried(grid_files):
    """The best below it is no edge."""
    (grid_files / "search.py").write_text(SEARCH)
    grid = Grid(str(grid_files / "config.py"), f"{grid_files / 'search.py'}:1e-4/1e-3/1e-2")
    ran = trained(grid, lambda rate: None if rate > 5e-3 else 1 - rate)
    assert not [run for run in ran if run[0].startswith("wider")]
    assert [run[1] for run in ran if run[0] == "near"] == pytest.approx([1e-3, 1e-4, 1e-2])
    assert ran[-1][2] == 1


def test_what_a_choice_refuses(grid_files):
    for wrong in ("nearest", "lower:2", "beyond:mean:3", "mean"):
        with pytest.raises(UserError, match="WHICH of lower, higher, beyond, and :mean after it") as refused:
            parse(f"best:rates:loss:{wrong}")
        assert "\n" not in str(refused.value)
    one = {"status": "finished", "losses": [[1, 1.0]], "config": {"optimizer": {"learning_rate": 1e-3}}}
    with pytest.raises(UserError, match="a step needs two values above 0"):
        chosen_value([one], PATH, parse("best:rates::higher"))
    with pytest.raises(UserError, match=r"its stages takes no argument; leave out 'seeds=3'"):
        Grid(str(grid_files / "config.py"), f"{grid_files / 'grid.py'}:seeds=3")


NAN = float("nan")


def results_of(losses):
    """Results by {rate: losses of seeds 0, 1, ...}; None: that seed has no result, as its run failed."""
    return [
        {
            "status": "finished",
            "losses": [[1, 0.0]],
            "evaluations": [{"step": 1, "loss": loss}],
            "config": {"seed": seed, "optimizer": {"learning_rate": rate}},
        }
        for rate, by_seed in losses.items()
        for seed, loss in enumerate(by_seed)
        if loss is not None
    ]


@pytest.mark.parametrize(
    ("losses", "best", "beyond"),
    [
        # the best of one run is at 1e-4, of the means at 1e-3, which lies between rates with as many seeds
        ({1e-4: (0.1, 9), 1e-3: (1, 1), 1e-2: (2, 2)}, 1e-3, None),
        ({1e-4: (2, 2), 1e-3: (1, 1), 1e-2: (0.5, 0.5), 1e-1: (0.1,)}, 1e-2, 1e-1),  # tried at one seed, however good
        ({1e-5: (0.1,), 1e-4: (0.5, 0.5), 1e-3: (1, 1), 1e-2: (2, 2)}, 1e-4, 1e-5),
        ({1e-4: (2, 2), 1e-3: (1, 1)}, 1e-3, 1e-2),  # nothing beyond was tried
        ({1e-4: (1, 1), 1e-3: (2, 2)}, 1e-4, 1e-5),
        ({1e-4: (1, 1), 1e-3: (0.5, NAN), 1e-2: (2, 2)}, 1e-4, 1e-5),  # a mean that is not finite is never the best
        ({1e-4: (2, 2), 1e-3: (1, 1), 1e-2: (NAN,)}, 1e-3, None),  # diverged beyond: no better rate lies there
        ({1e-4: (2, 2), 1e-3: (1, 1), 1e-2: (0.5, None)}, 1e-3, 1e-2),  # a seed failed: the rate lacks it
        ({1e-4: (None, 1), 1e-3: (2, 2), 1e-2: (3, 3)}, 1e-3, 1e-4),
        ({1e-4: (NAN,), 1e-3: (NAN, 1)}, None, None),
        ({1e-4: (1, 1), 1e-3: (1, 1), 1e-2: (1, 1), 1e-1: (2, 2)}, 1e-2, None),  # of equals the larger
    ],
)
def test_the_best_by_the_mean_over_seeds_and_what_lies_beyond_it(losses, best, beyond):
    results = results_of(losses)
    assert chosen_value(results, PATH, parse("best:a:loss::mean")) == best
    choice = parse("best:a:loss:beyond:mean")
    if best is not None and beyond is None:
        with pytest.raises(NotNeeded, match="lies between others"):
            chosen_value(results, PATH, choice)
    else:
        assert chosen_value(results, PATH, choice) == beyond


def test_the_neighbours_of_a_best_mean():
    results = results_of({1e-4: (0.1, 9), 1e-3: (1, 1), 1e-2: (2,)})
    assert chosen_value(results, PATH, parse("best:a:loss:lower:mean")) == 1e-4
    assert chosen_value(results, PATH, parse("best:a:loss:higher:mean")) == 1e-2


def test_the_best_mean_of_values_that_are_no_numbers():
    """Names are chosen from as rates are; of equals the larger."""
    results = results_of({"constant": (1, 3), "cosine": (2, 1.5), "linear": (0.1,)})
    assert chosen_value(results, PATH, parse("best:a:loss::mean")) == "cosine"
    results = results_of({"constant": (1, 3), "cosine": (2, 2)})
    assert chosen_value(results, PATH, parse("best:a:loss::mean")) == "cosine"
