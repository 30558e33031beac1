"""The real loop over labelled tasks at toy size: runs, seeds in one program, a start from another task's adapter."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments.records import run_record
from lowrank_jax.bases.base import BaseConfig, export_params, load_base
from lowrank_jax.text.tokenizers import ByteTokenizer

CONFIG = """
from ml_collections import ConfigDict

def get_config(arg=None):
    task = arg or "mrpc"
    return ConfigDict({{
        "experiment": "lora_glue", "name": None, "seed": 0,
        "labels": {{"method": "lora", "rank": 2, "task": task, "stage": "full"}},
        "trainable": "adapters+head",
        "base": {{"name": "{base}", "fresh": ("head/.*",)}},
        "adapter": {{"method": "lora", "rank": 2, "targets": ("query", "value")}},
        "task": {{"name": "glue", "task": task, "seq_len": 64, "data_dir": "{data}", "allow_partial": True}},
        "optimizer": {{"learning_rate": 1e-2}},
        "schedule": {{"kind": "linear", "warmup_fraction": 0.1}},
        "train": {{"epochs": 3, "batch_size": 4}},
        "mesh": {{"data": 1, "fsdp": 1, "tensor": -1}},
        "tracking": {{"wandb": "disabled"}},
    }})
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_glue):
    """A config file over a toy BERT on disk, without a head, and GLUE of 8 rows."""
    folder = tmp_path_factory.mktemp("encoder")
    base = load_base(BaseConfig("toy-bert", random_init=True), key=jax.random.PRNGKey(3))
    export_params(base.params, base.config, folder / "toy", "float32", tokenizer=ByteTokenizer())
    path = folder / "config.py"
    path.write_text(CONFIG.format(base=folder / "toy", data=tiny_glue))
    return path


@pytest.fixture
def whole(program, config, kept):
    """whole(task) -> folder of an uninterrupted run of seed 0, made once a session: to be read, not changed."""

    def call(task):
        folder = kept[0] / task
        if not folder.exists():
            ended = program("run", f"--config={config}:{task}", f"--workdir={folder}")
            assert ended.status == 0, ended.err
        (found,) = folder.iterdir()
        return found

    return call


@pytest.mark.parametrize(("task", "metric"), [("stsb", "pearson"), ("mnli", "overall")])
def test_a_run_of_each_kind(whole, task, metric):
    """Epochs in steps, an evaluation after each, the head counted, and what the record says of the data."""
    result = run_record.read_result(whole(task) / "result.json")
    assert [evaluation["step"] for evaluation in result["evaluations"]] == [2, 4, 6]
    assert all(metric in evaluation and evaluation["nonfinite"] == 0 for evaluation in result["evaluations"])
    labels = {"stsb": 1, "mnli": 3}[task]
    assert result["parameters"]["head"] == 33 * labels
    assert result["parameters"]["trainable"] - result["parameters"]["head"] == 2 * 2 * 2 * (32 + 32)
    assert result["partial"]
    assert "8" in " ".join(result["notes"])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_run_loads_in_peft(whole, monkeypatch):
    """Its trained head is in the folder, and the base's folder has none."""
    import torch

    from experiments.session.export import how_to_load
    from lowrank_jax.adapters import attach, make_plan, read_configs
    from lowrank_jax.bases.peft import headed
    from lowrank_jax.checkpoints.adapters_only import load_adapter
    from lowrank_jax.layouts.segments import overlay

    monkeypatch.setattr("peft.auto.check_file_exists_on_hf_hub", lambda *_, **__: False)
    folder = whole("mnli")
    trained, scales, told = load_adapter(folder / "adapter")
    base = load_base(headed(BaseConfig(told["base"]["name"]), "classification", 3), jax.random.key(9))
    plan = make_plan(base.params, read_configs(told["config"], "adapter.json"))
    params = overlay(base.params, trained["params"])
    tokens, there = np.random.default_rng(0).integers(5, 250, (2, 9)).astype(np.int32), {}
    variables = {"params": params, "adapters": trained["adapters"], "scales": scales}
    ours = np.asarray(attach(base.model, plan)(variables, tokens))
    exec("\n".join(line.strip() for line in how_to_load(folder / "peft", base, "float32")[1:]), there)
    with torch.no_grad():
        theirs = there["model"].eval()(torch.tensor(tokens).long()).logits.numpy()
    assert ours.shape == (2, 3)
    assert np.abs(ours - theirs).max() < 1e-5 * np.abs(ours).max()


def test_seeds_together_are_the_seeds_alone(program, tmp_path, config, whole):
    """Each seed has its own fresh head, order of rows, lengths of batches and dropout; the second is compared."""
    ended = program("trials", f"--config={config}:mnli", f"--workdir={tmp_path}", "--seeds=1,0")
    assert ended.status == 0, ended.err
    alone = whole("mnli")
    ours, theirs = (run_record.read_result(place / "result.json") for place in (tmp_path / alone.name, alone))
    np.testing.assert_allclose(ours["losses"], theirs["losses"], rtol=2e-4)
    assert [e["main"] for e in ours["evaluations"]] == [e["main"] for e in theirs["evaluations"]]
    found, expected = (load_file(place / "adapter" / "adapter.safetensors") for place in (tmp_path / alone.name, alone))
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_allclose(found[path], leaf, atol=2e-4, err_msg=path)
    (first,) = (place for place in tmp_path.glob("lora_glue*") if place.name != alone.name and place.is_dir())
    assert run_record.read_result(first / "result.json")["losses"] != ours["losses"]


def test_a_run_starts_from_another_tasks_adapter(program, tmp_path, config, whole):
    """MRPC from MNLI's adapter: its LoRA leaves unchanged, its three-way head only if the config says so."""
    mnli = whole("mnli")
    words = (f"--config={config}:mrpc", f"--workdir={tmp_path}", f"--config.start.adapter={mnli / 'adapter'}")
    warm = program("run", *words, "--name=warm", "--config.optimizer.learning_rate=1e-12", "--config.train.epochs=1")
    assert warm.status == 0, warm.err
    before, after = (load_file(folder / "adapter" / "adapter.safetensors") for folder in (mnli, tmp_path / "warm"))
    names = [name for name in before if "layers/attention" in name and not name.startswith("scales")]
    assert names
    for name in names:
        np.testing.assert_allclose(after[name], before[name], atol=1e-8)
    head = program("run", *words, "--name=head", "--config.start.head=adapter")
    assert head.status == 2
    assert "head/out/kernel is (32, 3), the run has (32, 2)" in head.err
    assert "fresh" in head.err
    missing = program("run", f"--config={config}:mrpc", f"--workdir={tmp_path}", "--config.start.adapter=/no/where")
    assert missing.status == 2
    assert "no adapter in /no/where" in missing.err
    lost = program("run", f"--config={config}:mrpc", f"--workdir={tmp_path}", "--config.start.head=adapter")
    assert lost.status == 2
    assert "start.adapter names none" in lost.err


def test_an_interrupted_run_of_many_lengths_goes_on_bit_for_bit(program, tmp_path, config, whole, saved):
    """Stopped by its config after 3 of 6 steps, then run to the end: the state of an uninterrupted run."""
    words = (f"--config={config}:mnli", f"--workdir={tmp_path}", "--name=run")
    part = program("run", *words, "--config.train.stop_at=3")
    assert part.status == 0, part.err
    rest = program("run", *words)
    assert rest.status == 0, rest.err
    assert saved(tmp_path / "run", 6) == saved(whole("mnli"), 6)
