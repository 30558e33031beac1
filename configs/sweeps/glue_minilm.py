"""GLUE with MiniLM-L6 on one GPU: five tasks, seven methods, three learning rates a method, five seeds.

    python -m experiments.sweep --config=configs/lora_glue.py --grid=configs/sweeps/glue_minilm.py --together=15 \\
        --results=experiments/results/glue_minilm
    python -m experiments.tables lora_table2 --model=minilm-l6

Every cell is a whole run, so the rate is chosen from the recorded runs by `experiments.tables`, by one rule for all: of
a method's rates on a task, the one with the best median over its seeds of the dev score after the last epoch. Each
grid is a factor of 3 around the config's starting value. Cells of one method and task differ in seed and rate alone: 15
trials of one program. LoRA r=8 on query and value trains 73,728 parameters, MoRA 73,008 (squares of 78), Houlsby of 8
78,432, Pfeiffer of 16 76,128.
"""

MODEL = "minilm-l6"
TASKS = ("cola", "sst2", "mrpc", "rte", "stsb")
SEEDS = (0, 1, 2, 3, 4)
RATES = {
    "method=fft": (3e-5, 1e-4, 3e-4),
    "method=bitfit": (3e-4, 1e-3, 3e-3),
    "method=houlsby": (3e-4, 1e-3, 3e-3),
    "method=pfeiffer": (3e-4, 1e-3, 3e-3),
    "method=lora": (3e-4, 1e-3, 3e-3),
    "method=mora,compression=sharing": (3e-4, 1e-3, 3e-3),
    "method=mora,compression=rotation": (3e-4, 1e-3, 3e-3),
}


def cells():
    """[cell]: task by task, with a method's rates and seeds one after the other."""
    return [
        dict(arg=f"model={MODEL},task={task},{method}", overrides={"optimizer.learning_rate": rate, "seed": seed})
        for task in TASKS
        for method, rates in RATES.items()
        for rate in rates
        for seed in SEEDS
    ]
