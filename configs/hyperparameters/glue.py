"""Hyperparameters of GLUE runs as data: Tables 9 and 10 of Hu et al., the values of their scripts, and our own.

The entries of a tuple belong to the tasks in the order of TASKS, that of the paper's columns; a single value is for
every task. WNLI has no column in the paper and uses RTE's.
"""

TASKS = ("mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb")
STARTED = ("mrpc", "rte", "stsb")  # tasks whose LoRA starts from MNLI's in the standard protocol

_LARGE_LORA = {"rank": 8, "alpha": 16.0, "warmup_fraction": 0.06, "weight_decay": 0.0}
# (model, protocol) -> columns of LoRA. "batch" as printed.
LORA = {
    ("roberta-base", "standard"): {
        "batch": (16, 16, 16, 32, 32, 16, 32, 16),
        "epochs": (30, 60, 30, 80, 25, 25, 80, 40),
        "rate": (5e-4, 5e-4, 4e-4, 4e-4, 4e-4, 5e-4, 5e-4, 4e-4),
        "seq_len": 512,
        **_LARGE_LORA,
        "alpha": 8.0,
    },
    ("roberta-large", "standard"): {
        "batch": (4, 4, 4, 4, 4, 4, 8, 8),
        "epochs": (10, 10, 20, 20, 10, 20, 20, 30),
        "rate": (3e-4, 4e-4, 3e-4, 2e-4, 2e-4, 3e-4, 4e-4, 2e-4),
        "seq_len": (128, 128, 512, 128, 512, 512, 512, 512),
        **_LARGE_LORA,
    },
    ("roberta-large", "dagger"): {
        "batch": 4,
        "epochs": (10, 10, 20, 20, 10, 20, 20, 10),
        "rate": (3e-4, 4e-4, 3e-4, 2e-4, 2e-4, 3e-4, 4e-4, 2e-4),
        "seq_len": 128,
        **_LARGE_LORA,
    },
    ("deberta-v2-xxlarge", "standard"): {
        "batch": (8, 8, 32, 4, 6, 8, 4, 4),
        "epochs": (5, 16, 30, 10, 8, 11, 11, 10),
        "rate": (1e-4, 6e-5, 2e-4, 1e-4, 1e-4, 1e-4, 2e-4, 2e-4),
        "weight_decay": (0.0, 0.01, 0.01, 0.0, 0.01, 0.01, 0.01, 0.1),
        "cls_dropout": (0.15, 0.0, 0.0, 0.1, 0.1, 0.2, 0.2, 0.2),
        "seq_len": (256, 128, 128, 64, 512, 320, 320, 128),
        "rank": 8,
        "alpha": 8.0,
        "warmup_fraction": 0.1,
    },
}
# The values of the official scripts. Their batch is for each of the "processes" that they launch.
SCRIPTS = {
    "roberta-base": {"alpha": 16.0, "weight_decay": 0.1, "processes": (8, 8, 8, 2, 8, 8, 8, 8)},
    "roberta-large": {
        "batch": (4, 8, 4, 4, 4, 4, 8, 4),
        "epochs": (10, 10, 20, 20, 10, 20, 20, 10),
        "rate": (3e-4, 4e-4, 3e-4, 3e-4, 2e-4, 3e-4, 4e-4, 3e-4),
        "seq_len": (128, 512, 512, 128, 512, 512, 512, 128),
        "weight_decay": 0.1,
        "processes": 8,
    },
    "deberta-v2-xxlarge": {
        "rank": 16,
        "alpha": 32.0,
        "rate": (1e-4, 6e-5, 2e-4, 1.3e-4, 1e-4, 1e-4, 2.6e-4, 2e-4),
        "warmup_fraction": (0.0, 0.0, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0),
        "warmup_steps": (1000, 1000, 0, 100, 500, 10_000, 50, 100),
        "processes": 8,
    },
}

_ADAPTER = {"batch": 32, "seq_len": 128, "warmup_fraction": 0.06, "weight_decay": 0.0}
_SMALL_STEPS = (3e-5, 3e-5, 3e-4, 3e-4, 3e-4, 3e-4, 3e-4, 3e-4)
# (family, size) -> columns of RoBERTa-large's adapters, all of the restricted (dagger) set-up. We use them for the
# paper's other models and for lin (pfeiffer's) too.
ADAPTERS = {
    ("pfeiffer", 64): {**_ADAPTER, "epochs": (10, 20, 20, 20, 10, 20, 20, 20), "rate": _SMALL_STEPS},
    ("pfeiffer", 16): {**_ADAPTER, "epochs": (5, 20, 20, 20, 10, 20, 20, 20), "rate": 3e-4},
    ("houlsby", 64): {**_ADAPTER, "epochs": (10, 5, 10, 10, 5, 20, 20, 10), "rate": (3e-5, *(3e-4,) * 7)},
    ("houlsby", 8): {**_ADAPTER, "epochs": (10, 5, 10, 10, 5, 20, 20, 10), "rate": 3e-4},
}

# Sizes where the argument has no rank. Bottlenecks: those that Table 2 compares with LoRA r=8 (0.8M on RoBERTa-large),
# which are 6% (houlsby) and 3% (pfeiffer) above LoRA's count on MiniLM-L6. adapterdrop: size 48 in all 12 layers of
# RoBERTa-base gives Table 2's 0.9M, and in the upper 4 its 0.3M (inferred: the paper names neither).
RANKS = {"houlsby": 8, "pfeiffer": 16, "lin": 16, "adapterdrop": 48}

# ---- ours: models or methods without a column in the paper ----

OWN = {
    "batch": (32, 32, 16, 32, 32, 32, 16, 32),
    "epochs": (3, 3, 10, 10, 3, 3, 10, 10),
    # RTE: 12% of its rows are longer than 128 wordpieces and 0.1% longer than 256; of the rest at most 0.5% exceed 128.
    "seq_len": (128, 128, 128, 128, 128, 128, 256, 128),
    "alpha": 16.0,
    "rank": 8,
    "warmup_fraction": 0.06,
    "weight_decay": 0.0,
}
# Starting values; configs/sweeps/glue_minilm.py searches around them. PEFT's LoRA on MiniLM-L6 takes 1e-3 on MRPC.
OWN_RATES = {
    "minilm-l6": {"fft": 1e-4, "ft-top2": 1e-4, "head": 3e-3, None: 1e-3},
    "bert-base": {"fft": 3e-5, "ft-top2": 5e-5, "head": 1e-3, "bitfit": 1e-3, None: 5e-4},
}
# Of the paper's models: full fine-tuning as RoBERTa's own GLUE search (Liu et al., 2019), 10 epochs of 16 at 1e-5 to
# 3e-5; other methods as LoRA's column with the rate below, or LoRA's rate.
FULL = {"batch": 16, "epochs": 10, "weight_decay": 0.1, "warmup_fraction": 0.06}
FULL_RATES = {"roberta-base": 2e-5, "roberta-large": 1e-5, "deberta-v2-xxlarge": 5e-6}
OTHER_RATES = {"bitfit": 1e-3, "head": 1e-3}

# Low-data MNLI, Table 17: examples -> (batch, epochs). Its rates are GPT-3's; ours stay the model's.
LOW_DATA = {100: (20, 40), 1_000: (20, 40), 10_000: (100, 4)}


def at_task(columns: dict, task: str) -> dict:
    """One task's entries of all columns."""
    place = TASKS.index("rte" if task == "wnli" else task)
    return {name: value[place] if isinstance(value, tuple) else value for name, value in columns.items()}
