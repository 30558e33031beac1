"""Which compiler options a step asks for, by device, width and layout."""

from types import SimpleNamespace

import jax
import pytest

from lowrank_jax.models.llama import Llama
from lowrank_jax.models.registry import get_model
from lowrank_jax.train.compiler import TRITON, WIDE, compiler_options

GPU = SimpleNamespace(platform="gpu")
GROUPS = Llama(get_model("toy-llama"), fused=True).fused_groups()


def test_wide_fused_products_on_a_gpu_are_not_tritons(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert compiler_options(WIDE, GROUPS, GPU) == {TRITON: False}


@pytest.mark.parametrize(
    ("width", "groups", "device"),
    [(WIDE - 1, GROUPS, GPU), (WIDE, {}, GPU), (WIDE, GROUPS, jax.devices()[0])],
    ids=["narrow", "plain", "cpu"],
)
def test_other_steps_are_left_alone(width, groups, device, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert compiler_options(width, groups, device) == {}


def test_what_xla_flags_name_is_the_users(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"--{TRITON}=true")
    assert compiler_options(WIDE, GROUPS, GPU) == {}
