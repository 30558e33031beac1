"""configs.common.parse_arg; that configs load without heavy imports; and that programs share a process in tests."""

import subprocess
import sys
from pathlib import Path

import pytest

from configs import finetune, lora_glue, lora_mnli, lora_nlg, mora_uuid
from configs.common import Count, Several, parse_arg
from lowrank_jax.core.errors import UserError

DECLARED = dict(
    scale=("laptop", "gpu", "paper"), method=("mora", "lora", "fft"), rank=8, rate=float, wide=False, note=""
)
COUNTED = DECLARED | {"rows": Count}


def test_defaults():
    for arg in (None, "", " , "):
        choice = parse_arg(arg, **DECLARED)
        assert vars(choice) == dict(
            scale="laptop", method="mora", rank=8, rate=None, wide=False, note="", changed=set()
        )


def test_typed_values():
    choice = parse_arg("method=lora, scale=gpu,rank=32,rate=3e-4,wide,note=a=b", **DECLARED)
    changed = {"method", "scale", "rank", "rate", "wide", "note"}
    assert vars(choice) == dict(scale="gpu", method="lora", rank=32, rate=3e-4, wide=True, note="a=b", changed=changed)
    assert parse_arg("wide=false,rate=none", **DECLARED).wide is False
    assert parse_arg("size=8", size=(4, 8)).size == 8


def test_an_argument_of_several_words():
    declared = DECLARED | {"files": Several}
    choice = parse_arg("files=a.jsonl, b/c.jsonl,wide,rank=4", **declared)
    assert (choice.files, choice.wide, choice.rank) == (("a.jsonl", "b/c.jsonl"), True, 4)
    assert parse_arg("rank=4", **declared).files is None
    assert parse_arg("files=none", **declared).files is None
    for arg, words in (("rank=4,a.jsonl", "'a.jsonl'"), ("files=a,rank=4,b", "'b'"), ("files", "has no value")):
        with pytest.raises(UserError, match=words):
            parse_arg(arg, **declared)


@pytest.mark.parametrize(
    ("arg", "words"),
    [
        ("metod=lora", "'metod'; did you mean method"),
        ("method=lor", "method=lor: allowed: mora, lora, fft"),
        ("rank=eight", "rank=eight: wanted an integer"),
        ("rank=8.5", "rank=8.5: wanted an integer"),
        ("rows=0", "rows=0: wanted a whole number above 0; leave it out"),  # which would read as no argument at all
        ("rows=-1", "rows=-1: wanted a whole number above 0"),
        ("rows=1.5", "rows=1.5: wanted a whole number above 0"),
        ("rate=fast", "rate=fast: wanted a number"),
        ("wide=maybe", "wide=maybe: allowed: true, false"),
        ("rank", "'rank' has no value"),
        ("rank=8,rank=9", "'rank' is given twice"),
        ("=8", "unknown config argument ''"),
    ],
)
def test_bad_arguments_are_one_line(arg, words):
    with pytest.raises(UserError) as error:
        parse_arg(arg, **COUNTED)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "arg", "key"),
    [
        (lora_nlg, "method=fft,rank=8", "rank"),
        (lora_nlg, "method=preembed,rank=4", "rank"),
        (lora_nlg, "method=adapter-h,targets=q+v", "targets"),
        (lora_nlg, "compression=rotation", "compression"),
        (lora_mnli, "method=prelayer,rank=16", "rank"),
        (lora_mnli, "method=lora,compression=rotation", "compression"),
        (lora_glue, "method=bitfit,rank=8", "rank"),
        (lora_glue, "method=houlsby,targets=q", "targets"),
        (lora_glue, "method=lora,drop=3", "drop"),
        (mora_uuid, "method=fft,rank=16", "rank"),
        (finetune, "method=fft,rank=16", "rank"),
    ],
)
def test_an_argument_that_the_method_does_not_read(config, arg, key):
    """A row of a table would otherwise be of another setting than its command says."""
    with pytest.raises(UserError, match=f"config argument {key} is not read by method=.*; leave it out, or take "):
        config.get_config(arg)


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
