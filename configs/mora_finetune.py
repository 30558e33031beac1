"""MoRA's Tables 1, 4, 6 and 7: instruction tuning, mathematics, and continual pre-training on two domains.

Paper (Jiang et al., arXiv 2405.12130, sections 5.2 and 5.4, appendix A), LLaMA-2 7B, GSM8K after MetaMathQA: FFT 66.6;
r=8: LoRA 64.6, LoRA+ 64.1, ReLoRA 61.5, AsyLoRA 64.5, DoRA 64.5, MoRA 64.2; r=256: LoRA 67.9, MoRA 67.9. No spread is
given; the other columns and tables: `python -m experiments.tables mora_table1` (and mora_table4, 6, 7).

    CONFIG=configs/mora_finetune.py
    python -m experiments.plan --config=$CONFIG:task=math,base=llama2-7b --config.base.random_init=true --seq_len=512
    python -m experiments.run --config=$CONFIG:task=math,base=/path/to/Llama-2-7b-hf   # the paper's
    python -m experiments.run --config=$CONFIG:task=math,model=smollm2-135m,data=train.jsonl,validation=test.jsonl
    python -m experiments.run --config=$CONFIG:task=instruct,model=gemma3-270m,data=a.jsonl,forgetting=b.jsonl,c.jsonl
    python -m experiments.run --config=$CONFIG:task=biomed,model=pico-llama,data=abstracts.jsonl,steps=50    # a CPU

Tasks and data (data= and validation= take any source of docs/data.md):
  instruct  Tulu v2 from the Hub, or conversations, instructions (Dolly-15k) or prompts with completions of yours, the
            last without a chat template; the loss is on the answers.
  math      MetaMathQA from the Hub in Alpaca's prompt, or questions with answers of yours (GSM8K) in lm-eval's.
  biomed, finance  continual pre-training on plain texts, which data= must name: the paper's (PubMed abstracts and
            financial news, made into AdaptLLM's reading comprehension) are not published as one data set.
  domain    the same on texts of any other domain, with biomed's hyperparameters; configs/sweeps/domains.py has two.

Models: llama2-7b (base=FOLDER_OR_HUB_NAME; Table 5's numbers, all devices), smollm2-135m, gemma3-270m
(scripts/fetch_weights.py) and pico-llama (a CPU), with our own batch, lengths and rates. Hyperparameters:
configs/hyperparameters/mora_finetune.py. Of the two rates that the paper tried, a run takes the larger, as the official
example does; rate= sets another.

Methods: fft, lora, lora+ (ratio= is B's rate over A's), relora (every= steps between merges; its product is the merged
model, and its runs train one by one), asylora (`frozen` freezes A), dora, rslora, mora (compression=
truncation, sharing, decoupling, rotation, or a grouping of the official code, type1 to type4). Without compression=,
rotation below r=128 and sharing from there on; Table 5 has r=8 and r=256.

Evaluations: the held-out loss of validation= before training (`start`), after each epoch and at the end; forgetting=
measures the loss on text that is not trained on before training and at the end, on 64 rows of 256 tokens of each file;
`exams` asks the task's exams then, without examples but for MMLU's 5 shots: MMLU, GSM8K and MATH, every column of Table
6 (PubMedQA, MedQA, MMLU's medical subjects, RCT) or of Table 7 (ConvFinQA, FiQA SA, Headline, NER, FPB, and Financial
PhraseBank's own sentences), and for `domain` MMLU, from their files below $LOWRANK_JAX_EXAMS_DIR (docs/evaluation.md
names them); questions=N asks N of each, evenly spaced. For biomed, finance and domain an exam without a file is
left out, and the tables say so.

All bases except pico-llama are bfloat16, so each merge of relora rounds their weights to 8 significant bits, which
tables say; `--config.base.dtype=float32` keeps them, in twice the memory.

Readings (`python -m experiments.tables ledger`): reading=paper takes Table 5 as printed, reading=code the official
train.py: a warm-up of 3% on MetaMathQA, dropout 0.05, for relora the schedule begun again after each merge, not
jagged, and for asylora a start from numbers that are not centred.
"""

from ml_collections import ConfigDict

from configs.common import OWN_ROWS, TRAINING, Count, Several, check_read, parse_arg
from configs.hyperparameters import mora_finetune as tables
from lowrank_jax.core.errors import UserError

MODELS = {
    "llama2-7b": "meta-llama/Llama-2-7b-hf",
    "smollm2-135m": "smollm2-135m",
    "gemma3-270m": "gemma3-270m",
    "pico-llama": "pico-llama",
}
PAPER = "llama2-7b"
DATA = {"instruct": "hub:allenai/tulu-v2-sft-mixture:train", "math": "hub:meta-math/MetaMathQA:train"}
WITH_BOS = ("llama2-7b", "gemma3-270m")  # bases that expect every text to begin with BOS
FAMILIES = {"mora": "mora", "dora": "dora"}  # method -> adapter.method; the others are LoRA
ADAPTERS = ("mora", "lora", "lora+", "relora", "asylora", "dora", "rslora")
TARGETS = ("query", "key", "value", "out", "gate", "up", "down")
# Positions whose logits exist at a time in the loss; gemma3-270m has a vocabulary of 262,144.
CHUNKS = {"llama2-7b": 8_192, "smollm2-135m": 8_192, "gemma3-270m": 2_048, "pico-llama": 0}

ARGUMENTS = {
    **TRAINING,
    **OWN_ROWS,
    "task.seq_len": "seq_len",
    "train.steps": "steps",
    "optimizer.learning_rate": "rate",
}


def get_config(arg: str | None = None) -> ConfigDict:
    """The config of one cell of the tables; what `arg` does not set comes from the hyperparameters."""
    choice = parse_arg(
        arg,
        task=("math", "instruct", *tables.DOMAINS),
        model=tuple(MODELS),
        method=(*ADAPTERS, "fft"),
        rank=8,
        base="",
        compression="",
        ratio=float,
        every=Count,
        frozen=False,
        reading=("paper", "code"),
        data="",
        validation=str,
        forgetting=Several,
        exams=False,
        questions=Count,
        chat="auto",
        rate=float,
        seed=0,
        epochs=Count,
        steps=Count,
        batch=Count,
        seq_len=Count,
        packed=False,
    )
    check_read(choice, rank=ADAPTERS, compression=("mora",), ratio=("lora+",), every=("relora",), frozen=("asylora",))
    if choice.steps and choice.epochs:
        raise UserError("steps= and epochs= both say how long a run is; leave one out")
    config = ConfigDict()
    config.experiment = "mora_finetune"
    config.name = None
    config.seed = choice.seed
    config.labels = {"model": choice.model, "task": choice.task, "reading": choice.reading}
    config.base = {
        "name": choice.base or MODELS[choice.model],
        "dtype": "float32" if choice.model == "pico-llama" else "bfloat16",
        "remat": "none" if choice.model == "pico-llama" else "projections",
    }
    if choice.frozen:
        config.trainable = (("adapters/.*/b", True), (".*", False))
    else:
        config.trainable = "full" if choice.method == "fft" else "adapters"
    config.adapter = _adapter(choice)
    if choice.method == "rslora":
        config.labels["method"] = "rslora"
    if choice.method == "relora":
        config.restart = _restart(choice)
    config.task = _task(choice)
    config.optimizer = {"learning_rate": _rate(choice) if choice.rate is None else choice.rate}
    if choice.method == "lora+":
        ratio = tables.RATIOS[0] if choice.ratio is None else choice.ratio
        config.optimizer["multipliers"] = (("adapters/.*/b", ratio),)
    config.schedule = _schedule(choice)
    config.train = {
        "batch_size": choice.batch or (tables.BATCH if choice.model == PAPER else tables.OWN_BATCH),
        "accumulate": tables.ACCUMULATE if choice.model == PAPER and not choice.batch else 1,
        "chunk_tokens": CHUNKS[choice.model],
        "log_every": 10,
    }
    length = {"steps": choice.steps} if choice.steps else {"epochs": _epochs(choice)}
    config.train.update(length)
    if choice.steps and choice.validation:
        config.train["eval_steps"] = (choice.steps,)
    config.evals = _evals(choice)
    config.checkpoint = {"every": 500, "keep": 1}
    config.mesh = (
        {"data": 1, "fsdp": -1, "tensor": 1} if choice.model == PAPER else {"data": -1, "fsdp": 1, "tensor": 1}
    )
    config.tracking = {"wandb": "auto", "project": "lowrank_jax", "group": "mora_finetune"}
    whole = choice.method in ("fft", "relora")  # no adapter holds what these have learned
    config.export = {"adapter": not whole, "merged": "bfloat16" if whole else ""}
    return config


def _rate(choice) -> float:
    if choice.model != PAPER:
        return tables.own_rate(choice.model, choice.method, choice.rank)
    return max(tables.rates_of(choice.task, choice.method, choice.rank))


def _epochs(choice) -> int:
    return choice.epochs or tables.TABLE5[choice.task]["epochs"]


def _adapter(choice) -> dict:
    if choice.method == "fft":
        return {"method": "none"}
    section = {
        "method": FAMILIES.get(choice.method, "lora"),
        "rank": choice.rank,
        "alpha": tables.ALPHA[_table_rank(choice)],
        "targets": TARGETS,
        "dropout": tables.CODE_DROPOUT if choice.reading == "code" else 0.0,
    }
    if choice.method == "mora":
        section["mora"] = {"compression": choice.compression or tables.COMPRESSIONS[_table_rank(choice)]}
    if choice.method == "asylora":
        section["init"] = "asylora" if choice.reading == "paper" else "asylora_uncentred"
    if choice.method == "rslora":
        section["scaling"] = "rslora"
    return section


def _table_rank(choice) -> int:
    """The rank of Table 5 whose settings a run takes."""
    return tables.RANKS[choice.rank >= tables.LARGE_RANK]


def _restart(choice) -> dict:
    every, rewarm = (
        (tables.MERGES[0], tables.REWARM) if choice.model == PAPER else (tables.OWN_MERGES, tables.OWN_REWARM)
    )
    every = choice.every or every
    jagged = choice.reading == "paper" and tables.TABLE5[choice.task]["kind"] == "cosine"
    schedule = "jagged" if jagged else "restart"
    return {"every": every, "warmup_steps": min(rewarm, max(1, every // 2), every - 1), "schedule": schedule}


def _task(choice) -> dict:
    data = choice.data or DATA.get(choice.task)
    if not data:
        raise UserError(
            f"task={choice.task} has no data set to download; give data=FILE, plain texts as docs/data.md has them"
        )
    length = choice.seq_len or (
        tables.LENGTHS.get(choice.task, tables.LENGTH)
        if choice.model == PAPER
        else min(tables.OWN_LENGTHS[choice.model], tables.LENGTHS.get(choice.task, tables.LENGTH))
    )
    texts = choice.task in tables.DOMAINS
    if texts and choice.chat != "auto":
        raise UserError(f"task={choice.task} reads plain texts, which no chat template writes; leave chat out")
    return {
        "name": "text",
        "path": data,
        "validation_path": choice.validation,
        "seq_len": length,
        "packed": texts or choice.packed,
        "documents": "separate" if choice.packed and not texts else "joined",
        "truncate": True,
        "add_bos": choice.model in WITH_BOS,
        **({"chat_template": ""} if texts else _written(choice)),
    }


def _written(choice) -> dict:
    """The chat template. Where the user named none, prompts with completions are also taken, without the template."""
    template = _chat(choice)
    instruct = choice.task == "instruct" and choice.data and choice.chat == "auto" and template
    return {"chat_template": template, **({"also_prompts": True} if instruct else {})}


def _chat(choice) -> str:
    """The template by name; "" is the base's own."""
    if choice.chat != "auto":
        return "" if choice.chat == "own" else choice.chat
    if choice.task == "math":
        return "question" if choice.data else "alpaca"
    return "" if choice.model == "smollm2-135m" else "tulu"


def _schedule(choice) -> dict:
    numbers = tables.TABLE5[choice.task]
    if choice.model != PAPER:
        return {"kind": numbers["kind"], "warmup_fraction": tables.OWN_WARMUP, "warmup_start": "one"}
    warmup = {"warmup_steps": numbers["warmup_steps"]}
    if choice.reading == "code":
        warmup |= tables.CODE.get(choice.task, {})
    return {"kind": numbers["kind"], **{name: value for name, value in warmup.items() if value}}


def _evals(choice) -> dict:
    if choice.questions and not choice.exams:
        raise UserError("questions= says how many of each exam are asked; add exams, or leave it out")
    asked = tables.EXAMS[choice.task] if choice.exams else {}
    often = {"at_start": True, "truncate": True, **({"max_rows": choice.questions} if choice.questions else {})}
    found = {name: {**exam, **often} for name, exam in asked.items()}
    if choice.validation:  # later evaluations of it are the task's own
        found["start"] = {"type": "likelihood", "at_start": True, "at_end": False}
    if choice.forgetting:
        found["forgetting"] = {
            "type": "forgetting",
            "path": choice.forgetting,
            "at_start": True,
            "add_bos": choice.model in WITH_BOS,
        }
    return found
