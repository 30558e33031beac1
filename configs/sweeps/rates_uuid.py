"""The fair comparison on UUID pairs: full fine-tuning and five methods at r = 8, 32, each at its own rate.

    python -m experiments.sweep --config=configs/mora_uuid.py --grid=configs/sweeps/rates_uuid.py --together=10 \\
        --config.base.scan_unroll=30 --results=experiments/results/rates_uuid
    ... --grid=configs/sweeps/rates_uuid.py:model=gemma3-270m --config.base.scan_unroll=30

500 pairs, batches of 125, 300 steps: 2.8M tokens. Five rates in half decades at one seed, then three seeds at the best
and its neighbours, and beyond a best mean at an end, by the training loss over the last 20 steps. Digits recalled are
decoded every sixth of the run.

model=pico-llama: the laptop's task (64 pairs in one batch, loss on the value), 50 steps, all methods at r=8, on a CPU:

    python -m experiments.sweep --config=configs/mora_uuid.py --grid=configs/sweeps/rates_uuid.py:model=pico-llama \\
        --results=experiments/results/rates_uuid_laptop

The recorded runs have nine rates, four a decade: model=pico-llama,rates=9,per_decade=4. Each of the three seeds draws
other pairs: with all pairs in one batch, full fine-tuning and MoRA, which starts at zero, would
otherwise train the same run three times.

model=gemma3-270m: one seed at each row's best rate on SmolLM2 and its two neighbours. The best is that of the table
`rates`, by the mean over SmolLM2's seeds; all of SmolLM2's runs come first, and are skipped where --results has them
(with the same flags). Gemma's rates are not widened: the table marks a best one at an end.

Arguments and stages: configs/hyperparameters/rates.py.
"""

from configs.common import Count, parse_arg
from configs.hyperparameters import rates

MODELS = ("smollm2-135m", "gemma3-270m", "pico-llama")
# The lowest rates that are tried at first. Tables of uuid_table2.py and uuid_laptop.py: adapters 1e-3 to 3e-3 and 3e-3,
# full fine-tuning 3e-4 and 1e-3.
FIRST = {"gpu": 3.162e-4, "laptop": 3.162e-4}
FFT_FIRST = {"gpu": 3.162e-5, "laptop": 1e-4}
STEPS = {"gpu": 300, "laptop": 50}
RANKS = {"gpu": (8, 32), "laptop": (8,)}
PAIRS, BATCH = 500, 125  # the laptop's config has its own


def stages(arg=None):
    """[(stage, cells)]: a geometric series of rates, more where the best is at an end, and seeds near the best."""
    choice = parse_arg(arg, model=MODELS, rates=5, per_decade=2, seeds=3, steps=Count)
    scale = "laptop" if choice.model == "pico-llama" else "gpu"
    steps = choice.steps or STEPS[scale]
    common = {
        **rates.BARE, "train.steps": steps,
        "train.eval_steps": tuple(max(1, steps * part // 6) for part in range(1, 6)),
        "schedule.warmup_steps": steps // 10,
    }  # fmt: skip
    if scale == "gpu":
        common |= {"task.pairs": PAIRS, "task.eval_pairs": PAIRS // 2, "train.batch_size": BATCH}
    firsts = {
        f"scale={scale},{method}": (FFT_FIRST if method == "method=fft" else FIRST)[scale]
        for method in rates.methods(RANKS[scale], RANKS[scale])
    }
    drawn = ("task.seed",) if scale == "laptop" else ()
    found = rates.swept(firsts, choice, common)
    found += rates.seeded(firsts, found, choice.seeds, common, drawn=drawn)
    if choice.model != "gemma3-270m":
        return found
    # Both bases have a stage "near". A "best:" finds its runs by stage and argument, so that Gemma's are told apart by
    # the order of theirs: method=lora,rank=8,scale=gpu.
    common |= rates.UUID_GEMMA
    cells = [
        dict(
            arg=f"{arg.partition(',')[2]},scale={scale}",
            like=arg,
            overrides={**common, rates.RATE: value, "seed": 0},
        )
        for arg in firsts
        for value in rates.three(found, "", mean=True)
    ]
    return [*found, (rates.NEAR, cells)]
