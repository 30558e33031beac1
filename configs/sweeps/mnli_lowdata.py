"""LoRA's Table 16 (MNLI with few training rows) on one GPU: SmolLM2-135M, four methods, three rates, five seeds.

    python -m experiments.sweep --config=configs/lora_mnli.py --grid=configs/sweeps/mnli_lowdata.py --together=15 \\
        --results=experiments/results/mnli_lowdata
    python -m experiments.tables sweep --results=experiments/results/mnli_lowdata.jsonl

Every cell is a whole run, and the rate is chosen from the records by one rule for all methods: of a method's rates at
one number of rows, the one with the best median over its seeds of the score after the last epoch. Grids are a factor of
3 around values above GPT-3's, as smaller bases take larger rates. A method's adapters are as large as LoRA's r=8, or as
near as their size goes (r=8 of Adapter-H). BitFit is left out: SmolLM2 has no biases.

10,000 rows and all of them need MNLI's whole training file; add them by SIZES. With a part of it, add
--config.task.allow_partial=true: every record then says so.
"""

MODEL = "smollm2-135m"
SIZES = (100, 1_000)
SEEDS = (0, 1, 2, 3, 4)
RATES = {
    "method=fft": (1e-5, 3e-5, 1e-4),
    "method=lora": (3e-4, 1e-3, 3e-3),
    "method=mora": (3e-4, 1e-3, 3e-3),
    "method=adapter-h": (3e-4, 1e-3, 3e-3),
}


def cells():
    """[cell]: by number of rows, with a method's rates and seeds one after the other."""
    return [
        dict(
            arg=f"model={MODEL},{method},train_examples={size}",
            overrides={"optimizer.learning_rate": rate, "seed": seed},
        )
        for size in SIZES
        for method, rates in RATES.items()
        for rate in rates
        for seed in SEEDS
    ]
