"""experiments.gradients: codes compared with weights on a toy, and what it refuses."""

import json

import pytest

from experiments.bench.training.study import CASES


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


def test_each_way_to_round(program, words, tmp_path):
    """The study's first case is what a coded base computes; less rounding of an operand is nearer to none."""
    kept = tmp_path / "study.jsonl"
    shorter = ["--config.task.packed=true", *words]
    ended = program("gradients", *shorter, "--study=.*", f"--record={kept}")
    assert ended.status == 0, ended.err
    found = {line["case"]: line for line in map(json.loads, kept.read_text().splitlines())}
    assert [json.loads(line)["case"] for line in ended.out.splitlines()] == [case.what for case in CASES] == list(found)
    coded = program("gradients", *shorter, "--config.base.quantize=fp8")
    start = json.loads(coded.out.splitlines()[-1])["start"]
    assert found["FP8, as base.quantize=fp8"]["cosine"] == pytest.approx(start["cosine"], abs=1e-5)
    far = {name: 1 - line["leaves"] for name, line in found.items()}
    assert far["all operands in bfloat16"] < 0.1 * far["weights as the sum of two codes"]
    assert far["weights and inputs as sums of two codes"] < far["weights as the sum of two codes"]
    assert far["weights alone, the sum of two codes"] < 0.1 * far["weights alone, int8 with a scale an output"]
    assert far["weights alone, int8 with a scale an output"] < far["weights alone"]
    assert far["gradients alone"] < far["gradients alone, e5m2"]
    assert found["all but down"]["time"] == pytest.approx(1 + 1 / 4, rel=0.2)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "compares codes with weights; set base.quantize"),
        (("--record=x",), "--record is for --study"),
        (("--study=x",), "--study=x matches no way to round"),
        (("--study=.*", "--config.base.dtype=bfloat16"), "set base.quantize=none and base.dtype=float32"),
        (("--study=.*", "--config.trainable=full"), "set trainable=adapters, base.fused=false"),
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
