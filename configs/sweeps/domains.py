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

from configs.hyperparameters.stages import rates_then_seeds

MODEL = "smollm2-135m"
SEEDS = (0, 1, 2)
ADAPTERS = (3e-4, 1e-3, 3e-3, 1e-2)
DOMAINS = {"novels": "peps", "peps": "novels"}  # trained on -> on which forgetting is measured
METHODS = {
    "method=fft": (1e-5, 3e-5, 1e-4, 3e-4),
    "method=lora": ADAPTERS,
    "method=mora": ADAPTERS,
    "method=mora,compression=sharing": ADAPTERS,
}
FOLDER = "data/domains"
REST = "exams,questions=200,steps=300,batch=8,seq_len=1024"


def stages():
    """[(stage, cells)]: the rates, without exams, then the rows."""
    grids = {}
    for domain, other in DOMAINS.items():
        train, held = (f"{FOLDER}/{domain}_{part}.jsonl.xz" for part in ("train", "validation"))
        data = f"data={train},validation={held},forgetting={FOLDER}/{other}_validation.jsonl.xz"
        grids |= {f"task=domain,model={MODEL},{method},{data},{REST}": rates for method, rates in METHODS.items()}
    return rates_then_seeds(grids, "best:rates:loss", SEEDS, tried={"evals": {}})
