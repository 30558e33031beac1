"""LoRA's Table 2: GLUE's dev sets, with every method of the table and MoRA.

Paper (Hu et al., arXiv 2106.09685, section 5.2, appendix D): LoRA on RoBERTa-base, median of 5 seeds, each at its best
epoch: MNLI 87.5, SST-2 95.1, MRPC 89.7, CoLA 63.4, QNLI 93.3, QQP 90.8, RTE 86.6, STS-B 91.5, average 87.2.

    python -m experiments.run --config=configs/lora_glue.py:task=mrpc,method=lora,epochs=3         # MiniLM-L6, a CPU
    python -m experiments.run --config=configs/lora_glue.py:task=cola,model=roberta-base           # the paper's cell
    python -m experiments.trials --config=configs/lora_glue.py:task=mrpc,method=mora --seeds=0:5   # as one program
    python -m experiments.sweep --config=configs/lora_glue.py --grid=configs/sweeps/glue_minilm.py --together=15
    python -m experiments.run --config=configs/lora_glue.py:task=rte,model=roberta-base,start=runs/MNLI_RUN/adapter
    python -m experiments.run --config=configs/lora_glue.py:task=mnli,model=roberta-base,train_examples=100
    python -m experiments.tables lora_table2 --model=minilm-l6

Data: TFDS's glue, or official tsv files by LOWRANK_JAX_GLUE_DIR or --config.task.data_dir=FOLDER; `partial` allows
incomplete ones, and every record says so.

Models: minilm-l6 (scripts/fetch_weights.py minilm-l6; has seen AllNLI and Quora pairs: MNLI and QQP with it are
contaminated), bert-base, roberta-base, roberta-large, deberta-v2-xxlarge (80 GB, --config.base.dtype=bfloat16);
base=FOLDER_OR_HUB_NAME takes other weights of the same kind. Hyperparameters are in configs/hyperparameters/glue.py.
The paper's batches of 4 and 6 do not divide over several devices: use one, or batch=.

Cost on two cores: an epoch of MRPC with MiniLM-L6 a few minutes. PEFT on the same weights (LoRA r=8, alpha 16, rate
1e-3, batch 16) has accuracy 0.696, 0.755, 0.765 and F1 0.816, 0.840, 0.840 after 1, 2 and 3 epochs of MRPC; answering
always yes gives F1 0.812.

Buckets: batches are padded to the next of BUCKETS, so a step compiles 3 to 6 times. Tokens a row of 16 (32 on CoLA,
SST-2, STS-B) random training rows, to their longest / to these buckets / to 32, 64, 128 / to the whole length:
CoLA 23 / 27 / 33 / 128, SST-2 40 / 45 / 59 / 128, MRPC 76 / 84 / 126 / 128, RTE 163 / 193 / 240 / 256, STS-B
69 / 77 / 108 / 128. Steps of 16 all the way would save 2 to 5 more tokens a row (RTE 16) for twice the compilations.

Readings, where paper and official scripts disagree (`python -m experiments.tables ledger`): reading=paper takes Tables
9 and 10 as printed, reading=code the scripts: alpha 16 on RoBERTa-base, r=16 and alpha 32 on DeBERTa-XXL, weight decay
0.1, and the batch of all processes (8 of the printed size). protocol=dagger is Houlsby's restricted set-up, which Table
2 marks with a dagger (RoBERTa-large alone): 128 tokens, one batch size, no start from MNLI.
"""

from ml_collections import ConfigDict

from configs.common import SAMPLED, TRAINING, Count, check_read, parse_arg
from configs.hyperparameters import glue as tables
from lowrank_jax.core.errors import UserError

BUCKETS = (24, 32, 48, 64, 80, 96, 128, 192, 256, 384)
MODELS = {
    "minilm-l6": "minilm-l6",
    "bert-base": "google-bert/bert-base-uncased",
    "roberta-base": "FacebookAI/roberta-base",
    "roberta-large": "FacebookAI/roberta-large",
    "deberta-v2-xxlarge": "microsoft/deberta-v2-xxlarge",
}
METHODS = (
    *("lora", "mora", "dora", "fft", "ft-top2", "bitfit", "head"),
    *("houlsby", "lin", "pfeiffer", "adapterdrop"),
)
KERNEL_METHODS, BOTTLENECKS = ("lora", "mora", "dora"), ("houlsby", "lin", "pfeiffer", "adapterdrop")
TRAINABLE = {"fft": "full", "ft-top2": "ft-top2+head", "bitfit": "bitfit+head", "head": "head"}  # or adapters+head
# Table 5's W_q, W_k, W_v, W_o; plain "out" would name the classifier's last kernel, head/out, too.
LETTERS = {"q": "query", "k": "key", "v": "value", "o": "attention/out"}
# DeBERTa's checkpoint has no pooler: it is drawn fresh like the head, and trained with it, as the official script does.
FRESH_POOLER = {
    "adapters+head": (("adapters/.*", True), ("params/(head|pooler)/.*", True), (".*", False)),
    "bitfit+head": (("params/(.*/)?bias", True), ("params/(head|pooler)/.*", True), (".*", False)),
    "head": (("params/(head|pooler)/.*", True), (".*", False)),
    "full": "full",
}

ARGUMENTS = {**TRAINING, **SAMPLED, "task.seq_len": "seq_len"}


def get_config(arg: str | None = None) -> ConfigDict:
    """One cell; `arg` sets task, model, method and so on, and the paper's tables what it leaves out."""
    choice = parse_arg(
        arg,
        task=("mrpc", "cola", "sst2", "rte", "stsb", "qnli", "qqp", "mnli", "wnli"),
        model=tuple(MODELS),
        method=METHODS,
        base="",
        rank=Count,
        compression="sharing",
        targets="query+value",
        placement=("pfeiffer", "houlsby"),  # of adapterdrop
        drop=5,  # lowest layers without an adapter, of adapterdrop; Rueckle et al. report the first five
        reading=("paper", "code"),
        protocol=("standard", "dagger"),
        epochs=Count,
        batch=Count,
        seq_len=Count,
        train_examples=Count,
        start=str,
        head=("fresh", "adapter"),
        partial=False,
    )
    check_read(
        choice, rank=KERNEL_METHODS + BOTTLENECKS, targets=KERNEL_METHODS, compression=("mora",),
        placement=("adapterdrop",), drop=("adapterdrop",),
    )  # fmt: skip
    numbers = hyperparameters(choice)
    family = choice.placement if choice.method == "adapterdrop" else choice.method
    adapts = choice.method in KERNEL_METHODS + BOTTLENECKS
    config = ConfigDict()
    config.experiment = "lora_glue"
    config.name = None
    config.seed = 0
    config.labels = {"model": choice.model, "protocol": choice.protocol, "reading": choice.reading}
    if choice.method == "adapterdrop" and not choice.drop:
        config.labels["variant"] = "drop0"  # what else would tell it from Adapter-P of its size
    config.base = {"name": choice.base or MODELS[choice.model], "dtype": "float32", **_head_of(choice, numbers)}
    config.trainable = _trainable(choice)
    if not adapts and not isinstance(config.trainable, str):
        config.labels["method"] = choice.method  # rules have no name of their own
    config.adapter = _adapter(choice, family, numbers) if adapts else {"method": "none"}
    config.start = {"adapter": choice.start, "head": choice.head}
    length = numbers["seq_len"]
    config.task = {
        "name": "glue",
        "task": choice.task,
        "seq_len": length,
        "buckets": (*(bucket for bucket in BUCKETS if bucket < length), length),
        "allow_partial": choice.partial,
    }
    if choice.train_examples:
        config.task["train_examples"] = choice.train_examples
    config.optimizer = {"learning_rate": numbers["rate"], "weight_decay": numbers["weight_decay"]}
    config.schedule = {"kind": "linear", "warmup_fraction": numbers["warmup_fraction"]}
    if numbers.get("warmup_steps"):
        config.schedule["warmup_steps"] = numbers["warmup_steps"]
    config.train = {"epochs": numbers["epochs"], "batch_size": numbers["batch"], "log_every": 10}
    config.checkpoint = {"every": 2_000, "keep": 1}
    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1}
    config.tracking = {"wandb": "auto", "project": "lowrank_jax", "group": "lora_glue"}
    config.export = {"adapter": True, "merged": ""}
    return config


def hyperparameters(choice) -> dict:
    """Batch, epochs, rate, rank and so on of one cell: from the model's table, then the reading, then the argument.

    Raises:
      UserError: a reading or protocol that the paper does not have for this model and method.
    """
    model, method = choice.model, choice.method
    published = (model, "standard") in tables.LORA
    if choice.reading == "code" and not (published and method in ("lora", "dora", "mora")):
        raise UserError(f"reading=code: official scripts train LoRA on RoBERTa and DeBERTa; not {method} on {model}")
    if choice.protocol == "dagger" and not (model == "roberta-large" and method in ("lora", "houlsby", "pfeiffer")):
        raise UserError(
            "protocol=dagger: Table 2 has it for lora, houlsby and pfeiffer on roberta-large; take protocol=standard"
        )
    if choice.protocol == "dagger" and (choice.start or choice.reading == "code"):
        raise UserError("protocol=dagger neither starts from MNLI nor has scripts; leave start and reading out")
    rank = choice.rank or tables.RANKS.get(method)
    if not published:
        rates = tables.OWN_RATES[model]
        found = {**tables.at_task(tables.OWN, choice.task), "rate": rates.get(method, rates[None])}
    else:
        found = tables.at_task(_published(choice, rank), choice.task)
        found["batch"] *= found.pop("processes", 1)
    if choice.train_examples in tables.LOW_DATA:
        found["batch"], found["epochs"] = tables.LOW_DATA[choice.train_examples]
    given = {"rank": rank, "epochs": choice.epochs, "batch": choice.batch, "seq_len": choice.seq_len}
    return found | {name: value for name, value in given.items() if value}


def _published(choice, rank: int | None) -> dict:
    """The paper's columns for one of its models: LoRA's, or ours for a method without a column."""
    model, method = choice.model, choice.method
    lora = tables.LORA[model, choice.protocol]
    if choice.reading == "code":
        lora = lora | tables.SCRIPTS[model]
    if method in BOTTLENECKS:
        family = "houlsby" if choice.placement == "houlsby" or method == "houlsby" else "pfeiffer"
        small = tables.RANKS[family]
        return lora | tables.ADAPTERS[family, 64 if rank == 64 else small]
    if method in ("fft", "ft-top2"):
        return lora | tables.FULL | {"rate": tables.FULL_RATES[model]}
    return lora | ({"rate": tables.OTHER_RATES[method]} if method in tables.OTHER_RATES else {})


def _adapter(choice, family: str, numbers: dict) -> dict:
    section = {"method": family, "rank": numbers["rank"], "alpha": numbers["alpha"]}
    if family in KERNEL_METHODS:
        section["targets"] = _targets(choice.targets)
        if family == "mora":
            section["mora"] = {"compression": choice.compression}
        # A's start: loralib's uniform one on RoBERTa, N(0, 0.02^2) in DeBERTa's script, in the paper a Gaussian of
        # unstated std. For d = 768 the uniform one has std 0.021.
        gaussian = choice.model.startswith("deberta")
        gaussian |= choice.model.startswith("roberta") and choice.reading == "paper"
        section["init"] = "gaussian" if gaussian and family != "mora" else "kaiming_uniform"
    elif choice.method == "adapterdrop":
        section["bottleneck"] = {"drop_layers": choice.drop}
    return section


def _targets(text: str) -> tuple[str, ...]:
    """ "q+v" or "query+value" -> ("query", "value")."""
    return tuple(LETTERS.get(name, name) for name in text.split("+"))


def _trainable(choice):
    rules = TRAINABLE.get(choice.method, "adapters+head")
    if not choice.model.startswith("deberta"):
        return rules
    if rules not in FRESH_POOLER:
        raise UserError("method=ft-top2 leaves DeBERTa's pooler, which its checkpoint lacks, untrained; take fft")
    return FRESH_POOLER[rules]


def _head_of(choice, numbers: dict) -> dict:
    """What the checkpoint lacks (the classifier) and has in addition (pre-training's heads)."""
    positions = r"(.*\.)?embeddings\.position_ids"
    if choice.model.startswith("deberta"):
        rate = {"classifier_dropout": numbers["cls_dropout"]} if "cls_dropout" in numbers else {}
        return {"fresh": ("head/.*", "pooler/.*"), "unused": (positions,), **rate}
    if choice.model.startswith("roberta"):
        return {"fresh": ("head/.*",), "unused": (positions, r"lm_head\..*", r"(roberta\.)?pooler\..*")}
    return {"fresh": ("head/.*",), "unused": (positions, r"cls\..*")}
