"""Runs of a grid with results that are made up."""

from experiments.sweeps.best import NotNeeded


def swept(grid, cells, outcome):
    """The runs of a grid whose results are made up, in order, as (stage, rate, seed).

    Args:
      grid: an `experiments.sweeps.grid.Grid`.
      cells: those of it that are wanted, of `grid.select`.
      outcome: (rate, seed) -> fields of a finished run's result; None: the run failed.
    """
    results, ran = {}, []
    for cell in cells:
        try:
            ready = grid.resolve(cell, results)
        except NotNeeded:
            results[cell.name] = None
            continue
        rate = ready.plain["optimizer"]["learning_rate"]
        ran.append((ready.stage, rate, ready.plain["seed"]))
        found = outcome(rate, ready.plain["seed"])
        made = {"name": ready.name, "status": "finished", "config": ready.plain}
        results[cell.name] = None if found is None else {**made, **found}
    return ran
