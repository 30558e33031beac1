"""experiments.gradients: codes compared with weights on a toy, and what it refuses."""

import json

import pytest


@pytest.fixture
def words(tmp_path):
    """Of a toy run on text."""
    text = tmp_path / "rows.jsonl"
    text.write_text("".join(json.dumps({"text": f"{n} and {n + 1} make {2 * n + 1}"}) + "\n" for n in range(40)))
    settings = {
        "base.name": "toy-llama", "base.random_init": True, "adapter.rank": 2, "adapter.targets": '("down",)',
        "task.path": text, "task.seq_len": 16, "train.batch_size": 8, "train.steps": 3, "schedule.warmup_steps": 1,
    }  # fmt: skip
    given = [f"--config.{key}={value}" for key, value in settings.items()]
    return ["--config=configs/mora_uuid.py:data=text,method=lora", *given]


def test_codes_beside_weights(program, words):
    ended = program("gradients", *words, "--config.base.quantize=fp8")
    assert ended.status == 0, ended.err
    found = json.loads(ended.out.splitlines()[-1])
    assert (found["seed"], found["quantize"]) == (0, "fp8")
    for when in ("start", "end"):
        assert 0.9 < found[when]["cosine"] < found[when]["products"] < 0.999999
        assert found[when]["lowest"][0][1] <= found[when]["cosine"]
    assert found["start"]["cosine"] != found["end"]["cosine"]
    assert found["loss"]["ratio"] == pytest.approx(found["loss"]["fp8"] / found["loss"]["weights"])
    assert abs(found["loss"]["ratio"] - 1) < 0.01


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "compares codes with weights; set base.quantize"),
        (("--config.base.quantize=int8", "--seeds=0,x"), "--seeds=0,x are no whole numbers"),
        (
            ("--config.base.quantize=int8", "--config.trainable=full"),
            "compares gradients of adapters; set trainable=adapters",
        ),
    ],
)
def test_what_it_refuses(program, words, flags, said):
    ended = program("gradients", *words, *flags)
    assert ended.status == 2
    assert said in ended.err
    assert ended.err.count("\n") == 1
