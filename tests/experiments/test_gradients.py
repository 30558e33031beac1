"""experiments.gradients: codes compared with weights on a toy, and what it refuses."""

import json

import pytest

from experiments.tables.speed import codes, rounding
from lowrank_jax.core.errors import UserError


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


def test_codes_beside_weights(program, words, tmp_path):
    """And the study: one of its cases is what the codes compute; the less an operand is rounded, the nearer."""
    file = tmp_path / "codes.jsonl"
    ended = program("gradients", *words, "--config.base.quantize=fp8", f"--record={file}")
    assert ended.status == 0, ended.err
    found = json.loads(ended.out.splitlines()[-1])
    shown = codes.table(codes.load([file]), None).lines[1]
    assert shown[:2] == ("lora r=2", "fp8")
    cells = [found[when][name] for when in ("start", "end") for name in ("cosine", "row")]
    assert shown[2:] == (*(f"{cell:.4f}" for cell in cells), f"{found['loss']['ratio'] - 1:+.2%}", "1")
    assert (found["seed"], found["quantize"]) == (0, "fp8")
    for when in ("start", "end"):
        assert 0.9 < found[when]["cosine"] < found[when]["products"] < 0.999999
        assert found[when]["lowest"][0][1] <= found[when]["cosine"]
        assert 0.9 < found[when]["row"] < 0.9999
    assert found["start"]["cosine"] != found["end"]["cosine"]
    assert found["loss"]["ratio"] == pytest.approx(found["loss"]["fp8"] / found["loss"]["weights"])
    assert abs(found["loss"]["ratio"] - 1) < 0.01

    some = "all operands.*|FP8.*|(weights|gradients) alone(, (int8|the sum|e5m2 in).*)?|weights and.*|all but down"
    kept = tmp_path / "study.jsonl"
    ended = program("gradients", *words, f"--study={some}", f"--record={kept}")
    assert ended.status == 0, ended.err
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    printed = [json.loads(line) for line in ended.out.splitlines() if line.startswith("{")]
    assert [one["case"] for one in printed] == [one["case"] for one in lines]
    study = {one["case"]: one for one in lines}
    assert len(study) == 9
    assert study["FP8, as base.quantize=fp8"]["cosine"] == pytest.approx(found["start"]["cosine"], abs=1e-5)
    assert study["FP8, as base.quantize=fp8"]["row"] == pytest.approx(found["start"]["row"], abs=1e-5)
    assert study["all but down"]["time"] == pytest.approx(1 + 1 / 4, rel=0.2)
    near = ["weights and inputs as sums of two codes", "weights alone", "FP8, as base.quantize=fp8"]
    for names in (
        ["all operands in bfloat16", *near],
        ["weights alone, the sum of two codes", "weights alone, int8 with a scale an output", "weights alone"],
        ["gradients alone", "gradients alone, e5m2 in a fixed scale", "weights alone"],
    ):
        far = [1 - study[name]["row"] for name in names]
        assert far == sorted(far), dict(zip(names, far, strict=True))

    shown = rounding.table(rounding.load([kept, kept]), None)
    assert [line[0] for line in shown.lines[1:]] == list(study)
    kept.write_text('{"case": 5}')
    with pytest.raises(UserError, match=r"study.jsonl, line 1 is no record of experiments.gradients --study"):
        rounding.load([kept])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "compares codes with weights; set base.quantize"),
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
