"""LoRA's MNLI rows of Tables 4, 16 and 17: a causal model picks the label's word, with all training rows or with few.

Paper (Hu et al., arXiv 2106.09685, section 5.5, appendices D.4, F.3), GPT-3 175B, accuracy on MNLI-m: FT 89.5, BitFit
91.0, PreEmbed 88.6, PreLayer 89.5, Adapter-H 89.8 (7.1M) and 91.5 (40.1M), LoRA 91.7 (4.7M) and 91.6 (37.7M), +-0.1.
With 100, 1,000 and 10,000 training rows FT 60.2, 85.8, 88.9, LoRA 63.8, 85.6, 89.2, PreEmbed 37.6, 75.2, 79.5,
PreLayer 48.3, 82.5, 85.9, +-0.3.

    python -m experiments.run --config=configs/lora_mnli.py:model=gpt2-medium
    python -m experiments.run --config=configs/lora_mnli.py:model=smollm2-135m,method=mora,train_examples=1000
    python -m experiments.run --config=configs/lora_mnli.py:train_examples=100,partial    # pico-llama, a CPU
    python -m experiments.sweep --config=configs/lora_mnli.py --grid=configs/sweeps/mnli_lowdata.py --together=5
    python -m experiments.tables lora_table16 --model=smollm2-135m
    python -m experiments.plan --config=configs/lora_mnli.py:model=gpt3-175b --seq_len=768    # shapes alone

Data: TFDS's glue/mnli, or official tsv files by LOWRANK_JAX_GLUE_DIR or --config.task.data_dir=FOLDER; `partial` allows
incomplete ones, which every record then notes. train_examples=N takes a plain random sample of the training rows, by
task.subset_seed: the same rows for all methods and seeds, and a smaller sample is part of a larger one. Which rows the
paper took is not printed. dev=both scores the mismatched set too.

Prompt and completions: lowrank_jax/tasks/mnli.py; the paper prints none. The loss is on the completion's tokens alone.

Scores: after each epoch, and at the end once more with the weights of the epoch that had the lowest held-out loss over
the three completions (`best/matched`), which are the run's result. The paper reports each run's best validation result.
Both choose the epoch on the set that they report.

Hyperparameters: configs/hyperparameters/mnli.py, GPT-3's for every model. They are where a search begins: smaller bases
take larger rates (`rate`), and the grid searches four a method. alpha is not printed for GPT-3; alpha = 16 here. bitfit
needs a base with biases: GPT-2, not SmolLM2 or pico-llama. preembed, prelayer and LoRA beside them (lora+pe, lora+pl,
appendix E) take Table 17's virtual tokens; prefix= and infix= set others.

gpt3-175b has no public weights: its shape is for plans. Its original attends sparsely in every other layer.

Cost: with pico-llama, which reads bytes and knows no language, seconds to minutes on two cores, at chance (a third).
"""

from ml_collections import ConfigDict

from configs.common import SAMPLED, TRAINING, Count, check_read, parse_arg
from configs.hyperparameters import mnli as tables
from configs.hyperparameters import prefix
from lowrank_jax.core.errors import UserError

PICO, PLANNED = "pico-llama", "gpt3-175b"
MODELS = {
    PICO: PICO,
    "smollm2-135m": "smollm2-135m",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    PLANNED: PLANNED,
}
# method -> (trainable, family)
METHODS = {
    "lora": ("adapters", "lora"),
    "mora": ("adapters", "mora"),
    "adapter-h": ("adapters", "houlsby"),
    "fft": ("full", "none"),
    "bitfit": ("bitfit", "none"),
    "preembed": ("adapters", "preembed"),
    "prelayer": ("adapters", "prelayer"),
    "lora+pe": ("adapters", "lora"),
    "lora+pl": ("adapters", "lora"),
}
PREFIXES = ("preembed", "prelayer")
BESIDE = {"lora+pe": "preembed", "lora+pl": "prelayer"}  # the further family
# Most positions of a base. pico-llama reads bytes, and 0.9% of 3,000 rows of MNLI have more than 512.
POSITIONS = {PICO: 512, "gpt2-medium": 1_024, "gpt2-large": 1_024}
LOSS_TOKENS = 8_192  # positions whose logits exist at a time in the loss

ARGUMENTS = {**TRAINING, **SAMPLED, "optimizer.learning_rate": "rate"}


def get_config(arg: str | None = None) -> ConfigDict:
    """The config of one cell of the tables; what `arg` does not set comes from the paper's hyperparameters."""
    choice = parse_arg(
        arg,
        model=tuple(MODELS),
        method=tuple(METHODS),
        base="",
        train_examples=Count,
        rank=tables.RANK,
        prefix=int,
        infix=int,
        compression="sharing",
        rate=float,
        batch=Count,
        epochs=Count,
        seed=0,
        likelihood=("sum", "per_token", "per_byte"),
        dev=("matched", "both"),
        partial=False,
    )
    check_read(choice, rank=("lora", "mora", "adapter-h", *BESIDE), compression=("mora",))
    numbers = tables.at_size(choice.method, choice.train_examples)
    virtual = _virtual(choice, numbers["prefix"])
    trainable, family = METHODS[choice.method]
    small, planned = choice.model == PICO, choice.model == PLANNED
    config = ConfigDict()
    config.experiment = "lora_mnli"
    config.name = None
    config.seed = choice.seed
    config.labels = {"model": choice.model, "task": "mnli"}
    config.trainable = trainable
    config.base = {
        "name": choice.base or MODELS[choice.model],
        "dtype": "float32" if small else "bfloat16",
        "random_init": planned,
        "remat": "none" if small else "projections",
    }
    config.adapter = prefix.section(family, **virtual) if family in PREFIXES else _adapter(family, choice)
    if choice.method in BESIDE:
        config.adapters = (prefix.section(BESIDE[choice.method], **virtual),)
    config.task = {
        "name": "mnli",
        # The paper's length is that of texts; virtual tokens come on top of it.
        "seq_len": min(tables.SEQ_LEN + sum(virtual.values()), POSITIONS.get(choice.model, tables.SEQ_LEN * 2)),
        "truncate": small,
        "likelihood": choice.likelihood,
        "dev": choice.dev,
        "allow_partial": choice.partial,
    }
    if choice.train_examples:
        config.task["train_examples"] = choice.train_examples
    config.optimizer = {
        "learning_rate": numbers["rate"] if choice.rate is None else choice.rate,
        "weight_decay": tables.WEIGHT_DECAY,
    }
    config.schedule = {"kind": "linear", "warmup_steps": numbers["warmup_steps"]}
    config.train = {
        "epochs": choice.epochs or numbers["epochs"],
        "batch_size": choice.batch or numbers["batch"],
        "log_every": 10,
        "chunk_tokens": 0 if small else LOSS_TOKENS,
    }
    config.evals = {"best": {"type": "choices", "weights": "best"}}
    config.checkpoint = {"every": 1_000, "keep": 1}
    config.mesh = {"data": 1, "fsdp": -1, "tensor": 1} if planned else {"data": -1, "fsdp": 1, "tensor": 1}
    config.tracking = {"wandb": "auto", "project": "lowrank_jax", "group": "lora_mnli"}
    config.export = {"adapter": True, "merged": ""}
    return config


def _virtual(choice, sizes: tuple[int, int] | None) -> dict:
    """{"tokens", "infix"}: `sizes`, the paper's, unless the arguments prefix and infix say otherwise.

    Args:
      choice: the arguments.
      sizes: None of a method without virtual tokens, which gets {}.

    Raises:
      UserError: prefix or infix is given for such a method.
    """
    given = (choice.prefix, choice.infix)
    if sizes is None:
        if given != (None, None):
            raise UserError(f"method={choice.method} has no virtual tokens; leave prefix and infix out")
        return {}
    tokens, infix = (size if one is None else one for size, one in zip(sizes, given, strict=True))
    return {"tokens": tokens, "infix": infix}


def _adapter(family: str, choice) -> dict:
    if family == "none":
        return {"method": family}
    section = {"method": family, "rank": choice.rank, "alpha": 16.0}
    if family in ("lora", "mora"):  # a bottleneck has places of its own
        section["targets"] = ("query", "value")
    return section | ({"mora": {"compression": choice.compression}} if family == "mora" else {})
