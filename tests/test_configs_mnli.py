"""configs/lora_mnli.py: every model and method on shapes, the paper's parameter counts, and its tables."""

from pathlib import Path

import jax
import pytest
from config_files import unpack_file

from configs import lora_mnli
from configs.hyperparameters import mnli as tables
from experiments.session.build import build
from lowrank_jax.core.errors import UserError

ROOT = Path(__file__).parents[1]
FILE = "configs/lora_mnli.py"


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.chdir(ROOT)


def unpacked(arg, **changes):
    return unpack_file(f"{FILE}:{arg}", **changes)


def laid_out(arg, shape):
    changes = {"base__name": shape, "base__random_init": True}
    return build(unpacked(arg, **changes), 16, devices=jax.devices()[:1])


# Trained parameters of Table 4's rows, GPT-3 175B: LoRA 37.7M, Adapter-H 7.1M.
COUNTS = {
    "method=lora": 37_748_736,
    "method=adapter-h,rank=1": 7_078_080,
}


@pytest.mark.parametrize("arg", COUNTS)
def test_gpt3_has_the_paper_s_counts(arg):
    assert laid_out(f"model=gpt3-175b,{arg}", "gpt3-175b").parameters["trainable"] == COUNTS[arg]


def test_every_method_builds_and_every_model():
    """MoRA as large as LoRA or just below; BitFit where there are biases, and a plain refusal elsewhere."""
    counts = {}
    for method in lora_mnli.METHODS:
        experiment = laid_out(f"model=gpt2-medium,method={method}", "gpt2-medium")
        counts[method] = experiment.parameters["trainable"]
        assert {*experiment.abstract_batch} == {"tokens", "weights", "mask"}
    assert 0.95 * counts["lora"] < counts["mora"] <= counts["lora"] < counts["adapter-h"] < counts["fft"]
    for model in ("gpt2-large", "smollm2-135m", "pico-llama"):
        assert laid_out(f"model={model}", model).parameters["trainable"] > 0
    with pytest.raises(UserError, match="bias"):
        laid_out("method=bitfit", "pico-llama")


def test_rows_decide_batch_epochs_rate_and_warm_up():
    wanted = {None: (128, 2, 3), 100: (20, 40, 17), 1_000: (20, 40, 17), 3_000: (100, 4, 4), 10_000: (100, 4, 4)}
    for rows, (batch, epochs, warmup) in wanted.items():
        config = unpacked("method=lora" + (f",train_examples={rows}" if rows else ""))
        assert (config.train.batch_size, config.train.epochs, config.schedule.warmup_steps) == (batch, epochs, warmup)
        assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (2e-4, 0.1)
        assert config.task.train_examples == rows
        assert batch * tables.SEQ_LEN * (warmup - 1) < tables.WARMUP_TOKENS <= batch * tables.SEQ_LEN * warmup
    assert unpacked("method=bitfit").optimizer.learning_rate == 1.6e-3
    few, every = unpacked("method=preembed,train_examples=1000"), unpacked("method=preembed,infix=4")
    assert [(one.optimizer.learning_rate, one.adapter.prefix.tokens) for one in (few, every)] == [
        (2e-4, 32),
        (5e-4, 256),
    ]
    assert (few.task.seq_len, every.task.seq_len) == (512, 512)
    assert unpacked("method=preembed,model=gpt2-medium").task.seq_len == 1024  # its positions
    assert unpacked("method=prelayer,model=smollm2-135m").task.seq_len == 768 + 16
    with pytest.raises(UserError, match="method=lora has no virtual tokens"):
        unpacked("method=lora,prefix=3")
    assert (few.adapter.prefix.infix, every.adapter.prefix.infix) == (8, 4)
    assert unpacked("train_examples=100,batch=4,epochs=1,rate=0.1").train.batch_size == 4
