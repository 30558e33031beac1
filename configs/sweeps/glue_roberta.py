"""LoRA's Table 2 with its own hyperparameters: RoBERTa-base, and RoBERTa-large's dagger rows; five seeds a cell.

    python -m experiments.sweep --config=configs/lora_glue.py --grid=configs/sweeps/glue_roberta.py \\
        --only=roberta-base --results=experiments/results/glue_roberta
    python -m experiments.tables lora_table2 --model=roberta-base

MRPC, RTE and STS-B start here from a fresh adapter. The paper starts LoRA's from its best MNLI run: give that run's
adapter as start, --config=configs/lora_glue.py:start=runs/NAME/adapter --only='task=(mrpc|rte|stsb),method=lora$';
this makes a separate row in the table. Cost: RoBERTa-base's LoRA on all eight tasks is about 29 million rows a
seed, days of one large GPU; --only='task=(cola|mrpc),' runs the small ones.
"""

TASKS = ("mrpc", "rte", "stsb", "cola", "sst2", "qnli", "qqp", "mnli")
SEEDS = (0, 1, 2, 3, 4)
METHODS = {
    "model=roberta-base": ("method=lora", "method=fft", "method=bitfit", "method=adapterdrop,drop=0",
                           "method=adapterdrop,drop=8", "method=mora", "method=mora,compression=rotation"),
    "model=roberta-large,protocol=dagger": ("method=lora", "method=pfeiffer,rank=64", "method=pfeiffer,rank=16",
                                            "method=houlsby,rank=64", "method=houlsby,rank=8"),
}  # fmt: skip


def cells():
    """[cell]: small tasks first."""
    return [
        dict(arg=f"{model},task={task},{method}", overrides={"seed": seed})
        for model, methods in METHODS.items()
        for task in TASKS
        for method in methods
        for seed in SEEDS
    ]
