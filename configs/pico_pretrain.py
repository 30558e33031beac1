"""Pretraining of pico-llama, the 3.3M-parameter byte-level Llama that this package ships as the laptop base.

Next-token prediction on bytes, all weights trained, windows of 512 over plain public-domain English (novels of 1839 to
1930 and Python Enhancement Proposals, 86 MB). Cost: minutes on one GPU. Expected: under 1.0 nats a byte on held-out
novels. The model card with the weights has the command, the data and the loss reached.

    python -m experiments.run --config=configs/pico_pretrain.py \\
        --config.task.path='("novels_train.jsonl.xz","peps_train.jsonl.xz")' \\
        --config.task.validation_path='("novels_validation.jsonl.xz","peps_validation.jsonl.xz")'
    cp runs/NAME/model/{config.json,model.safetensors} lowrank_jax/assets/pico-llama/
"""

from ml_collections import ConfigDict

from configs.common import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    """The run; `arg` may set steps and the compute dtype (float32 on a CPU)."""
    choice = parse_arg(arg, steps=6_000, dtype=("bfloat16", "float32"))
    config = ConfigDict()
    config.experiment = "pico_pretrain"
    config.name = None
    config.seed = 0
    config.labels = {"scale": "pico-llama"}
    config.trainable = "full"
    config.base = {"name": "pico-llama", "dtype": choice.dtype, "random_init": True}
    config.adapter = {"method": "none"}
    config.task = {"name": "text", "path": ("",), "validation_path": ("",), "seq_len": 512, "packed": True}
    config.optimizer = {"learning_rate": 3e-3, "b2": 0.95, "weight_decay": 0.1, "clip_norm": 1.0}
    config.schedule = {"kind": "cosine", "warmup_steps": min(300, choice.steps // 10), "end_fraction": 0.02}
    config.train = {"steps": choice.steps, "batch_size": 256, "log_every": 50, "eval_every": 3_000, "eval_steps": ()}
    config.checkpoint = {"every": 3_000, "keep": 1}
    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1}
    config.tracking = {"wandb": "auto", "project": "lowrank_jax", "group": "pico_pretrain"}
    config.export = {"adapter": False, "merged": "float16"}
    return config
