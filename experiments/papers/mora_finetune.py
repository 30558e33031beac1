"""MoRA (Jiang et al., arXiv 2405.12130): the published numbers of its fine-tuning experiments (Tables 1, 4, 6, 7).

All in %, LLaMA-2 7B, one run a row; no spread is printed. Table 5, the hyperparameters, is data of the configs:
configs/hyperparameters/mora_finetune.py. None: the table has no number there.
"""

BASE_MODEL = "LLaMA-2 7B"
Numbers = tuple[float | None, ...]
Key = tuple[str, int | None]  # (method, rank)

# Instruction tuning scored by MMLU, mathematics by GSM8K and MATH, and the means of Tables 6 and 7.
TABLE1_COLUMNS = ("mmlu 0-shot", "mmlu 5-shot", "gsm8k", "math", "biomed", "finance")
TABLE1: dict[Key, Numbers] = {
    ("fft", None): (50.6, 51.3, 66.6, 20.1, 56.4, 69.6),
    ("lora", 8): (50.2, 51.5, 64.6, 15.1, 52.3, 64.0),
    ("lora+", 8): (49.2, 51.1, 64.1, 15.8, 52.2, 64.9),
    ("relora", 8): (49.3, 50.2, 61.5, 14.5, 46.3, 61.0),
    ("asylora", 8): (50.3, 52.2, 64.5, 15.0, 52.5, 63.5),
    ("dora", 8): (50.2, 51.5, 64.5, 14.6, 52.5, 63.9),
    ("mora", 8): (49.7, 51.5, 64.2, 15.4, 53.3, 67.1),
    ("lora", 256): (49.7, 50.8, 67.9, 19.9, 54.1, 67.3),
    ("lora+", 256): (49.2, 51.3, 68.2, 17.1, 54.2, 66.7),
    ("relora", 256): (None, None, 64.0, 18.1, 52.9, 57.9),
    ("asylora", 256): (50.1, 52.0, 66.9, 19.3, 54.1, 66.9),
    ("dora", 256): (49.6, 51.1, 67.4, 19.5, 54.2, 66.0),
    ("mora", 256): (49.9, 51.4, 67.9, 19.2, 55.4, 68.7),
}

# GSM8K of MoRA by compression, at r=8 and r=256 (Eqs. 4, 6, 8 and 9).
TABLE4_RANKS: tuple[int, ...] = (8, 256)
TABLE4: dict[str, Numbers] = {
    "truncation": (59.5, 66.6),
    "sharing": (62.5, 67.9),
    "decoupling": (63.6, 67.8),
    "rotation": (64.2, 67.9),
}

TABLE6_COLUMNS = ("PubMedQA", "USMLE", "BioMMLU", "RCT", "Avg")
TABLE6: dict[Key, Numbers] = {
    ("fft", None): (74.1, 41.2, 47.5, 62.7, 56.4),
    ("lora", 8): (73.1, 34.9, 45.3, 54.9, 51.9),
    ("mora", 8): (73.3, 34.7, 45.3, 59.9, 53.3),
    ("lora", 256): (73.8, 39.7, 46.0, 56.9, 54.1),
    ("mora", 256): (74.4, 40.4, 46.1, 60.6, 55.4),
}

TABLE7_COLUMNS = ("ConvFinQA", "FiQA SA", "Headline", "NER", "FPB", "Avg")
TABLE7: dict[Key, Numbers] = {
    ("fft", None): (44.4, 78.8, 82.3, 68.1, 74.3, 69.6),
    ("lora", 8): (44.5, 76.2, 72.4, 61.6, 65.1, 64.0),
    ("mora", 8): (45.8, 76.6, 76.3, 68.9, 68.2, 67.1),
    ("lora", 256): (41.4, 78.3, 83.0, 66.8, 66.7, 67.3),
    ("mora", 256): (47.7, 76.3, 83.4, 68.0, 68.1, 68.7),
}
