"""Hyperparameters of MoRA's Table 3 (pre-training from scratch) as data: the paper's and its code's, and our own.

Paper: Jiang et al., section 5.3 and appendix B; code: the command in the official README and train.py.
"""

# Table 3. C4, 10,000 steps of 1,024 x 512 tokens, a merge every 2,000 steps; rate and alpha are the README's for the
# 250M shape, the paper has none for the 1.3B one.
PAPER = {
    "rank": 128,
    "alpha": 64.0,
    "rate": 5e-4,
    "steps": 10_000,
    "batch": 1_024,
    "accumulate": 8,  # so that 128 rows lie on the devices at a time; the README has micro-batches of 16 on 32 GPUs
    "seq_len": 512,
    "warmup_steps": 1_000,
    "every": 2_000,
    "rewarm_steps": 50,
}
SHAPES = {"250m": "mora-250m", "1.3b": "mora-1.3b"}
TOKENIZER = "google-t5/t5-base"  # ReLoRA's C4 preprocessing, which the authors point to (issue 1)

# The two readings: the paper says jagged and alternates two groupings; the README's command runs the schedule
# again from the rate reached, and train.py goes through four groupings.
READINGS = {
    "paper": {"schedule": "jagged", "groups": "paper", "end_fraction": 0.1},
    "code": {"schedule": "restart", "groups": "code", "end_fraction": 0.0},
}

# ---- ours: 14.4M parameters over bytes, minutes on one GPU ----

SMALL = "mora-14m"
OWN = {
    "rank": 64,  # a sixth of the width, as 128 is of 768
    "steps": 1_500,
    "batch": 64,
    "seq_len": 256,
    "warmup_steps": 75,
    "every": 300,
    "rewarm_steps": 15,
}
# method -> the rates that the grid tries; a run that is given no rate takes the middle one.
OWN_RATES = {
    "lora": (1e-3, 3e-3, 1e-2),
    "relora": (1e-3, 3e-3, 1e-2),
    "mora": (1e-3, 3e-3, 1e-2),
    "remora": (1e-3, 3e-3, 1e-2),
    "full": (5e-4, 1.5e-3, 5e-3),
}
