"""Table 2 of MoRA at laptop scale: rates chosen at 50 of 100 steps, then full rows at the best.

    python -m experiments.sweep --config=configs/mora_uuid.py --grid=configs/sweeps/uuid_laptop.py \\
        --results=experiments/results/uuid_laptop

Two CPU cores, 10 minutes. The base has about 3M parameters, so the rates are far above the paper's. Every grid has a
rate on both sides of the one that was chosen.
"""

from configs.hyperparameters.stages import rates_then_seeds

SCALE = "laptop"
TRIAL_STEPS = 50
SEEDS = (0,)
RATES = {
    "method=fft": (3e-4, 1e-3, 3e-3),
    "method=lora,rank=8": (1e-3, 3e-3, 1e-2, 3e-2),
    "method=mora,rank=8": (1e-3, 3e-3, 1e-2),
}


def stages():
    """[(stage, cells)]: the rates, then the rows of the table."""
    grids = {f"scale={SCALE},{method}": rates for method, rates in RATES.items()}
    return rates_then_seeds(grids, "best:rates", SEEDS, tried={"train.stop_at": TRIAL_STEPS})
