"""Table 4's WikiSQL column on a sample of 1,000 questions: SmolLM2-135M, five methods, each at its best rate.

    python -m experiments.sweep --config=configs/lora_nlg.py --grid=configs/sweeps/wikisql_sample.py \\
        --config.task.data_dir=FOLDER --results=experiments/results/wikisql_sample

FOLDER/wikisql has train.jsonl (or .gz), valid.jsonl and test.jsonl with rows of text, "table: ... Q: ... A: SELECT
...": 1,000, 100 and 100 of the 56,355, 8,421 and 15,878 rows (docs/data.md names the repository). Every record notes
that its data are a sample. Only logical forms are scored: there are no tables on which a query could be executed.

Rates: ten epochs, one seed, nothing decoded; of a method's rates, the one with the lowest held-out loss after the
last epoch is taken.
"""

from configs.hyperparameters.stages import rates_then_seeds

MODEL = "smollm2-135m"
SEEDS = (0, 1, 2)
BEST = "best:rates:loss"
EPOCHS = 10  # of 24 steps each, PreLayer's of about 28
RATES = {
    "method=fft": (5e-5, 1e-4, 2e-4, 5e-4),
    "method=lora": (1e-3, 2e-3, 5e-3, 1e-2),
    "method=mora": (1e-3, 2e-3, 5e-3, 1e-2),
    "method=adapter-h": (1e-3, 2e-3, 5e-3, 1e-2),
    "method=prelayer": (1e-2, 3e-2, 1e-1, 3e-1, 1.0),  # on E2E 3e-1 won
}


def stages():
    """[(stage, cells)]: the rates, then the rows of the table."""
    grids = {
        f"task=wikisql,model={MODEL},{method},packed,partial,epochs={EPOCHS}": rates for method, rates in RATES.items()
    }
    return rates_then_seeds(grids, BEST, SEEDS, tried={"evals": {}})
