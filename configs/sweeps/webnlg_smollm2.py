"""Table 14 on SmolLM2-135M: WebNLG by LoRA, MoRA, fine-tuning, Adapter-L and PreLayer, at E2E's rates, three seeds.

    python -m experiments.sweep --config=configs/lora_nlg.py --grid=configs/sweeps/webnlg_smollm2.py \\
        --config.task.data_dir=FOLDER --results=experiments/results/e2e_smollm2

FOLDER has E2E's files in e2e/ and WebNLG's in webnlg/. The rates are those that e2e_smollm2.py chose: its
trials are skipped where --results has them. LoRA has the next smaller rate, as two of its three long runs on E2E
diverged at the chosen one. Full fine-tuning also has rows at 2e-4, which had the lower loss in E2E's long runs.
reading=code: the ten categories of the official script count as seen.
"""

from configs.sweeps.e2e_smollm2 import BEST, MODEL, RATES, SEEDS, STABLE, rates

METHODS = ("method=lora", "method=mora", "method=fft", "method=adapter-l", "method=prelayer")
LONG = {"method=fft": 2e-4}  # lowest held-out loss in 5 epochs of E2E, 3 seeds: 1.092; at 1e-3 1.104


def stages():
    """[(stage, cells)]: the search for these methods' rates on E2E, then WebNLG's rows."""
    full = [
        dict(
            arg=f"task=webnlg,model={MODEL},{method},reading=code,packed",
            like=f"task=e2e,model={MODEL},{method},packed",
            overrides={"optimizer.learning_rate": rate, "seed": seed},
        )
        for method, rate in [*((method, STABLE.get(method, BEST)) for method in METHODS), *LONG.items()]
        for seed in SEEDS
    ]
    return [("rates", rates(grids={method: RATES[method] for method in METHODS})), ("full", full)]
