"""OLMo 2 and 3: norms behind attention and MLP, windows in three of four layers."""

from dataclasses import replace
from typing import Any

from lowrank_jax.interop.causal import rope
from lowrank_jax.interop.causal.family import ModelFamily, Values, biased, local_layers, write_local
from lowrank_jax.interop.fields import Notes
from lowrank_jax.models.llama_config import LlamaConfig

OLMO3_THETA = 5e5  # transformers' default


def read_olmo2(values: Values, layers: int, where: Any, notes: Notes | None) -> dict[str, Any]:
    """Norms behind attention and MLP, and over the whole width of queries and keys."""
    return {**_olmo(values, where), **rope.rope(values, where, notes)}


def write_olmo2(c: LlamaConfig) -> dict[str, Any]:
    """See `read_olmo2`."""
    return {"attention_bias": c.attention.qkv_bias}


def read_olmo3(values: Values, layers: int, where: Any, notes: Notes | None) -> dict[str, Any]:
    """OLMo 2, with a window in three of four layers, which rotate unscaled."""
    found = dict(rope.by_layer_type(values, where, notes, OLMO3_THETA, "", OLMO3_THETA))
    return {**_olmo(values, where), "layers": local_layers(values, layers, 4, where, found), **found}


def write_olmo3(c: LlamaConfig) -> dict[str, Any]:
    """See `read_olmo3`; bases that the older spelling cannot say are written in the new one."""
    found = {**write_olmo2(c), **write_local(c)}
    if c.layers.local_theta in (None, OLMO3_THETA):
        return found
    return {**found, "rope_scaling": None, "rope_parameters": rope.both_to_hf(c)}


def _olmo(values: Values, where: Any) -> dict[str, Any]:
    return {"attention": replace(biased(values, where), qk_norm="width"), "norms": "after"}


OLMO2 = {"rms_norm_eps": 1e-5}
OLMO3 = {**OLMO2, "sliding_window": 4096}

FAMILIES = (
    ModelFamily("olmo2", "Olmo2ForCausalLM", read_olmo2, write_olmo2, OLMO2, windows=False),
    ModelFamily("olmo3", "Olmo3ForCausalLM", read_olmo3, write_olmo3, OLMO3),
)
