"""Fine-tunes your own base on your own data, by LoRA, MoRA, DoRA or all weights; held-out loss after each epoch.

    python -m experiments.run --config=configs/finetune.py:data=talks.jsonl,chat=zephyr    # pico-llama, a CPU
    python -m experiments.run --config=configs/finetune.py:base=FOLDER_OR_HUB_NAME,data=a.jsonl,validation=b.jsonl
    python -m experiments.run --config=configs/finetune.py:base=NAME,data=hub:owner/name:train,method=mora,packed

Data: JSON lines, a JSON array, Parquet, a folder of these, hub:owner/name:split or tfds:name:split. Rows are texts,
prompts with completions, or conversations (docs/data.md). A conversation is written by the base's own chat template, or
by the one that `chat` names; only what the assistant says is learned. Length and, with batch=0 and epochs=0, batch and
number of steps come from the data; --config.task.seq_len, --config.train.batch_size and --config.train.steps set them.
A path with a comma cannot be an argument: give it as --config.task.path. Llama 2 and Gemma begin every text with BOS:
for texts, prompts and completions set --config.task.add_bos=true; a chat template writes its own.

validation: held-out rows, scored after each epoch; the model's answers to the first of them are written to
samples.jsonl and to W&B, with those that the data have.

packed: several whole rows share a line of the batch, without seeing each other: less padding, and fewer steps.

Rates: those of adapters are about ten times those of all weights. Adam's step is as large as the rate, whatever the
gradient; an adapter's weights start at zero or small and are scaled by alpha / r, while a base's must keep what they
know. 3e-4 for adapters and 2e-5 for all weights lie in the ranges that are in common use (2e-4 to 1e-3, and 1e-5 to
5e-5; they were not searched here): for small bases take the upper end, for 7B and more the lower. pico-llama takes
the rates of this project's recorded grids (configs/mora_uuid.py). A small file gives few steps: raise epochs, lower
batch (epochs=10,batch=4,rate=1e-3); a run of fewer steps than a length that is left to the data has says so. alpha is
2 r, by which a change of the rank asks for no other rate. MoRA has no alpha.

dtype=auto: bfloat16, for an accelerator, and float32 for pico-llama, which is for a CPU; the trained weights are
float32 in any case. Cost: with pico-llama seconds to minutes on two cores.
"""

from ml_collections import ConfigDict

from configs.common import OWN_ROWS, TRAINING, check_read, parse_arg

PICO = "pico-llama"
RATES = {"lora": 3e-4, "mora": 3e-4, "dora": 3e-4, "fft": 2e-5}
PICO_RATES = {"lora": 3e-3, "mora": 3e-3, "dora": 3e-3, "fft": 1e-3}
# Most tokens of a row: pico-llama has 512 positions; for others, memory grows with it, and few rows are longer.
PICO_LENGTH, LENGTH = 512, 2_048
LOSS_TOKENS = 8_192  # logits of so many tokens at a time: a vocabulary of 128,000 takes 4 GiB of them in float32
NEW_TOKENS = 128  # most new tokens of a sample
EVERY_KERNEL = "(query|key|value|out|gate|up|down)"  # a base may lack some: GPT-2 has no gate

ARGUMENTS = {
    **TRAINING,
    **OWN_ROWS,
    "base.dtype": "dtype",
    "adapter.method": "method",
    "optimizer.learning_rate": "rate",
    "schedule.kind": "schedule",
}


def get_config(arg: str | None = None) -> ConfigDict:
    """The run; `arg` names base and data, and sets what the docstring says."""
    choice = parse_arg(
        arg,
        base=PICO,
        data="",
        validation=str,
        method=("lora", "mora", "dora", "fft"),
        rank=8,
        epochs=3,
        batch=16,
        packed=False,
        chat="",
        rate=float,
        schedule=("cosine", "linear"),
        dtype=("auto", "bfloat16", "float32"),
    )
    check_read(choice, rank=("lora", "mora", "dora"))
    small = choice.base == PICO
    config = ConfigDict()
    config.experiment = "finetune"
    config.name = None
    config.seed = 0
    config.labels = {"scale": choice.base}
    config.trainable = "full" if choice.method == "fft" else "adapters"
    dtype = {"auto": "float32" if small else "bfloat16"}.get(choice.dtype, choice.dtype)
    config.base = {"name": choice.base, "dtype": dtype, "remat": "none" if small else "projections"}
    config.adapter = {
        "method": "none" if choice.method == "fft" else choice.method,
        "rank": choice.rank,
        "alpha": 2.0 * choice.rank,
        "targets": (EVERY_KERNEL,),
    }
    config.task = {
        "name": "text",
        "path": choice.data,
        "validation_path": choice.validation,
        "seq_len": 0,
        "max_seq_len": PICO_LENGTH if small else LENGTH,
        "packed": choice.packed,
        "truncate": True,
        "chat_template": choice.chat,
        "documents": "separate" if choice.packed else "joined",
    }
    rate = (PICO_RATES if small else RATES)[choice.method] if choice.rate is None else choice.rate
    config.optimizer = {"learning_rate": rate}
    config.schedule = {"kind": choice.schedule, "warmup_fraction": 0.05, "warmup_start": "one"}
    config.train = {"steps": 0, "epochs": choice.epochs, "batch_size": choice.batch}
    if choice.validation:
        config.evals = {"samples": {"type": "samples", "with_train": True, "count": 4, "max_new_tokens": NEW_TOKENS}}
    config.train["chunk_tokens"] = 0 if small else LOSS_TOKENS
    config.checkpoint = {"every": 100, "keep": 1}
    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1}
    config.tracking = {"wandb": "auto", "project": "lowrank_jax", "group": "finetune"}
    config.export = {"adapter": choice.method != "fft", "merged": "" if choice.method != "fft" else "float32"}
    return config
