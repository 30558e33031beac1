"""The work of a benchmark's step: batches of every kind of task, their FLOPs, and the same work as the CPU's peer."""

import importlib.util
import json
import runpy
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.bench.suites.rows import load_suite
from experiments.bench.training.work import random_batch, step_flops, utilisation
from experiments.cli import complete_file
from experiments.config.plain import to_plain
from experiments.config.schema import unpack_run
from experiments.session.build import build
from experiments.session.trial_group import TrialGroup
from lowrank_jax.bases.base import BaseConfig, export_params, load_base
from lowrank_jax.core.errors import UserError

ROOT = Path(__file__).parents[2]
TOY = "shape=toy-llama,rank=2,batch=8,seq=16,dtype=float32"


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.chdir(ROOT)


def config_of(name, **changes):
    config = complete_file(f"configs/{name}")
    with config.unlocked():
        config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return unpack_run(to_plain(config))


def step_once(group, batch):
    """Loss of the first step, by the program as the bench runs it."""
    step = group.step_function(group.compile())
    state, frozen, _ = group.load()
    return step(state, frozen, group.place(batch))[1]["loss"]


def test_a_labelled_task_without_its_data():
    """Labels are numbers in the task's range; a new head predicts about 0, and the first loss is their mean square."""
    config = config_of("lora_glue.py:task=stsb,batch=8", base__name="toy-bert", base__random_init=True)
    experiment = build(config, seq_len=12)
    batch = random_batch(experiment)
    assert {name: x.shape for name, x in batch.items()} == {
        "tokens": (8, 12), "types": (8, 12), "mask": (8, 12), "labels": (8,), "weights": (8,),
    }  # fmt: skip
    assert {name: x.dtype for name, x in batch.items()} == {n: x.dtype for n, x in experiment.abstract_batch.items()}
    assert 0 <= batch["labels"].min() < batch["labels"].max() <= 5
    assert len({*batch["labels"]}) == 8
    assert step_once(experiment, batch) == pytest.approx(np.square(batch["labels"]).mean(), rel=0.2)
    assert experiment.parameters["head"] > 0


def test_trials_of_a_labelled_task():
    """Labels are classes; a new head gives all three about the same probability, and the first loss is ln 3."""
    config = config_of("lora_glue.py:task=mnli,batch=8", base__name="toy-bert", base__random_init=True)
    group = TrialGroup([config, config], seq_len=12)
    batch, want = random_batch(group.lead, 2), group.lead.abstract_batch
    assert {name: x.shape for name, x in batch.items()} == {name: (2, *x.shape) for name, x in want.items()}
    assert {name: x.dtype for name, x in batch.items()} == {name: x.dtype for name, x in want.items()}
    assert {*batch["labels"].ravel()} == {0, 1, 2}
    assert step_once(group, batch) == pytest.approx(np.full(2, np.log(3)), rel=0.2)


def test_random_tokens_are_those_of_one_seed():
    experiment = build(config_of(f"bench.py:{TOY}"), seq_len=16)
    batch = random_batch(experiment)
    np.testing.assert_array_equal(batch["tokens"], np.random.default_rng(0).integers(0, 259, (8, 16), np.int32))
    assert batch["weights"].min() == 1
    assert batch["tokens"].dtype == np.int32


def test_packed_rows():
    """Documents of random lengths, of which each begins with a token that is no target."""
    experiment = build(config_of(f"bench.py:{TOY},documents=3"), seq_len=16)
    batch = random_batch(experiment, trials=2)
    assert {name: x.shape for name, x in batch.items()} == dict.fromkeys(experiment.abstract_batch, (2, 8, 16))
    assert {name: x.dtype for name, x in batch.items()} == {n: x.dtype for n, x in experiment.abstract_batch.items()}
    rows = batch["segments"].reshape(16, 16)
    assert all({*row} == {1, 2, 3} and np.all(np.diff(row) >= 0) for row in rows)
    assert len({tuple(row) for row in rows}) > 8
    firsts = np.concatenate([np.ones((2, 8, 1), bool), np.diff(batch["segments"]) > 0], -1)
    np.testing.assert_array_equal(batch["weights"], ~firsts)
    with pytest.raises(UserError, match="documents=17 is no number of documents in a row of 16 tokens"):
        random_batch(build(config_of(f"bench.py:{TOY},documents=17"), seq_len=16))


def test_flops_of_a_step():
    """toy-llama: two layers of kernels [32, 32], [32, 16] twice, [32, 32], and an MLP of 48; a tied head of 259."""
    kernels = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
    lora = 2 * 2 * (2 * 64 + 2 * 48 + 3 * 80)
    lora_step, full_step = (
        step_flops(build(config_of(f"bench.py:{TOY},method={method}"), seq_len=16), tokens=7)
        for method in ("lora", "fft")
    )
    assert lora_step == 7 * (4 * (kernels + 259 * 32) + 6 * lora)
    assert full_step == 7 * 6 * (kernels + 259 * 32)


def test_an_encoders_head_reads_one_token_a_row():
    config = config_of("lora_glue.py:task=mrpc,method=head", base__name="toy-bert", base__random_init=True)
    assert step_flops(build(config, seq_len=12), tokens=7) == 7 * 4 * 2 * (4 * 32 * 32 + 2 * 32 * 48)


def test_utilisation_is_a_share_of_the_peak_of_all_devices():
    assert utilisation(989e12, 2.0, "NVIDIA H200", 2) == pytest.approx(0.25)
    assert utilisation(989e12, 2.0, "cpu", 1) is None


def settings():
    """What the rows of the suites change about how a step is computed, as arguments of configs/bench.py.

    Those of most changes, until each value of each has been in one.
    """
    found = set()
    for name in ("h100", "cpu"):
        for row in load_suite(name).rows:
            (argument,) = [word.partition(":")[2] for word in row.words if word.startswith("--config=")]
            pairs = dict(pair.split("=") for pair in argument.split(","))
            pairs = {key: value for key, value in pairs.items() if key in ("remat", "unroll", "chunk_tokens")}
            if "chunk_tokens" in pairs:
                pairs["chunk_tokens"] = "24"  # of 8 x 16 tokens
            if "unroll" in pairs:
                pairs["unroll"] = "2"  # all layers, as in the suites
            found.add(",".join(f"{key}={value}" for key, value in sorted(pairs.items())))
    covering, seen = [], set()
    for setting in sorted(found - {""}, key=lambda setting: (-setting.count("="), setting)):
        if not seen.issuperset(setting.split(",")):
            covering.append(setting)
            seen.update(setting.split(","))
    return covering


@pytest.fixture(scope="module")
def plain_step():
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return moments("")


def moments(setting):
    """Loss, and AdamW's moments after two steps."""
    experiment = build(config_of(f"bench.py:{TOY},{setting}"), seq_len=16)
    step, (state, frozen, _) = experiment.step_function(experiment.compile()), experiment.load()
    batch = experiment.place(random_batch(experiment))
    for _ in range(2):
        state, metrics = step(state, frozen, batch)
    return [metrics["loss"], *jax.tree.leaves(state.opt_state)]


@pytest.mark.parametrize("setting", settings())
def test_the_suites_settings_change_nothing_but_rounding(setting, plain_step):
    for ours, plain in zip(moments(setting), plain_step, strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-6 * np.abs(plain).max() + 1e-9)


def test_the_peer_does_the_same_work(tmp_path, monkeypatch, capsys):
    """HF PEFT on the same weights and tokens: as many trained scalars, and the same loss before its first update.

    Its script runs in this process, where torch and transformers may be loaded already.
    """
    if importlib.util.find_spec("peft") is None:
        pytest.skip("no peft")
    base = load_base(BaseConfig("toy-llama", random_init=True), key=jax.random.PRNGKey(1))
    export_params(base.params, base.config, tmp_path / "toy", "float32", tokenizer=base.tokenizer)
    words = ["--batch=8", "--seq=16", "--rank=2", "--steps=2", "--warmup=1"]
    script = ROOT / "tests" / "interop" / "peft_step.py"
    monkeypatch.setattr(sys, "argv", [str(script), f"--weights={tmp_path / 'toy'}", *words])
    runpy.run_path(str(script), run_name="__main__")
    theirs = json.loads(capsys.readouterr().out.splitlines()[-1])
    config = config_of(f"bench.py:{TOY}", base__name=str(tmp_path / "toy"), base__random_init=False)
    ours = build(config, seq_len=16)
    assert theirs["trainable"] == ours.parameters["trainable"]
    assert theirs["losses"][0] == pytest.approx(float(step_once(ours, random_batch(ours))), abs=2e-4)
    assert theirs["losses"][1] < theirs["losses"][0]
    assert theirs["tokens_per_second"] == pytest.approx(8 * 16 / theirs["ms"] * 1e3, rel=0.01)
