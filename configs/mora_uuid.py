"""MoRA's Table 2: memorise random UUID pairs through LoRA, MoRA or full fine-tuning of a frozen language model.

Paper (Jiang et al., arXiv 2405.12130, sections 3 and 5.1): LLaMA-2 7B, 10,000 pairs, 1,000 a batch, 1,000 steps;
digits recalled after 300 / 500 / 700 / 900 steps: FFT 42.5 / 100 / 100 / 100, LoRA r=8 9.9 / 10.0 / 10.7 / 54.2,
MoRA r=8 10.1 / 15.7 / 87.4 / 100, LoRA r=256 9.9 / 70.6 / 100 / 100, MoRA r=256 41.6 / 100 / 100 / 100.

    python -m experiments.run --config=configs/mora_uuid.py                                  # laptop, MoRA r=8
    python -m experiments.run --config=configs/mora_uuid.py:method=lora                      # laptop, LoRA r=8
    python -m experiments.run --config=configs/mora_uuid.py:scale=gpu,method=mora,rank=32    # SmolLM2-135M, one GPU
    python -m experiments.run --config=configs/mora_uuid.py:scale=paper,method=lora,rank=256 \\
        --config.base.name=/path/to/Llama-2-7b-hf                                            # the paper's own setting
    python -m experiments.run --config=configs/mora_uuid.py:data=text --config.task.path=mine.jsonl  # your JSON lines

Scales:
  laptop  pico-llama (3.3M parameters, bytes, shipped), 64 pairs in one batch, loss on the value; 1 minute on 2 cores.
  gpu     SmolLM2-135M (scripts/fetch_weights.py smollm2-135m), 10,000 pairs, 1,000 a batch, 1,000 steps, bfloat16 base.
  paper   LLaMA-2 7B by folder or Hub name, the paper's settings, sharded over all devices.

Readings, where paper and official code disagree (`python -m experiments.tables ledger`): reading=code takes the
author's reply in issue 18 (batch 1024, loss on all tokens, BOS, dropout 0.05), reading=paper the paper's text.
"""

from ml_collections import ConfigDict

from configs.common import check_read, parse_arg

# Peak rates: laptop and gpu from this project's recorded grids (experiments/results), paper from its section 5.1.
LEARNING_RATES = {
    "laptop": {"fft": 1e-3, "lora": 3e-3, "mora": 3e-3},
    "gpu": {"fft": 3e-4, "lora": 3e-3, "mora": 1e-3},
    "paper": {"fft": 3e-5, "lora": 3e-4, "mora": 1e-4},
}
LIKE_LORA = ("rslora", "dora")  # they take LoRA's rate, unsearched; configs/sweeps/rates_uuid.py searches each
# Hu et al. and the MoRA authors' scripts: alpha 16 at r=8, 128 at r=256; MoRA has no alpha.
ALPHA_LARGE_RANK = 128.0


def get_config(arg: str | None = None) -> ConfigDict:
    """The run; `arg` sets scale, method, rank, compression, reading and data."""
    choice = parse_arg(
        arg,
        scale=("laptop", "gpu", "paper"),
        method=("mora", "lora", "fft", *LIKE_LORA),
        rank=8,
        compression="sharing",
        reading=("paper", "code"),
        data=("uuid", "text"),
    )
    check_read(choice, rank=("mora", "lora", *LIKE_LORA), compression=("mora",))
    config = ConfigDict()
    config.experiment = "mora_uuid" if choice.data == "uuid" else "finetune"
    config.name = None
    config.seed = 0
    config.labels = {"scale": choice.scale}
    config.trainable = "full" if choice.method == "fft" else "adapters"
    config.adapter = {
        "method": {"fft": "none", "rslora": "lora"}.get(choice.method, choice.method),
        "rank": choice.rank,
        "alpha": 16.0 if choice.rank < 128 else ALPHA_LARGE_RANK,
        "targets": ("query", "key", "value", "out", "gate", "up", "down"),
        "dropout": 0.05 if choice.reading == "code" else 0.0,
        "mora": {"compression": choice.compression},
    }
    if choice.method == "rslora":
        config.labels["method"], config.adapter["scaling"] = "rslora", "rslora"
    rate_of = "lora" if choice.method in LIKE_LORA else choice.method
    config.optimizer = {"learning_rate": LEARNING_RATES[choice.scale][rate_of]}
    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1}
    config.tracking = {"wandb": "auto", "project": "lowrank_jax", "group": config.experiment}
    config.export = {"adapter": True, "merged": ""}
    {"laptop": _laptop, "gpu": _gpu, "paper": _paper}[choice.scale](config)
    if choice.reading == "code":
        config.update(task={"add_bos": True, "loss_on": "all"})
        if choice.scale == "paper":
            config.update(train={"batch_size": 1024})
    if choice.data == "text":
        _own_data(config)
    return config


def _own_data(config: ConfigDict) -> None:
    """Your own JSON lines: row length, batch and steps are 0, so that they are chosen from the data."""
    config.task = {"name": "text", "path": "", "seq_len": 0, "packed": False, "truncate": True, "validation_path": None}
    config.schedule = {"kind": "linear", "warmup_steps": 5, "warmup_start": "one"}
    config.update(train={"steps": 0, "batch_size": 0, "eval_steps": ()})


def _laptop(config: ConfigDict) -> None:
    config.base = {"name": "pico-llama", "dtype": "float32"}
    config.task = {"name": "uuid", "pairs": 64, "seed": 0, "loss_on": "value", "add_bos": False, "add_eos": False}
    config.schedule = {"kind": "linear", "warmup_steps": 5}
    config.train = {"steps": 100, "batch_size": 64, "accumulate": 1, "log_every": 1, "eval_steps": (25, 50, 75)}
    config.checkpoint = {"every": 25, "keep": 2}


def _gpu(config: ConfigDict) -> None:
    config.base = {"name": "smollm2-135m", "dtype": "bfloat16", "remat": "projections"}
    config.task = {"name": "uuid", "pairs": 10_000, "seed": 0, "loss_on": "all", "add_bos": False, "add_eos": False}
    config.task["eval_pairs"] = 2_000
    config.schedule = {"kind": "linear", "warmup_steps": 100}
    config.train = {
        "steps": 1_000,
        "batch_size": 1_000,
        "accumulate": 1,
        "log_every": 5,
        "eval_steps": (200, 300, 500, 700, 900),
    }
    config.checkpoint = {"every": 250, "keep": 1}


def _paper(config: ConfigDict) -> None:
    config.base = {"name": "meta-llama/Llama-2-7b-hf", "dtype": "bfloat16", "remat": "full"}
    config.task = {"name": "uuid", "pairs": 10_000, "seed": 0, "loss_on": "all", "add_bos": True, "add_eos": False}
    config.task["eval_pairs"] = 1_000
    config.schedule = {"kind": "linear", "warmup_steps": 100}
    config.train = {
        "steps": 1_000,
        "batch_size": 1_000,
        "accumulate": 1,
        "chunk_tokens": 8_192,
        "log_every": 5,
        "eval_steps": (300, 500, 700, 900),
    }
    config.checkpoint = {"every": 250, "keep": 1}
    config.mesh = {"data": 1, "fsdp": -1, "tensor": 1}
