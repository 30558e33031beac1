"""Table 3 with Gemma 3 270M: E2E by full fine-tuning, LoRA and MoRA, six rates each, then one seed at the best.

    python -m experiments.sweep --config=configs/lora_nlg.py --grid=configs/sweeps/e2e_gemma.py \\
        --config.task.data_dir=FOLDER --results=experiments/results/e2e_gemma

All else is as in e2e_smollm2.py.
"""

from configs.sweeps.e2e_smollm2 import BEST, RATES, SEEDS, rates

MODEL = "gemma3-270m"
METHODS = ("method=fft", "method=lora", "method=mora")


def stages():
    """[(stage, cells)]: the rates, then the rows of the table."""
    full = [
        dict(
            arg=f"task=e2e,model={MODEL},{method},packed", overrides={"optimizer.learning_rate": BEST, "seed": SEEDS[0]}
        )
        for method in METHODS
    ]
    return [("rates", rates(MODEL, {method: RATES[method] for method in METHODS})), ("full", full)]
