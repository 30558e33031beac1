"""Which compiler options a step asks for, by device, width and layout."""

from types import SimpleNamespace

import jax
import pytest

from lowrank_jax.models.llama import Llama
from lowrank_jax.models.registry import get_model
from lowrank_jax.train.compiler import GRAPHS, TRITON, WIDE, compiler_options

GPU = SimpleNamespace(platform="gpu")
GROUPS = Llama(get_model("toy-llama"), fused=True).fused_groups()


def test_wide_fused_steps_on_a_gpu_have_no_triton_products_and_no_graphs(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert compiler_options(WIDE, GROUPS, GPU) == {TRITON: False, GRAPHS: ""}


@pytest.mark.parametrize(
    ("width", "groups", "device"),
    [(WIDE - 1, GROUPS, GPU), (WIDE, {}, GPU), (WIDE, GROUPS, jax.devices()[0])],
    ids=["narrow", "plain", "cpu"],
)
def test_other_steps_are_left_alone(width, groups, device, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert compiler_options(width, groups, device) == {}


@pytest.mark.parametrize(
    ("flag", "left"), [(f"--{TRITON}=true", {GRAPHS: ""}), (f"--{GRAPHS}=FUSION", {TRITON: False})]
)
def test_what_xla_flags_name_is_the_users(flag, left, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", flag)
    assert compiler_options(WIDE, GROUPS, GPU) == left
