"""Table 18 on SmolLM2-135M: E2E by the ranks of LoRA and MoRA that fit the value projection (576 x 192).

    python -m experiments.sweep --config=configs/lora_nlg.py --grid=configs/sweeps/e2e_ranks.py \\
        --config.task.data_dir=FOLDER --results=experiments/results/e2e_smollm2

The paper has LoRA up to r=1,024, on GPT-2 medium. One seed, alpha 32. Every rank of MoRA has the rate that
e2e_smollm2.py chose at r=4 (its search for the rates is not run again where --results has it). Every rank of LoRA has
the next smaller rate, as two of three long runs at the chosen one diverged. With --together ranks can share a program,
in which each is padded to the largest.
"""

from configs.sweeps.e2e_smollm2 import BEST, MODEL, RATES, SEEDS, STABLE, rates

RANKS = {"method=lora": (1, 2, 4, 8, 16, 32, 64, 128), "method=mora": (1, 2, 4, 8, 16, 32)}


def stages():
    """[(stage, cells)]: the rates of both methods, then the ranks."""
    full = [
        dict(
            arg=f"task=e2e,model={MODEL},{method},rank={rank},packed",
            like=f"task=e2e,model={MODEL},{method},packed",
            overrides={"optimizer.learning_rate": STABLE.get(method, BEST), "seed": SEEDS[0]},
        )
        for method, ranks in RANKS.items()
        for rank in ranks
    ]
    return [("rates", rates(grids={method: RATES[method] for method in RANKS})), ("full", full)]
