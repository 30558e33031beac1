"""Table 2 of MoRA on Gemma 3 270M, at another size: 2,000 pairs, 700 steps; three rates a method, then three seeds.

    python -m experiments.sweep --config=configs/mora_uuid.py --grid=configs/sweeps/uuid_gemma.py \\
        --results=experiments/results/uuid_gemma
    python -m experiments.tables mora_table2 --scale=gpu --results=experiments/results/uuid_gemma.jsonl

Batches of 250 pairs, so that every pair is seen 87 times; in the paper, and in uuid_table2.py up to its step 900, 90
times or more. A search run keeps the full run's warm-up and decay, and stops after 150 steps; the rate with the lowest
training loss over its last 20 steps is taken. Rates: those that uuid_table2.py tried on SmolLM2-135M.
"""

from configs.hyperparameters.rates import UUID_GEMMA
from configs.hyperparameters.stages import rates_then_seeds

RATES = {
    "method=mora,rank=8": (1e-3, 3e-3, 1e-2),
    "method=lora,rank=8": (3e-3, 1e-2, 3e-2),
    "method=fft": (1e-4, 3e-4, 1e-3),
}
STEPS, TRIAL_STEPS = 700, 150
SEEDS = (0, 1, 2)
SIZE = {
    **UUID_GEMMA,
    "task.pairs": 2_000,
    "task.eval_pairs": 1_000,
    "train.batch_size": 250,
    "train.steps": STEPS,
    "train.eval_steps": (300, 500),
    "schedule.warmup_steps": STEPS // 10,
}


def stages():
    """[(stage, cells)]: the rates, then the rows of the table."""
    grids = {f"scale=gpu,{method}": rates for method, rates in RATES.items()}
    return rates_then_seeds(grids, "best:rates", SEEDS, tried={**SIZE, "train.stop_at": TRIAL_STEPS}, full=SIZE)
