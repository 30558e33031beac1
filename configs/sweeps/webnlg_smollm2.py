"""Table 14 on SmolLM2-135M: WebNLG by LoRA, MoRA, fine-tuning, Adapter-L and PreLayer, at E2E's rates, three seeds.

    python -m experiments.sweep --config=configs/lora_nlg.py --grid=configs/sweeps/webnlg_smollm2.py \\
        --config.task.data_dir=FOLDER_OF_BOTH --results=experiments/results/e2e_smollm2

FOLDER_OF_BOTH has E2E's files in e2e/ and WebNLG's in webnlg/. The rates are those that e2e_smollm2.py chose: its
trials are skipped where --results has them. LoRA has the next smaller rate, as two of its three long runs on E2E
diverged at the chosen one. Fine-tuning is run a second time at the rate that had the lower loss in E2E's long runs.
reading=code: the script's ten categories are seen.
"""

from configs.sweeps.e2e_smollm2 import BEST, MODEL, RATES, SEEDS, STABLE, rates

METHODS = ("method=lora", "method=mora", "method=fft", "method=adapter-l", "method=prelayer")


LONG = {"method=fft": 2e-4}  # held-out loss after 5 epochs of E2E, best epoch: 1.092; at the chosen 1e-3 1.104


def stages():
    """[(stage, cells)]: E2E's rates of these methods, then WebNLG's rows."""
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
