"""MoRA's Table 3 at small size on one GPU: three rates a method, then two more seeds at each method's best.

    python -m experiments.sweep --config=configs/mora_pretrain.py:data=FOLDER --grid=configs/sweeps/pretrain_small.py \\
        --together=3 --results=experiments/results/mora_pretrain

1,500 steps of 64 x 256 bytes, four merges. By arithmetic a step is 1.4 TFLOP and a run under a minute on an H200; the
25 runs should take 15 to 20 minutes with compiling. Rates are chosen by the held-out loss after the whole length, as
what restarts do depends on it; the run of the best rate is the first of three seeds. If the order is not the paper's,
it is checked at double the length before it is reported, by `--config=configs/mora_pretrain.py:data=FOLDER,steps=3000`:
the table's caption (`python -m experiments.tables mora_table3`) says whether that is still to be done, and the outcome.
"""

from configs.hyperparameters.pretrain import OWN_RATES

SEEDS = (0, 1, 2)
BEST = "best:rates:loss"


def stages():
    """[(stage, cells)]: the rates, then the other seeds at the best one."""
    rates = [
        dict(arg=f"method={method}", overrides={"optimizer.learning_rate": rate, "seed": SEEDS[0]})
        for method, grid in OWN_RATES.items()
        for rate in grid
    ]
    full = [
        dict(arg=f"method={method}", overrides={"optimizer.learning_rate": BEST, "seed": seed})
        for method in OWN_RATES
        for seed in SEEDS[1:]
    ]
    return [("rates", rates), ("full", full)]
