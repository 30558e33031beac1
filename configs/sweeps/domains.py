"""Continual pre-training as in MoRA's Tables 6 and 7, on two other domains: novels, and Python's PEPs.

    python -m experiments.sweep --config=configs/mora_finetune.py --grid=configs/sweeps/domains.py --together=4 \\
        --results=experiments/results/domains
    python -m experiments.tables sweep --results=experiments/results/domains.jsonl

Full fine-tuning, LoRA, and MoRA by rotation and by sharing, at r=8 on SmolLM2-135M: what is learned of a domain (the
loss of its held-out texts), what is forgotten (the rise of the loss on the other domain's) and, without examples, 200
questions of MMLU before training and after, where $LOWRANK_JAX_EXAMS_DIR has its file.

Data, below the folder that the command is run in: data/domains/novels_train.jsonl.xz, peps_train.jsonl.xz and the same
with validation, one {"text": ...} a line. Rates: four for each row, half a decade apart, one seed, by the held-out
loss; then three seeds at the best. 300 steps of 8 x 1,024 packed tokens, 2.5M tokens.
"""

from configs.sweeps.mora_table1 import ADAPTERS, RATES, SEEDS

MODEL = "smollm2-135m"
DOMAINS = {"novels": "peps", "peps": "novels"}  # trained on -> on which forgetting is measured
METHODS = {
    "method=fft": RATES["method=fft"],
    "method=lora": ADAPTERS,
    "method=mora": ADAPTERS,
    "method=mora,compression=sharing": ADAPTERS,
}
FOLDER = "data/domains"
REST = "exams,questions=200,steps=300,batch=8,seq_len=1024"


def stages():
    """[(stage, cells)]: the rates, without exams, then the rows."""
    rates, full = [], []
    for domain, other in DOMAINS.items():
        train, held, kept = (
            f"{FOLDER}/{domain}_train.jsonl.xz",
            f"{FOLDER}/{domain}_validation.jsonl.xz",
            f"{FOLDER}/{other}_validation.jsonl.xz",
        )
        for method, grid in METHODS.items():
            arg = f"task=domain,model={MODEL},{method},data={train},validation={held},forgetting={kept},{REST}"
            tried = {"evals": {}, "seed": SEEDS[0]}
            rates += [dict(arg=arg, overrides={**tried, "optimizer.learning_rate": rate}) for rate in grid]
            chosen = {"optimizer.learning_rate": "best:rates:loss"}
            full += [dict(arg=arg, overrides={**chosen, "seed": seed}) for seed in SEEDS]
    return [("rates", rates), ("full", full)]
