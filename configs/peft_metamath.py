"""PEFT's method comparison: Llama-3.2-3B on MetaMathQA, 5,000 steps of 4 rows, scored on GSM8K's test; MoRA's row too.

The recipe is that of huggingface/peft, method_comparison/MetaMathQA (August 2026). Its results, one seed each: LoRA
r=32 47.8% of GSM8K, forgetting 0.05, 9.2M parameters; rsLoRA r=64 51.3%; full fine-tuning 47.2%. MoRA is not in it.

    python scripts/peft_metamath.py hub:meta-math/MetaMathQA:train metamath.jsonl --tokenizer=meta-llama/Llama-3.2-3B
    CONFIG=configs/peft_metamath.py
    python -m experiments.run --config=$CONFIG:data=metamath.jsonl,exams=FOLDER,forgetting=wiki.jsonl     # LoRA r=32
    python -m experiments.run --config=$CONFIG:data=metamath.jsonl,exams=FOLDER,forgetting=wiki.jsonl,method=mora

Recipe: bfloat16 base, float32 adapters on query and value, alpha 64, no dropout; rows of at most 768 tokens with BOS
and EOS, the loss over all of them; AdamW, rate 1e-4, decay 0.1, clipping at 1; a cosine after a warm-up of a tenth of
the steps; rows in the file's order, which scripts/peft_metamath.py writes as PEFT's buckets do. GSM8K: at most 300 new
tokens, the prompt with "Think step by step.", right by PEFT's reading of the last answer (`stated`). Forgetting: rise
of the loss on other text; theirs are 100 pages of FineWiki, at most 768 tokens each; ours 100 rows of 768 tokens.

One difference: PEFT's longest row of a batch has no EOS to learn (their padding is EOS, and it has none). Here every
row has one, so that a batch has as many targets as PEFT divides its sum by (one less for a row that is cut). MoRA's
rate is the larger of its paper's for MetaMathQA at r=8, unsearched here; rate= takes another.
"""

from ml_collections import ConfigDict

from configs.common import Count, Several, check_read, parse_arg

STEPS, BATCH, LENGTH = 5_000, 4, 768
RATES = {"lora": 1e-4, "rslora": 1e-4, "dora": 1e-4, "mora": 3e-4, "fft": 1e-5}
WARMUP = 10  # a tenth of the steps


def get_config(arg: str | None = None) -> ConfigDict:
    """One row of the comparison."""
    choice = parse_arg(
        arg,
        method=("lora", "rslora", "dora", "mora", "fft"),
        rank=32,
        compression="sharing",
        base="meta-llama/Llama-3.2-3B",
        data="metamath.jsonl",
        exams=str,
        forgetting=Several,
        rate=float,
        steps=Count,
        seed=0,
    )
    steps = choice.steps or STEPS
    check_read(choice, rank=("lora", "rslora", "dora", "mora"), compression=("mora",))
    config = ConfigDict()
    config.experiment = "peft_metamath"
    config.name = None
    config.seed = choice.seed
    config.labels = {"task": "math"}
    config.base = {"name": choice.base, "dtype": "bfloat16", "remat": "projections"}
    config.trainable = "full" if choice.method == "fft" else "adapters"
    config.adapter = {
        "method": {"fft": "none", "rslora": "lora"}.get(choice.method, choice.method),
        "rank": choice.rank,
        "alpha": 64.0,
        "targets": ("query", "value"),
        "mora": {"compression": choice.compression},
    }
    if choice.method == "rslora":
        config.labels["method"], config.adapter["scaling"] = "rslora", "rslora"
    config.task = {
        "name": "text",
        "path": choice.data,
        "seq_len": LENGTH,
        "packed": False,
        "truncate": True,
        "add_bos": True,
        "add_eos": True,
        "ordered": True,
    }
    config.optimizer = {"learning_rate": choice.rate or RATES[choice.method], "weight_decay": 0.1, "clip_norm": 1.0}
    config.schedule = {"kind": "cosine", "warmup_steps": steps // WARMUP}
    config.train = {"steps": steps, "batch_size": BATCH, "chunk_tokens": 1_024, "log_every": 10}
    config.evals = _evals(choice)
    config.checkpoint = {"every": 1_000, "keep": 1}
    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1}
    config.tracking = {"wandb": "auto", "project": "lowrank_jax", "group": "peft_metamath"}
    return config


def _evals(choice) -> dict:
    found = {}
    if choice.exams:
        asked = {"type": "generation", "task": "gsm8k", "data_dir": choice.exams, "prompt": "step by step"}
        found["gsm8k"] = {**asked, "max_new_tokens": 300, "add_bos": True, "truncate": True}
    if choice.forgetting:
        rows = {"rows": 100, "tokens": LENGTH, "add_bos": True, "at_start": True}
        found["forgetting"] = {"type": "forgetting", "path": choice.forgetting, **rows}
    return found
