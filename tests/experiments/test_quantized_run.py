"""A run on a quantised base from its command line: trained, recorded, resumed, continued, or refused in one line."""

import json

import pytest

from lowrank_jax.checkpoints.adapters_only import load_adapter


def test_a_run_says_how_its_base_is_held_and_resumes(run):
    ended = run(base__quantize="nf4", train__stop_at=4)
    assert ended.status == 0, ended.err
    ended = run(base__quantize="nf4")
    assert ended.status == 0, ended.err
    result = json.loads((ended.folder / "result.json").read_text())
    assert result["status"] == "finished"
    assert result["config"]["base"]["quantize"] == "nf4"
    assert result["base"]["quantize"] == "nf4"
    _, _, description = load_adapter(ended.folder / "adapter", result["base"]["fingerprint"])
    assert description["base"] == result["base"]
    assert run(base__quantize="int8").status == 2  # another run by this name


def test_an_adapter_of_the_published_weights_goes_on_beside_codes_of_them(run, tmp_path):
    """FP8 codes, which are joined and taken apart; that this device has no such products is said once."""
    from experiments.session import build

    build._say_dequantised.cache_clear()
    first = run(name="first", train__steps=2, checkpoint__every=0)
    assert first.status == 0, first.err
    ended = run(
        name="second", base__quantize="fp8", base__fused=True, base__scan_unroll=2, base__fp8__transposed="kept",
        start__adapter=first.folder / "adapter", train__steps=2, export__merged="float32",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    assert f"{first.folder / 'adapter'}: trained with base.quantize=none, goes on with fp8" in ended.out
    assert ended.out.count("has no FP8 products") == 1
    assert json.loads((ended.folder / "result.json").read_text())["config"]["base"]["fp8"]["transposed"] == "kept"
    assert (ended.folder / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base__quantize": "nf5"}, "unknown base.quantize 'nf5'; did you mean nf4"),
        (
            {"base__quantize": "nf4", "trainable": "full", "adapter__method": "none"},
            "stored as nf4 codes and cannot",
        ),
        ({"base__quantize": "nf4", "adapter__method": "lora", "adapter__init": "pissa"}, "adapter.init 'pissa' starts"),
        ({"base__fp8__activations": "row"}, "base.fp8 is for base.quantize=fp8, and it is none; leave base.fp8 out"),
        ({"base__quantize": "fp8", "base__fp8__gradients": "e3m4"}, "base.fp8.gradients"),
        (
            {"base__quantize": "fp8", "base__fp8__forward": "weights", "base__fp8__transposed": "kept"},
            "base.fp8.forward=weights rounds no activations",
        ),
        ({"base__quantize": "fp8", "base__fp8__keep": ("dwon",)}, "unknown base.fp8.keep 'dwon'; did you mean down"),
        (
            {"base__quantize": "fp8", "base__fp8__keep": ("gate",), "base__fused": True},
            "some parts of layers/mlp/gate_up alone are codes; name all or none of them in base.fp8.keep",
        ),
    ],
)
def test_what_codes_cannot_do_is_said_before_any_work(run, changes, words):
    ended = run(**changes)
    assert ended.status == 2
    assert words in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert not ended.folder.exists()


def test_the_plan_counts_the_codes(program):
    frozen = {}
    for kind in ("none", "nf4"):
        words = "--config=configs/bench.py:shape=pico-llama,batch=8,seq=16,dtype=float32"
        ended = program("plan", words, f"--config.base.quantize={kind}")
        assert ended.status == 0, ended.err
        assert "frozen 3,304,448 parameters" in ended.out
        frozen[kind] = float(ended.out.split("frozen ")[2].split(" MiB")[0])
    assert frozen["nf4"] < frozen["none"] / 3.5
