"""The two stages of most grids: each argument at all of its rates, then at its best one with every seed."""

RATE = "optimizer.learning_rate"


def rates_then_seeds(grids, best, seeds, tried=None, full=None):
    """[("rates", cells), ("full", cells)].

    Args:
      grids: a config's argument -> the learning rates that are tried for it, with the first seed.
      best: how one of them is chosen, "best:rates" or with a score as "best:rates:loss".
      seeds: of the full runs.
      tried, full: further overrides of the cells of each stage.
    """
    rates = [
        dict(arg=arg, overrides={**(tried or {}), RATE: rate, "seed": seeds[0]})
        for arg, tried_rates in grids.items()
        for rate in tried_rates
    ]
    rows = [dict(arg=arg, overrides={**(full or {}), RATE: best, "seed": seed}) for arg in grids for seed in seeds]
    return [("rates", rates), ("full", rows)]
