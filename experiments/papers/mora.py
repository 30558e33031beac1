"""MoRA (Jiang et al., arXiv 2405.12130): the published numbers of its UUID experiment, as data.

Sources: Table 2 is printed in the paper. The curves of Figs. 2 and 3 were digitised from the plots, error about
+-0.02 in loss; None is above the plot (loss over 2.5).
"""

BASE_MODEL = "LLaMA-2 7B"
SCALES = ("laptop", "gpu", "paper")  # at which configs/mora_uuid.py reproduces the experiment
PAIRS, BATCH, STEPS = 10_000, 1_000, 1_000

# Table 2: character-level accuracy in % at each step. Chance over the 32 hexadecimal digits is 9.77%.
TABLE2_STEPS = (300, 500, 700, 900)
TABLE2 = {
    ("fft", None): (42.5, 100.0, 100.0, 100.0),
    ("lora", 8): (9.9, 10.0, 10.7, 54.2),
    ("mora", 8): (10.1, 15.7, 87.4, 100.0),
    ("lora", 256): (9.9, 70.6, 100.0, 100.0),
    ("mora", 256): (41.6, 100.0, 100.0, 100.0),
}
CHANCE = 9.77

# Learning rates: FFT fixed, the others the best of these (section 5.1); which one won is not said.
RATES = {"fft": (3e-5,), "lora": (1e-4, 2e-4, 3e-4), "mora": (5e-5, 1e-4, 2e-4)}

# Fig. 3: training loss.
FIG3_STEPS = (200, 300, 400, 500, 600, 700, 800, 900, 985)
FIG3 = {
    ("fft", None): (1.67, 0.85, 0.42, 0.25, 0.18, 0.15, 0.14, 0.14, 0.13),
    ("mora", 256): (2.00, 0.96, 0.44, 0.24, 0.17, 0.15, 0.15, 0.14, 0.13),
    ("mora", 8): (2.34, 1.88, 1.32, 0.83, 0.51, 0.31, 0.22, 0.18, 0.15),
    ("lora", 256): (None, 2.44, 1.93, 1.00, 0.44, 0.25, 0.18, 0.15, 0.15),
    ("lora", 8): (None, 2.45, 2.36, 2.00, 1.47, 0.95, 0.62, 0.43, 0.35),
}

# Fig. 2: training loss of LoRA by rank; full fine-tuning as in Fig. 3.
FIG2_STEPS = (600, 700, 800, 900, 980)
FIG2 = {
    8: (1.46, 0.97, 0.62, 0.43, 0.36),
    16: (1.39, 0.90, 0.56, 0.34, 0.25),
    32: (1.31, 0.78, 0.43, 0.26, 0.20),
    64: (1.18, 0.57, 0.30, 0.19, 0.16),
    128: (0.80, 0.38, 0.22, 0.17, 0.15),
    256: (0.44, 0.25, 0.18, 0.15, 0.15),
}
