"""Hyperparameters of MoRA's fine-tuning tables as data: Table 5 of Jiang et al., their code's, and our own."""

BATCH = 128
ACCUMULATE = 8  # 16 rows at a time over all devices; the result is the same
RANKS = (8, 256)
LARGE_RANK = 128  # a rank from here on takes what Table 5 has for r=256, a smaller one what it has for r=8
ALPHA = {8: 16.0, 256: 128.0}  # of LoRA and its variants; MoRA has none
COMPRESSIONS = {8: "rotation", 256: "sharing"}  # Eqs. 9 and 6
RATIOS = (4.0, 2.0)  # LoRA+: B's rate over A's. Both were tried; a run takes the first
# ReLoRA: steps between merges (1,000 and 2,000 were tried), and of warm-up after each. Its jagged schedule is a cosine;
# on the two domains, whose schedule is linear, that schedule begins again.
MERGES, REWARM = (1_000, 2_000), 50

# task -> schedule and length
TABLE5 = {
    "instruct": {"kind": "cosine", "warmup_steps": 500, "epochs": 2},
    "math": {"kind": "cosine", "warmup_steps": 300, "epochs": 3},
    "biomed": {"kind": "linear", "warmup_steps": 150, "epochs": 3},
    "finance": {"kind": "linear", "warmup_steps": 150, "epochs": 3},
}
# Continual pre-training on plain texts: the paper's two domains, and any other, with the paper's hyperparameters.
DOMAINS = ("biomed", "finance", "domain")
TABLE5["domain"] = TABLE5["biomed"]
# task -> for each method and rank the rates that were tried; which of two won is not said.
RATES = {
    "instruct": {"fft": (2e-5,), ("lora", 8): (1e-4, 2e-4), ("mora", 8): (2e-4, 3e-4),
                 ("lora", 256): (1e-4, 2e-4), ("mora", 256): (3e-5, 5e-5)},
    "math": {"fft": (2e-5,), ("lora", 8): (1e-4, 2e-4), ("mora", 8): (2e-4, 3e-4),
             ("lora", 256): (1e-4, 2e-4), ("mora", 256): (3e-5, 5e-5)},
    "biomed": {"fft": (3e-5,), ("lora", 8): (3e-4, 4e-4), ("mora", 8): (4e-4, 5e-4),
               ("lora", 256): (3e-4, 4e-4), ("mora", 256): (5e-5, 7e-5)},
}  # fmt: skip
RATES["finance"] = RATES["domain"] = RATES["biomed"]

# The official train.py: MetaMath has a cosine schedule with a warm-up of 3% of the steps, whatever the flags say;
# dropout is 0.05 unless a flag sets it. For the other data no command is published, and both readings take Table 5.
CODE = {"math": {"warmup_steps": 0, "warmup_fraction": 0.03}}
CODE_DROPOUT = 0.05

# Tokens of a row: MetaMath is cut off at 512, other data at 2,048 (train.py's default).
LENGTHS = {"math": 512}
LENGTH = 2_048

# task -> evaluations of a run; an optional one is left out where it has no file. Two serve the column FPB: AdaptLLM's
# rows with their worked examples (fpb), and Financial PhraseBank's own sentences (phrasebank). The paper does not print
# BioMMLU's subjects; these six are the medical ones of MMLU.
MEDICAL = (
    "anatomy", "clinical_knowledge", "college_biology", "college_medicine", "medical_genetics", "professional_medicine",
)  # fmt: skip
EXAMS = {
    "instruct": {
        "mmlu0": {"type": "choice", "task": "mmlu", "shots": 0},
        "mmlu5": {"type": "choice", "task": "mmlu", "shots": 5},
    },
    "math": {
        "gsm8k": {"type": "generation", "task": "gsm8k"},
        "math": {"type": "generation", "task": "math"},
    },
    "biomed": {
        "pubmedqa": {"type": "choice", "task": "pubmedqa", "optional": True},
        "medqa": {"type": "choice", "task": "medqa", "optional": True},
        "biommlu": {"type": "choice", "task": "mmlu", "subjects": MEDICAL, "optional": True},
        "rct": {"type": "choice", "task": "rct", "optional": True},
    },
    "finance": {
        "convfinqa": {"type": "generation", "task": "convfinqa", "optional": True},
        "fiqa_sa": {"type": "choice", "task": "fiqa_sa", "optional": True},
        "headline": {"type": "choice", "task": "headline", "optional": True},
        "ner": {"type": "generation", "task": "ner", "optional": True},
        "fpb": {"type": "choice", "task": "fpb", "optional": True},
        "phrasebank": {"type": "choice", "task": "phrasebank", "optional": True},
    },
    "domain": {"mmlu0": {"type": "choice", "task": "mmlu", "shots": 0, "optional": True}},
}

# ---- ours: bases of this project ----

# The warm-up's share of the steps, as a fixed number of steps may exceed those of a small run.
OWN_WARMUP = 0.03
OWN_MERGES, OWN_REWARM = 100, 10
OWN_LENGTHS = {"pico-llama": 512, "smollm2-135m": 1_024, "gemma3-270m": 1_024}
OWN_BATCH = 16
# What a run takes that is given no rate: the upper end of configs/finetune.py's, as suits small bases (LoRA at 1e-3 was
# better than at 3e-4 on Dolly-15k, docs/results.md). Not searched by method here: a grid gives its own (rate=).
OWN_RATES = {"fft": 5e-5, "lora": 1e-3, "mora": 1e-3}
PICO_RATES = {"fft": 1e-3, "lora": 3e-3, "mora": 3e-3}
# In Table 5 MoRA's rate at r=256 is 6 to 7 times lower than at r=8; ours is lowered as much from LARGE_RANK on.
MORA_LARGE_SHARE = 0.15


def rates_of(task: str, method: str, rank: int) -> tuple[float, ...]:
    """The rates of Table 5 for a cell, ascending; those of the nearest rank that the table has.

    Args:
      task: of TABLE5.
      method: "fft", "mora", or a variant of LoRA, which takes LoRA's rates.
      rank: of the adapter.
    """
    if method == "fft":
        return RATES[task]["fft"]
    nearest = min(RANKS, key=lambda known: abs(known - rank))
    return RATES[task]["mora" if method == "mora" else "lora", nearest]


def own_rate(model: str, method: str, rank: int) -> float:
    """The rate of a run on one of this project's bases."""
    rate = (PICO_RATES if model == "pico-llama" else OWN_RATES)[method if method in OWN_RATES else "lora"]
    return rate * MORA_LARGE_SHARE if method == "mora" and rank >= LARGE_RANK else rate
