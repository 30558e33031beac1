"""Hyperparameters of MNLI on GPT-3 as data: Tables 12 and 17 of Hu et al.

The columns are those of Tables 16 and 17: the numbers of training rows, the last one all.
"""

import math

COLUMNS = (100, 1_000, 10_000, 392_702)
BATCH, EPOCHS = (20, 20, 100, 128), (40, 40, 4, 2)
SEQ_LEN = 768
WEIGHT_DECAY = 0.1
WARMUP_TOKENS = 250_000
RANK = 8  # r_q = r_v
# Of a method one rate, or one for each column. The paper has no MoRA, which takes LoRA's rate here.
RATES = {
    "fft": 5e-6,
    "bitfit": 1.6e-3,
    "adapter-h": 1e-4,
    "lora": 2e-4,
    "mora": 2e-4,
    "lora+pe": 2e-4,
    "lora+pl": 2e-4,
    "preembed": (2e-4, 2e-4, 4e-4, 5e-4),
    "prelayer": (5e-5, 5e-5, 5e-5, 1e-4),
}
# (l_p, l_i), prefix and infix tokens, for each column; those of LoRA+PE and LoRA+PL are Table 15's.
PREFIX = {
    "preembed": ((16, 8), (32, 8), (64, 8), (256, 8)),
    "prelayer": ((8, 8),) * 4,
    "lora+pe": ((8, 4),) * 4,
    "lora+pl": ((8, 4),) * 4,
}


def at_size(method: str, rows: int | None) -> dict:
    """{"batch", "epochs", "rate", "warmup_steps", "prefix": (l_p, l_i) or None} of a method for a number of rows.

    `rows` counts training rows; None: all. A number between two columns takes the larger column's values: 3,000 rows
    take those of 10,000. For the warm-up a step counts as batch x SEQ_LEN tokens, to which the paper pads its rows:
    without padding, the 40 epochs of 100 rows would end before the warm-up does.
    """
    column = next((place for place, size in enumerate(COLUMNS) if (rows or COLUMNS[-1]) <= size), len(COLUMNS) - 1)
    rate, batch = RATES[method], BATCH[column]
    return {
        "batch": batch,
        "epochs": EPOCHS[column],
        "rate": rate[column] if isinstance(rate, tuple) else rate,
        "prefix": PREFIX[method][column] if method in PREFIX else None,
        "warmup_steps": math.ceil(WARMUP_TOKENS / (batch * SEQ_LEN)),
    }
