"""Table 2 of MoRA at gpu scale: three learning rates a method at 200 steps, then full rows at each method's best.

    python -m experiments.sweep --config=configs/mora_uuid.py --grid=configs/sweeps/uuid_table2.py \\
        --results=experiments/results/uuid_gpu

The paper searched LoRA {1e-4, 2e-4, 3e-4}, MoRA {5e-5, 1e-4, 2e-4} and gave FFT 3e-5, on LLaMA-2 7B; a 135M base takes
larger rates. A search run keeps the full run's warm-up and decay but stops early: it sees the first 200 of those rates.
r=256 is left out: its square (735) is wider than the base's layers (576).
"""

from configs.hyperparameters.stages import RATE, rates_then_seeds

SCALE = "gpu"
TRIAL_STEPS = 200
LAST = 900  # the last step of the paper's table; the schedule still decays over all 1,000
SEEDS = (0,)
RATES = {
    "method=mora,rank=32": (3e-4, 1e-3, 3e-3),
    "method=lora,rank=32": (1e-3, 3e-3, 1e-2),
    "method=mora,rank=8": (1e-3, 3e-3, 1e-2),
    "method=lora,rank=8": (3e-3, 1e-2, 3e-2),
    "method=fft": (1e-4, 3e-4, 1e-3),
}
# LoRA's best rate over 200 steps is unstable in the full row: the next lower one is run in full too, and the table
# takes the row with the lower loss.
ALSO_FULL = {"method=lora,rank=8": 3e-3, "method=lora,rank=32": 1e-3}


def stages():
    """[(stage, cells)]: the rates, then the rows of the table."""
    grids = {f"scale={SCALE},{method}": rates for method, rates in RATES.items()}
    tried, last = {"train.stop_at": TRIAL_STEPS}, {"train.stop_at": LAST}
    rates, (stage, full) = rates_then_seeds(grids, "best:rates", SEEDS, tried, last)
    also = [dict(arg=f"scale={SCALE},{method}", overrides={RATE: rate, **last}) for method, rate in ALSO_FULL.items()]
    return [rates, (stage, full + also)]
