"""MoRA's Tables 1 and 4 at r=8 on SmolLM2-135M and Gemma 3 270M: GSM8K and Dolly, each method at its own rate.

    python -m experiments.sweep --config=configs/mora_finetune.py --grid=configs/sweeps/mora_table1.py --together=4 \\
        --results=experiments/results/mora_table1

Data, below the folder that the command is run in: data/gsm8k/train.jsonl.gz and test.jsonl.gz; data/dolly/train.jsonl
and held.jsonl (docs/reproducing.md has the split); other text to forget, data/text/novels.jsonl and peps.jsonl;
$LOWRANK_JAX_EXAMS_DIR has the exams' files. --only=task=math,model=smollm2 runs these cells alone.

Rates: four for each row, half a decade apart, one seed, by the lowest held-out loss; then three seeds at the best. 300
steps of 8 x 1,024 packed tokens, 2.5M tokens. Where the best rate is the first or the last one, add the
next value to RATES.
Exams: 200 questions of each, before training and after.
"""

from configs.hyperparameters.stages import rates_then_seeds

SEEDS = (0, 1, 2)
ADAPTERS = (3e-4, 1e-3, 3e-3, 1e-2)
RATES = {
    "method=fft": (1e-5, 3e-5, 1e-4, 3e-4),
    "method=lora": ADAPTERS,
    "method=lora+": ADAPTERS,
    "method=relora": ADAPTERS,  # one run at a time
    "method=asylora": ADAPTERS,
    "method=dora": ADAPTERS,
    "method=rslora": ADAPTERS,
    "method=mora": ADAPTERS,  # rotation, as Table 5 at r=8
    "method=mora,compression=sharing": ADAPTERS,
}
ABLATION = {"method=mora,compression=truncation": ADAPTERS, "method=mora,compression=decoupling": ADAPTERS}  # Table 4
TASKS = {
    "math": "data=data/gsm8k/train.jsonl.gz,validation=data/gsm8k/test.jsonl.gz",
    "instruct": "data=data/dolly/train.jsonl,validation=data/dolly/held.jsonl",
}
REST = (
    "forgetting=data/text/novels.jsonl,data/text/peps.jsonl,exams,questions=200,packed,steps=300,batch=8,seq_len=1024"
)
MODELS = ("smollm2-135m", "gemma3-270m")


def stages():
    """[(stage, cells)]: the rates, without exams, then the rows."""
    grids = {
        f"task={task},model={model},{method},{data},{REST}": rates
        for model in MODELS
        for task, data in TASKS.items()
        for method, rates in {**RATES, **(ABLATION if task == "math" else {})}.items()
    }
    return rates_then_seeds(grids, "best:rates:loss", SEEDS, tried={"evals": {}})
