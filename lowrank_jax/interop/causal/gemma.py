"""Gemma 2 and 3: norms on both sides, scaled embeddings, soft caps, another rotary base in layers with a window."""

from dataclasses import replace
from typing import Any, Literal

from lowrank_jax.core.errors import UserError
from lowrank_jax.interop.causal import rope
from lowrank_jax.interop.causal.family import ModelFamily, Values, biased, local_layers, write_local
from lowrank_jax.interop.fields import Notes, flag, number
from lowrank_jax.models.llama_config import LlamaConfig

GEMMA_THETA, GEMMA_LOCAL_THETA = 1e6, 1e4  # transformers' defaults


def _gemma(values: Values, where: Any, qk_norm: Literal["none", "head"]) -> dict[str, Any]:
    """Norms on both sides that multiply by 1 + w, scaled embeddings, soft caps, scores by query_pre_attn_scalar."""
    if flag(values, "use_bidirectional_attention", where, False):
        raise UserError(f"{where}: use_bidirectional_attention is not supported; choose a base without it")
    caps = {
        name: None if values.get(name) is None else number(values, name, float, where)
        for name in ("attn_logit_softcapping", "final_logit_softcapping")
    }
    scalar = number(values, "query_pre_attn_scalar", float, where)
    kind = replace(biased(values, where), qk_norm=qk_norm, query_scalar=scalar, softcap=caps["attn_logit_softcapping"])
    shared = {"norms": "both", "norm_offset": True, "scale_embedding": True}
    return {**shared, "attention": kind, "logit_softcap": caps["final_logit_softcapping"]}


def read_gemma2(values: Values, layers: int, where: Any, notes: Notes | None) -> dict[str, Any]:
    """A window in every other layer."""
    kinds = local_layers(values, layers, 2, where)
    return {**_gemma(values, where, "none"), "layers": kinds, **rope.rope(values, where, notes)}


def read_gemma3(values: Values, layers: int, where: Any, notes: Notes | None) -> dict[str, Any]:
    """Norms over each head of queries and keys; a window, and another base of the rotation, in five of six layers.

    transformers has no soft cap on its scores, whatever attn_logit_softcapping says.
    """
    if values.get("attn_logit_softcapping") is not None:
        raise UserError(f"{where}: attn_logit_softcapping is not supported by Gemma 3; remove it from the config")
    found = dict(rope.by_layer_type(values, where, notes, GEMMA_THETA, "rope_local_base_freq", GEMMA_LOCAL_THETA))
    every = number(values, "sliding_window_pattern", int, where, least=1)
    kinds = local_layers(values, layers, every, where, found)
    return {**_gemma(values, where, "head"), "layers": kinds, **found}


def write_gemma2(c: LlamaConfig) -> dict[str, Any]:
    """See `read_gemma2`."""
    kind, scalar = c.attention, c.attention.query_scalar
    assert scalar is not None
    scalar = int(scalar) if scalar == int(scalar) else scalar  # transformers takes whole numbers alone
    found = {"attention_bias": kind.qkv_bias, "query_pre_attn_scalar": scalar}
    found |= {"attn_logit_softcapping": kind.softcap, "final_logit_softcapping": c.logit_softcap}
    return {**found, **write_local(c)}


def write_gemma3(c: LlamaConfig) -> dict[str, Any]:
    """See `read_gemma3`."""
    return {**write_gemma2(c), "rope_local_base_freq": c.layers.local_theta or GEMMA_LOCAL_THETA}


GEMMA2 = {
    **{"vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26},
    **{"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 8192},
    **{"tie_word_embeddings": True, "query_pre_attn_scalar": 256, "sliding_window": 4096},
    **{"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
}
GEMMA3 = {
    **GEMMA2,
    **{"vocab_size": 262208, "max_position_embeddings": 131072, "sliding_window_pattern": 6},
    **{"attn_logit_softcapping": None, "final_logit_softcapping": None},
}
GELU = ("gelu_pytorch_tanh", "hidden_activation")

FAMILIES = (
    ModelFamily("gemma2", "Gemma2ForCausalLM", read_gemma2, write_gemma2, GEMMA2, *GELU),
    ModelFamily("gemma3_text", "Gemma3ForCausalLM", read_gemma3, write_gemma3, GEMMA3, *GELU),
)
