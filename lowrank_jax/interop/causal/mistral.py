"""Mistral and Ministral 3: one window for all layers, queries that grow with their position."""

from typing import Any

from lowrank_jax.interop.causal import rope, windows
from lowrank_jax.interop.causal.family import ModelFamily, Values
from lowrank_jax.interop.fields import Notes, number
from lowrank_jax.models.llama_config import AttentionKind, LayerKinds, LlamaConfig

# Ministral 3's for a file without rope_parameters.
MINISTRAL_ROPE = {
    **{"type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384},
    **{"beta_fast": 32.0, "beta_slow": 1.0, "mscale_all_dim": 1.0, "mscale": 1.0, "llama_4_scaling_beta": 0.1},
}


def read_mistral(values: Values, layers: int, where: Any, notes: Notes | None) -> dict[str, Any]:
    """One window for all layers, or none."""
    kinds = LayerKinds(**windows.everywhere(values, layers, where, notes))
    return {"layers": kinds, **rope.rope(values, where, notes)}


def write_window(c: LlamaConfig) -> dict[str, Any]:
    """See `read_mistral`."""
    return {"sliding_window": c.layers.sliding_window}


def read_ministral3(values: Values, layers: int, where: Any, notes: Notes | None) -> dict[str, Any]:
    """Mistral, with queries that grow with their position."""
    if values.get("rope_parameters") is None and values.get("rope_scaling") is None:
        values = {**values, "rope_parameters": MINISTRAL_ROPE}
    found, kinds = rope.flat(values, where, notes), LayerKinds(**windows.everywhere(values, layers, where, notes))
    growth = number(found, "llama_4_scaling_beta", float, where), number(found, rope.OLD_LENGTH, int, where)
    return {"attention": AttentionKind(query_growth=growth), "layers": kinds, **rope.rope(values, where, None)}


def write_ministral3(c: LlamaConfig) -> dict[str, Any]:
    """See `read_ministral3`; transformers has it in the new spelling alone."""
    assert c.attention.query_growth is not None
    beta, period = c.attention.query_growth
    old = rope.to_hf(c)
    parameters = {"rope_theta": c.rope_theta, "llama_4_scaling_beta": beta, rope.OLD_LENGTH: period}
    parameters = {"rope_type": "default", **(old["rope_scaling"] or {}), **parameters}
    return {**write_window(c), "rope_scaling": None, "rope_parameters": parameters}


MISTRAL = {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131072}
MINISTRAL = {"num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 262144, "rms_norm_eps": 1e-5}

FAMILIES = (
    ModelFamily("mistral", "MistralForCausalLM", read_mistral, write_window, MISTRAL),
    ModelFamily("ministral3", "Ministral3ForCausalLM", read_ministral3, write_ministral3, MINISTRAL),
)
