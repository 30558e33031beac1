"""LoRA's Table 16 (MNLI with few training rows) on one GPU: SmolLM2-135M, six methods, four rates, then five seeds.

    python -m experiments.sweep --config=configs/lora_mnli.py --grid=configs/sweeps/mnli_lowdata.py --together=5 \\
        --results=experiments/results/mnli_lowdata
    python -m experiments.tables lora_table16 --model=smollm2-135m

Rates: half of the epochs with a whole schedule of their own, one seed; of a method's rates at one number of rows the
one whose best epoch has the lowest held-out loss wins, by one rule for all methods. They lie above GPT-3's, as smaller
bases take larger ones; the prefix methods' lie around PreLayer's best on WikiSQL (wikisql_sample.py). LoRA and MoRA
have r=8, Adapter-H a bottleneck of 8. Virtual tokens are Table 17's: PreEmbed has 16 (100 rows) or 32 prefix tokens,
PreLayer 8, and both have 8 infix tokens.
BitFit is left out: SmolLM2 has no biases.

Texts have at most 384 tokens (280 in a sample of 10,469 rows; GPT-3's runs allow 768, which takes twice the memory),
and every epoch is scored on 2,000 evenly spaced rows of the 9,815.

10,000 rows and all of them need MNLI's whole training file; add them to EPOCHS. With a part of it, add
--config.task.allow_partial=true: every record then has a note that its data are incomplete.
"""

MODEL = "smollm2-135m"
EPOCHS = {100: 20, 1_000: 20}  # number of training rows -> epochs of a trial
SEEDS = (0, 1, 2, 3, 4)
RATES = {
    "method=fft": (1e-5, 3e-5, 1e-4, 3e-4),
    "method=lora": (3e-4, 1e-3, 3e-3, 1e-2),
    "method=mora": (3e-4, 1e-3, 3e-3, 1e-2),
    "method=adapter-h": (1e-4, 3e-4, 1e-3, 3e-3),
    "method=preembed": (3e-3, 1e-2, 3e-2, 1e-1),
    "method=prelayer": (3e-3, 1e-2, 3e-2, 1e-1),
}
BEST = "best:rates:best/loss"
SMALL = {"task.seq_len": 384, "task.max_dev_examples": 2_000}


def stages():
    """[(stage, cells)]: the rates, then the rows of the table; by number of training rows."""
    args = {(method, size): f"model={MODEL},{method},train_examples={size}" for size in EPOCHS for method in RATES}
    rates = [
        dict(
            arg=arg,
            overrides={**SMALL, "train.epochs": EPOCHS[size], "optimizer.learning_rate": rate, "seed": SEEDS[0]},
        )
        for (method, size), arg in args.items()
        for rate in RATES[method]
    ]
    full = [
        dict(arg=arg, overrides={**SMALL, "optimizer.learning_rate": BEST, "seed": seed})
        for arg in args.values()
        for seed in SEEDS
    ]
    return [("rates", rates), ("full", full)]
