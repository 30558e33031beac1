"""Which compiler options a step asks for, by device, width and layout."""

from types import SimpleNamespace

import jax
import pytest

from lowrank_jax.models.llama import Llama
from lowrank_jax.models.registry import get_model
from lowrank_jax.train.compiled.options import GRAPHS, MERGE, SLICES, TRITON, WIDE, compiler_options, loss_unroll

GPU = SimpleNamespace(platform="gpu")
GROUPS = Llama(get_model("toy-llama"), fused=True).fused_groups()


@pytest.mark.parametrize("width", [WIDE, WIDE - 1])
def test_unrolled_steps_on_a_gpu_replay_their_graph(width, monkeypatch):
    """Weights of a layer have one address in every step; slices that products read in place do not."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    for groups in ({}, GROUPS):
        assert compiler_options(width, groups, True, GPU) == {MERGE: 0, TRITON: False, SLICES: False}


def test_narrow_fused_scans_on_a_gpu_keep_triton_and_graphs(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert compiler_options(WIDE - 1, GROUPS, False, GPU) == {MERGE: 0}


def test_wide_fused_scans_on_a_gpu_have_no_triton_products_and_no_graphs(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert compiler_options(WIDE, GROUPS, False, GPU) == {MERGE: 0, TRITON: False, GRAPHS: ""}


def test_fp8_steps_have_no_triton_products(monkeypatch):
    """XLA rewrites to cuBLASLt's FP8 products what Triton leaves."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    for groups in ({}, GROUPS):
        assert compiler_options(WIDE - 1, groups, False, GPU, fp8=True) == {MERGE: 0, TRITON: False}


@pytest.mark.parametrize(
    ("groups", "unrolled", "device", "coded"),
    [({}, False, GPU, False), ({}, True, GPU, True), (GROUPS, True, jax.devices()[0], False)],
    ids=["a loop without joined kernels", "int8", "cpu"],
)
def test_other_steps_are_left_alone(groups, unrolled, device, coded, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert compiler_options(WIDE, groups, unrolled, device, coded=coded) == {}


@pytest.mark.parametrize(
    ("flag", "left"),
    [(f"--{TRITON}=true", {MERGE: 0, GRAPHS: ""}), (f"--{GRAPHS}=FUSION --{MERGE}=8", {TRITON: False})],
)
def test_what_xla_flags_name_is_the_users(flag, left, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", flag)
    assert compiler_options(WIDE, GROUPS, False, GPU) == left


def test_the_losss_loop_is_unrolled_on_gpus_alone():
    assert loss_unroll(GPU) == 8
    assert loss_unroll(jax.devices("cpu")[0]) == 1


@pytest.mark.parametrize("unrolled", [True, False])
def test_xla_knows_the_options(unrolled, monkeypatch):
    """On a CPU too it refuses a name that it does not know, as it may after an update."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    options = compiler_options(WIDE, GROUPS, unrolled, GPU)
    assert float(jax.jit(lambda x: x + 1, compiler_options=options)(1.0)) == 2.0
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
        jax.jit(lambda x: x + 1, compiler_options={**options, "xla_gpu_gone": 0})(1.0)
