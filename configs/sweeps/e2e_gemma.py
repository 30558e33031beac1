"""Table 3 with Gemma 3 270M: E2E by FFT, LoRA and MoRA, four or five rates each, then one seed at the best rate.

    python -m experiments.sweep --config=configs/lora_nlg.py --grid=configs/sweeps/e2e_gemma.py \\
        --config.task.data_dir=FOLDER --results=experiments/results/e2e_gemma

Rates: the upper four of SmolLM2's six, as the lower two never won there; for MoRA the upper five, as the smallest of
four won here. All else is as in e2e_smollm2.py; each text begins with BOS, as Gemma expects.
"""

from configs.sweeps.e2e_smollm2 import BEST, RATES, SEEDS, rates

MODEL = "gemma3-270m"
METHODS = ("method=fft", "method=lora", "method=mora")
FIRST = {"method=fft": 2, "method=lora": 2, "method=mora": 1}  # index of the first of SmolLM2's rates that is tried


def stages():
    """[(stage, cells)]: the rates, then the rows of the table."""
    full = [
        dict(
            arg=f"task=e2e,model={MODEL},{method},packed", overrides={"optimizer.learning_rate": BEST, "seed": SEEDS[0]}
        )
        for method in METHODS
    ]
    return [("rates", rates(MODEL, {method: RATES[method][FIRST[method] :] for method in METHODS})), ("full", full)]
