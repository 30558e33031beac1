"""The real loop over a choice task at toy size: trials, evaluations, samples and records."""

import json

import jax
import pytest

from lowrank_jax.bases.base import export_params, random_params
from lowrank_jax.models.registry import get_model
from lowrank_jax.text.tokenizers import ByteTokenizer

FILE = "configs/lora_mnli.py"


@pytest.fixture
def words(tmp_path, tiny_glue):
    """The command line of a toy run; on a base on disk, as each seed would draw another random one."""
    shape, folder = get_model("toy-llama"), tmp_path / "toy"
    export_params(
        random_params(shape, jax.random.key(0), "float32"), shape, folder, "float32", tokenizer=ByteTokenizer()
    )
    return [
        f"--config={FILE}:train_examples=6,partial,batch=3,epochs=2,rate=0.01,rank=2",
        *(f"--config.base.name={folder}", f"--config.task.data_dir={tiny_glue}", "--config.schedule.warmup_steps=1"),
        *(
            "--config.task.seq_len=96",
            "--config.task.buckets=(96,)",
            "--config.train.log_every=1",
            "--config.tracking.wandb=disabled",
        ),
        '--config.evals={"samples": {"type": "samples", "count": 1}, "best": {"type": "choices", "weights": "best"}}',
    ]


def test_two_seeds_in_one_program(program, words, tmp_path):
    ended = program("trials", *words, f"--workdir={tmp_path / 'both'}", "--seeds=0,1")
    assert ended.status == 0, ended.err
    losses = []
    for folder in (tmp_path / "both").iterdir():
        if not (folder / "result.json").exists():
            continue
        result = json.loads((folder / "result.json").read_text())
        losses.append(result["losses"])
        assert [one["step"] for one in result["evaluations"]] == [2, 4]
        losses_of_rows = {one["step"]: one["loss"] for one in result["evaluations"]}
        assert result["best"]["loss"] == pytest.approx(min(losses_of_rows.values()), rel=1e-6)
        assert result["evaluations"][-1]["best/loss"] == pytest.approx(losses_of_rows[result["best"]["step"]], rel=1e-5)
        assert (result["labels"]["task"], result["labels"]["model"]) == (
            "mnli",
            "pico-llama",
        )  # as the tables want them
        assert all(one["nonfinite"] == 0 and 0 <= one["matched"] <= 1 for one in result["evaluations"])
        assert result["losses"][-1][1] < result["losses"][0][1]
        assert result["partial"]
        assert "mnli train: 6 of 8 rows, subset_seed=0" in result["notes"]
        sample = json.loads((folder / "samples.jsonl").read_text().split("\n")[0])
        assert sample["prompt"].endswith("\nLabel:")
        assert sample["reference"] in (" entailment", " neutral", " contradiction")
    assert len(losses) == 2
    assert losses[0] != losses[1]
