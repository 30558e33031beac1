"""Llama: biases by flags, one rotation."""

from typing import Any

from lowrank_jax.interop.causal import rope
from lowrank_jax.interop.causal.family import ModelFamily, Values, biased
from lowrank_jax.interop.fields import Notes, flag
from lowrank_jax.models.llama_config import LlamaConfig


def read_llama(values: Values, layers: int, where: Any, notes: Notes | None) -> dict[str, Any]:
    """Biases by flags, one rotation."""
    kind = biased(values, where)
    return {"attention": kind, "mlp_bias": flag(values, "mlp_bias", where, False), **rope.rope(values, where, notes)}


def write_llama(c: LlamaConfig) -> dict[str, Any]:
    """See `read_llama`."""
    return {"attention_bias": c.attention.qkv_bias, "mlp_bias": c.mlp_bias}


FAMILIES = (ModelFamily("llama", "LlamaForCausalLM", read_llama, write_llama, windows=False),)
