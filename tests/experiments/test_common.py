"""configs.common.parse_arg; that configs load without heavy imports; and that programs share a process in tests."""

import subprocess
import sys
from pathlib import Path

import pytest

from configs.common import parse_arg
from lowrank_jax.core.errors import UserError

DECLARED = dict(
    scale=("laptop", "gpu", "paper"), method=("mora", "lora", "fft"), rank=8, rate=float, wide=False, note=""
)


def test_defaults():
    for arg in (None, "", " , "):
        choice = parse_arg(arg, **DECLARED)
        assert vars(choice) == dict(scale="laptop", method="mora", rank=8, rate=None, wide=False, note="")


def test_typed_values():
    choice = parse_arg("method=lora, scale=gpu,rank=32,rate=3e-4,wide,note=a=b", **DECLARED)
    assert vars(choice) == dict(scale="gpu", method="lora", rank=32, rate=3e-4, wide=True, note="a=b")
    assert parse_arg("wide=false,rate=none", **DECLARED).wide is False
    assert parse_arg("size=8", size=(4, 8)).size == 8


@pytest.mark.parametrize(
    ("arg", "words"),
    [
        ("metod=lora", "'metod'; did you mean method"),
        ("method=lor", "method=lor: allowed: mora, lora, fft"),
        ("rank=eight", "rank=eight: wanted an integer"),
        ("rank=8.5", "rank=8.5: wanted an integer"),
        ("rate=fast", "rate=fast: wanted a number"),
        ("wide=maybe", "wide=maybe: allowed: true, false"),
        ("rank", "'rank' has no value"),
        ("rank=8,rank=9", "'rank' is given twice"),
        ("=8", "unknown config argument ''"),
    ],
)
def test_bad_arguments_are_one_line(arg, words):
    with pytest.raises(UserError) as error:
        parse_arg(arg, **DECLARED)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_light_imports():
    """A grid's cells are listed, and a table printed, without jax or matplotlib."""
    code = "import sys, configs.common, experiments.sweep, experiments.tables; print({*HEAVY} & {*sys.modules})"
    heavy = ("jax", "matplotlib", "ml_collections", "numpy", "wandb")
    done = subprocess.run(
        [sys.executable, "-c", f"HEAVY = {heavy}; {code}"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "set()"


def test_programs_with_flags_of_one_name_run_in_one_process(program):
    """generate and load have a --base each: the `program` of these tests defines the flags of one program at a time."""
    for name, said in (("generate", "--run"), ("load", "give --base=FOLDER"), ("generate", "--run")):
        ended = program(name)
        assert ended.status == 2, ended.err
        assert said in ended.err
    assert "no-such-base" in program("load", "--base=no-such-base").err
