"""configs/lora_glue.py: every cell of the paper on shapes, its tables, its readings, and what it refuses."""

import importlib
import math
from pathlib import Path

import jax
import pytest
from config_files import unpack_file

from configs.hyperparameters import glue as tables
from configs.sweeps import glue_minilm
from experiments.cli import complete_file
from experiments.config.defaults import complete
from experiments.config.plain import to_plain
from experiments.session.build import build
from experiments.sweeps.compatible import group_key
from lowrank_jax.core.errors import UserError
from lowrank_jax.data.builders.glue.specs import GLUE

ROOT = Path(__file__).parents[1]
FILE = "configs/lora_glue.py"


@pytest.fixture(autouse=True)
def nothing_fetched(monkeypatch, tmp_path):
    """No weights in the cache, no Hub, and the paths that configs are named by."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("LOWRANK_JAX_CACHE", str(tmp_path / "cache"))


def unpacked(arg, **changes):
    return unpack_file(f"{FILE}:{arg}", **changes)


def laid_out(arg):
    """(experiment on the model's registered shape, its config)."""
    config = unpacked(arg)
    shape = config.labels["model"]
    return build(unpacked(arg, base__name=shape, base__random_init=True), 16, devices=jax.devices()[:1]), config


# model, method -> trainable scalars of the adapters; the paper's counts, and ours beside LoRA's on MiniLM-L6.
COUNTS = {
    "model=roberta-base,method=lora": 294_912,
    "model=roberta-large,method=lora": 786_432,
    "model=roberta-large,method=lora,protocol=dagger": 786_432,
    "model=deberta-v2-xxlarge,method=lora": 2_359_296,
    "model=deberta-v2-xxlarge,method=lora,reading=code": 4_718_592,
    "model=roberta-large,method=pfeiffer,rank=64,protocol=dagger": 3_171_840,
    "model=roberta-large,method=pfeiffer,protocol=dagger": 811_392,
    "model=roberta-large,method=houlsby,rank=64,protocol=dagger": 6_343_680,
    "model=roberta-large,method=houlsby,protocol=dagger": 835_968,
    "model=roberta-base,method=adapterdrop,drop=0": 894_528,
    "model=roberta-base,method=adapterdrop,drop=8": 298_176,
    "method=lora": 73_728,
    "method=mora": 12 * 78**2,
    "method=mora,compression=rotation": 12 * 78**2,
    "method=houlsby": 78_432,
    "method=pfeiffer": 76_128,
    "method=lin": 80_736,
}


@pytest.mark.parametrize("arg", COUNTS)
def test_parameter_counts(arg):
    experiment, config = laid_out(arg)
    assert experiment.plan.parameters == COUNTS[arg]
    head = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(experiment.abstract_state.trainable.get("params", {})))
    hidden = experiment.base.config.hidden_size
    dense = 0 if config.labels["model"] == "minilm-l6" else hidden * (hidden + 1)  # RoBERTa's head; DeBERTa's pooler
    assert head == dense + 2 * (hidden + 1)


@pytest.mark.parametrize("method", ["fft", "ft-top2", "bitfit", "head", "dora", "lin"])
@pytest.mark.parametrize("model", ["minilm-l6", "bert-base", "roberta-base"])
def test_methods_that_are_rules_and_the_rest(model, method):
    experiment, config = laid_out(f"model={model},method={method},task=stsb")
    trainable = experiment.abstract_state.trainable
    assert "head" in trainable["params"]
    assert bool(experiment.plan.sites) == (method in ("dora", "lin"))
    assert config.labels["rank"] == {"dora": 8, "lin": 16}.get(method)
    assert experiment.base.config.head == "regression"
    if method == "fft":
        assert not jax.tree.leaves({k: v for k, v in experiment.abstract_frozen.items() if k != "scales"})


@pytest.mark.parametrize("method", ["fft", "bitfit", "head", "lora", "houlsby"])
def test_deberta_trains_the_pooler_that_its_checkpoint_lacks(method):
    experiment, config = laid_out(f"model=deberta-v2-xxlarge,method={method}")
    assert {"head", "pooler"} <= experiment.abstract_state.trainable["params"].keys()
    assert config.base.fresh == ("head/.*", "pooler/.*")


def test_every_task_of_every_model():
    for model in ("minilm-l6", "bert-base", "roberta-base", "roberta-large", "deberta-v2-xxlarge"):
        for task in GLUE:
            config = unpacked(f"model={model},task={task}")
            assert (config.task.task, config.labels["task"], config.labels["model"]) == (task, task, model)
            assert config.task.buckets[-1] == config.task.seq_len
            assert config.train.epochs > 0
    assert set(GLUE) == {*tables.TASKS, "wnli"}


def test_columns_have_their_length():
    published = [*tables.LORA.values(), *tables.SCRIPTS.values(), *tables.ADAPTERS.values(), tables.OWN]
    assert all(len(v) == 8 for columns in published for v in columns.values() if isinstance(v, tuple))
    assert {model for model, _ in tables.LORA} == tables.SCRIPTS.keys()


SPOTS = {  # Tables 9 and 10: batch, epochs, rate, alpha, rank, tokens, weight decay, warm-up
    "model=roberta-base,task=mnli": (16, 30, 5e-4, 8, 8, 512, 0, 0.06),
    "model=roberta-base,task=cola": (32, 80, 4e-4, 8, 8, 512, 0, 0.06),
    "model=roberta-base,task=rte": (32, 80, 5e-4, 8, 8, 512, 0, 0.06),
    "model=roberta-base,task=stsb": (16, 40, 4e-4, 8, 8, 512, 0, 0.06),
    "model=roberta-large,task=mrpc": (4, 20, 3e-4, 16, 8, 512, 0, 0.06),
    "model=roberta-large,task=stsb": (8, 30, 2e-4, 16, 8, 512, 0, 0.06),
    "model=roberta-large,task=stsb,protocol=dagger": (4, 10, 2e-4, 16, 8, 128, 0, 0.06),
    "model=roberta-large,task=mnli,method=houlsby,rank=64,protocol=dagger": (32, 10, 3e-5, 16, 64, 128, 0, 0.06),
    "model=roberta-large,task=sst2,method=pfeiffer,rank=64,protocol=dagger": (32, 20, 3e-5, 16, 64, 128, 0, 0.06),
    "model=roberta-large,task=mnli,method=pfeiffer,protocol=dagger": (32, 5, 3e-4, 16, 16, 128, 0, 0.06),
    "model=deberta-v2-xxlarge,task=qqp": (8, 11, 1e-4, 8, 8, 320, 0.01, 0.1),
    "model=deberta-v2-xxlarge,task=stsb": (4, 10, 2e-4, 8, 8, 128, 0.1, 0.1),
    # The scripts: 8 processes (2 on CoLA) of the printed batch.
    "model=roberta-base,task=mnli,reading=code": (128, 30, 5e-4, 16, 8, 512, 0.1, 0.06),
    "model=roberta-base,task=cola,reading=code": (64, 80, 4e-4, 16, 8, 512, 0.1, 0.06),
    "model=roberta-large,task=sst2,reading=code": (64, 10, 4e-4, 16, 8, 512, 0.1, 0.06),
    "model=roberta-large,task=stsb,reading=code": (32, 10, 3e-4, 16, 8, 128, 0.1, 0.06),
    "model=deberta-v2-xxlarge,task=rte,reading=code": (32, 11, 2.6e-4, 32, 16, 320, 0.01, 0),
    "model=deberta-v2-xxlarge,task=mrpc,reading=code": (256, 30, 2e-4, 32, 16, 128, 0.01, 0.1),
    # Ours.
    "task=mrpc,method=lora,epochs=3": (16, 3, 1e-3, 16, 8, 128, 0, 0.06),
    "task=rte,method=mora": (16, 10, 1e-3, 16, 8, 256, 0, 0.06),
    # Low data: Table 17's batch and epochs, the model's own rate.
    "task=mnli,model=roberta-base,train_examples=100": (20, 40, 5e-4, 8, 8, 512, 0, 0.06),
    "task=mnli,train_examples=10000": (100, 4, 1e-3, 16, 8, 128, 0, 0.06),
}


@pytest.mark.parametrize("arg", SPOTS)
def test_hyperparameters(arg):
    config = unpacked(arg)
    train, optimizer, adapter = config.train, config.optimizer, config.adapter
    found = (train.batch_size, train.epochs, optimizer.learning_rate, adapter.alpha, adapter.rank)
    assert (*found, config.task.seq_len, optimizer.weight_decay, config.schedule.warmup_fraction) == SPOTS[arg]


def test_readings_differ_where_the_ledger_says():
    paper, code = (unpacked(f"model=deberta-v2-xxlarge,task=rte,reading={reading}") for reading in ("paper", "code"))
    assert (paper.base.classifier_dropout, paper.schedule.warmup_steps, code.schedule.warmup_steps) == (0.2, 0, 50)
    starts = {reading: unpacked(f"model=roberta-base,reading={reading}").adapter.init for reading in ("paper", "code")}
    assert starts == {"paper": "gaussian", "code": "kaiming_uniform"}
    assert unpacked("").adapter.init == "kaiming_uniform"
    experiment, _ = laid_out("model=deberta-v2-xxlarge,task=rte")
    assert experiment.base.config.classifier_dropout == 0.2
    assert build(unpacked("", base__random_init=True), 16).base.config.classifier_dropout is None


@pytest.mark.parametrize(
    ("targets", "kernels"),
    [("q", 1), ("k", 1), ("v", 1), ("o", 1), ("q+k", 2), ("query+value", 2), ("q+k+v+o", 4)],
)
def test_targets_of_table_5(targets, kernels):
    experiment, config = laid_out(f"targets={targets}")
    assert len(experiment.plan.sites) == kernels
    assert config.labels["variant"] == ("" if targets == "query+value" else targets)


def test_start_train_examples_and_base():
    config = unpacked("task=rte,model=roberta-base,base=some/folder,start=runs/mnli/adapter,partial,seq_len=100")
    assert (config.base.name, config.start.adapter, config.start.head) == ("some/folder", "runs/mnli/adapter", "fresh")
    assert config.task.allow_partial
    assert config.task.buckets == (24, 32, 48, 64, 80, 96, 100)
    assert unpacked("task=mnli,train_examples=1000").task.train_examples == 1000
    assert unpacked("task=rte,method=adapterdrop,placement=houlsby").adapter.method == "houlsby"


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("reading=code", "official scripts train LoRA on RoBERTa and DeBERTa; not lora on minilm-l6"),
        ("model=roberta-base,method=bitfit,reading=code", "not bitfit on roberta-base"),
        ("model=roberta-base,protocol=dagger", "on roberta-large; take protocol=standard"),
        ("model=roberta-large,protocol=dagger,task=rte,start=x", "neither starts from MNLI"),
        ("model=deberta-v2-xxlarge,method=ft-top2", "leaves DeBERTa's pooler"),
        ("method=adapter-h", "allowed: lora, mora"),
        ("task=qnl", "allowed: mrpc, cola"),
        ("targets=querry", "did you mean .*query"),
    ],
)
def test_what_is_refused(arg, message):
    with pytest.raises(UserError, match=message):
        laid_out(arg)


def test_the_minilm_grid_shares_programs():
    """The 15 cells of a method and task are one group; LoRA's and MoRA's have about equal parameters."""
    made = {}
    for cell in glue_minilm.cells():
        if "task=rte" in cell["arg"]:
            if cell["arg"] not in made:
                made[cell["arg"]] = to_plain(complete(complete_file(f"{FILE}:{cell['arg']}")))
            plain = {**made[cell["arg"]], "seed": cell["overrides"]["seed"]}
            plain["optimizer"] = {**plain["optimizer"], "learning_rate": cell["overrides"]["optimizer.learning_rate"]}
            made.setdefault(group_key(plain), set()).add((plain["seed"], plain["optimizer"]["learning_rate"]))
    groups = [value for value in made.values() if isinstance(value, set)]
    assert [len(group) for group in groups] == [15] * 7
    assert len(glue_minilm.cells()) == 5 * 7 * 15
    for arg, rates in glue_minilm.RATES.items():  # the config's own rate is the middle one
        config = importlib.import_module("configs.lora_glue").get_config(arg)
        assert config.optimizer.learning_rate == rates[1]
