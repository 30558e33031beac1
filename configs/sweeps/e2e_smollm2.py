"""Table 3 on one GPU, SmolLM2-135M instead of GPT-2: seven methods at six rates or more, then three seeds at the best.

    python -m experiments.sweep --config=configs/lora_nlg.py --grid=configs/sweeps/e2e_smollm2.py \\
        --config.task.data_dir=FOLDER --results=experiments/results/e2e_smollm2

Start the same command two or three times a GPU: while one run compiles, decodes or scores, the others train. On two
H200 with three sweeps each the rates took 4 minutes; a full run takes 2 to 4, of which 0.4 to 2.6 are steps.

Rates: one epoch with a whole schedule of its own, one seed, nothing decoded; for every method the rate with the lowest
held-out loss wins. Of the first four the largest won for every method; hence two more. PreLayer, which starts at states
(adapter.prefix.init=states), took the largest of six as well; hence two beyond. Over 5 epochs two of three seeds of
LoRA diverged at the rate that won, 1e-2; hence LoRA also has rows at the next smaller rate.

Full rows: 5 epochs, three seeds; the best epoch by held-out loss is decoded. A batch of 8 packed examples has about 72
texts. Trained parameters: LoRA r=4 230,400, MoRA at equal size 229,470, Adapter-L (bottleneck 5) 224,790, Adapter-H
(bottleneck 3) 242,100, PreLayer (8 prefix and 5 infix tokens) 224,640.
"""

MODEL = "smollm2-135m"
SEEDS = (0, 1, 2)
RATES = {
    "method=fft": (2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3),
    "method=ft-top2": (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3),
    "method=adapter-l": (5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2),
    "method=adapter-h": (5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2),
    "method=prelayer": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0),
    "method=lora": (2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2),
    "method=mora": (5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2),
}
BEST, LOWER = "best:rates:loss", "best:rates:loss:lower"
STABLE = {"method=lora": LOWER}  # for methods whose long runs diverge at the rate that won in short ones


def rates(model=MODEL, grids=None):
    """The cells that search the rates on E2E: no decoding, one epoch."""
    return [
        dict(
            arg=f"task=e2e,model={model},{method},packed",
            overrides={"train.epochs": 1, "evals": {}, "optimizer.learning_rate": rate, "seed": SEEDS[0]},
        )
        for method, grid in (grids or RATES).items()
        for rate in grid
    ]


def stages():
    """[(stage, cells)]: the rates, then the rows of the table."""
    full = [
        dict(arg=f"task=e2e,model={MODEL},{method},packed", overrides={"optimizer.learning_rate": rate, "seed": seed})
        for method, rate in [*dict.fromkeys(RATES, BEST).items(), *STABLE.items()]
        for seed in SEEDS
    ]
    return [("rates", rates()), ("full", full)]
