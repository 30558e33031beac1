"""MoRA's Table 3: pre-training from scratch through LoRA, MoRA, ReLoRA, ReMoRA, or all weights; perplexity.

Paper (Jiang et al., arXiv 2405.12130, section 5.3): C4, LLaMA-like models of 250M and 1.3B parameters, 10,000 steps of
1,024 x 512 tokens, r=128, embeddings, head and norms trained, everything else frozen at its random start but for the
adapter; no full-rank warm start; MoRA by sharing; merges every 2,000 steps, 50 steps of warm-up after each. Validation
perplexity at 250M / 1.3B: LoRA 33.40 / 28.56, MoRA 28.54 / 25.25, ReLoRA 32.19 / 27.80, ReMoRA 26.74 / 23.34. Fig. 5:
singular values above 0.1 of the whole update, by kind of matrix (`update_spectrum` in result.json).

    python -m experiments.run --config=configs/mora_pretrain.py:data=FOLDER,method=remora      # 14.4M, bytes, one GPU
    python -m experiments.plan --config=configs/mora_pretrain.py:shape=1.3b,method=remora --seq_len=512   # on shapes
    python -m experiments.run --config=configs/mora_pretrain.py:shape=250m,method=remora \\
        --config.task.path=tfds:c4/en:train --config.task.validation_path='tfds:c4/en:validation[:10000]'   # a pod

Shapes:
  small  14.4M parameters over bytes, FOLDER/{novels,peps}_{train,validation}.jsonl.xz (novels and Python's PEPs); 1,500
         steps of 64 x 256 tokens, a merge every 300: four merges. Rates: the middle of the grid's three.
  250m, 1.3b   the paper's. The tokenizer is t5-base's; C4 is read a document at a time (`task.lazy`), each a row of its
         own, cut or padded to 512 tokens: fewer are read than the 5.24B of the paper's joined texts.

Readings, where paper and code disagree (`python -m experiments.tables ledger`): reading=paper takes the jagged cosine
down to a tenth and the groupings 1, 2, 1, ...; reading=code the same schedule again from the rate reached, down to
zero, and the groupings 1, 2, 3, 4, 1, ... (what the README's command runs). Both drop the merged adapters' moments.

The base is float32, as a merge stores its sum in the base's type: in bfloat16 each one would round it.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.common import Count, check_read, parse_arg
from configs.hyperparameters.pretrain import OWN, OWN_RATES, PAPER, READINGS, SHAPES, SMALL, TOKENIZER

ALPHA = PAPER["alpha"] / PAPER["rank"]  # MoRA has none
METHODS = ("mora", "lora", "relora", "remora", "full")
ADAPTED = METHODS[:-1]
# Embeddings, head and norms beside the adapters; every other weight stays as it was drawn.
TRAINABLE = (
    ("adapters/.*", True),
    ("params/(embed|head|final_norm)/.*", True),
    ("params/layers/(attention|mlp)_norm/.*", True),
    (".*", False),
)

ARGUMENTS = {  # see configs/common.py
    "task.path": "data",
    "adapter.rank": "rank",
    "train.steps": "steps",
    "optimizer.learning_rate": "rate",
}


def get_config(arg: str | None = None) -> ConfigDict:
    """The run; `arg` sets shape, method, reading, and what the docstring says."""
    choice = parse_arg(
        arg,
        shape=("small", *SHAPES),
        method=METHODS,
        reading=("paper", "code"),
        data="",
        rank=Count,
        rate=float,
        steps=Count,
        every=Count,
    )
    check_read(choice, rank=ADAPTED, every=("relora", "remora"))
    small = choice.shape == "small"
    numbers = OWN if small else PAPER
    steps = choice.steps or numbers["steps"]
    share = steps / numbers["steps"]  # of the whole length: warm-up and merges keep their places in it
    every = choice.every or max(1, round(numbers["every"] * share))
    reading = READINGS[choice.reading]
    config = ConfigDict()
    config.experiment = "mora_pretrain"
    config.name = None
    config.seed = 0
    config.labels = {"scale": choice.shape, "reading": choice.reading}
    config.base = {"name": SMALL if small else SHAPES[choice.shape], "random_init": True, "dtype": "float32"}
    if choice.method == "full":
        config.trainable, config.adapter = "full", {"method": "none"}
    else:
        config.trainable = TRAINABLE
        config.adapter = {
            "method": choice.method.removeprefix("re"),
            "rank": choice.rank or numbers["rank"],
            "alpha": ALPHA * (choice.rank or numbers["rank"]),
            "targets": ("query", "key", "value", "out", "gate", "up", "down"),
        }
    if choice.method in ("relora", "remora"):
        config.restart = {
            "every": every,
            "warmup_steps": min(numbers["rewarm_steps"], every - 1),
            "schedule": reading["schedule"],
            "groups": reading["groups"],
        }
    rate = OWN_RATES[choice.method][1] if small else PAPER["rate"]
    config.optimizer = {"learning_rate": rate if choice.rate is None else choice.rate}
    config.schedule = {
        "kind": "cosine",
        "warmup_steps": min(round(numbers["warmup_steps"] * share), every - 1),
        "end_fraction": reading["end_fraction"],
    }
    config.train = {"steps": steps, "batch_size": numbers["batch"], "log_every": 10}
    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1}
    config.tracking = {"wandb": "auto", "project": "lowrank_jax", "group": config.experiment}
    config.export = {"adapter": False, "peft": False, "merged": "", "spectrum": True}
    config.task = {"name": "text", "seq_len": numbers["seq_len"]}
    if small:
        _small(config, choice.data)
    else:
        _paper(config)
    return config


def _small(config: Any, folder: str) -> None:
    for key, part in (("path", "train"), ("validation_path", "validation")):
        files = tuple(f"{folder}/{kind}_{part}.jsonl.xz" for kind in ("novels", "peps"))
        config.task[key] = files if folder else ("",)
    config.task.packed = True
    config.checkpoint = {"every": 0, "keep": 1}


def _paper(config: Any) -> None:
    config.base.update({"tokenizer": TOKENIZER, "remat": "projections"})
    config.task.update({"path": "tfds:c4/en:train", "validation_path": "tfds:c4/en:validation[:10000]"})
    config.task.update({"packed": False, "truncate": True, "lazy": True})
    config.train.update({"chunk_tokens": 8_192, "eval_every": 2_000, "accumulate": PAPER["accumulate"]})
    config.checkpoint = {"every": 1_000, "keep": 1}
