"""Qwen 2 and 3: biases or norms of queries and keys, windows in the upper layers."""

from dataclasses import replace
from typing import Any

from lowrank_jax.interop.causal import rope, windows
from lowrank_jax.interop.causal.family import ModelFamily, Values, biased, write_local
from lowrank_jax.interop.fields import Notes, flag, number
from lowrank_jax.models.llama_config import AttentionKind, LayerKinds, LlamaConfig


def qwen_windows(values: Values, layers: int, where: Any) -> LayerKinds:
    """Windows where use_sliding_window is true: in layers from max_window_layers on, or as layer_types says."""
    used = flag(values, "use_sliding_window", where, False)
    values = values if used else {**values, "sliding_window": None}
    first = number(values, "max_window_layers", int, where)
    local = [values["sliding_window"] is not None and layer >= first for layer in range(layers)]
    return LayerKinds(**windows.by_layer(values, local, where))


def write_qwen_windows(c: LlamaConfig) -> dict[str, Any]:
    """See `qwen_windows`."""
    return {"use_sliding_window": c.layers.sliding_window is not None, **write_local(c)}


def read_qwen2(values: Values, layers: int, where: Any, notes: Notes | None) -> dict[str, Any]:
    """Biases on query, key and value, always."""
    kinds = qwen_windows(values, layers, where)
    return {"attention": AttentionKind(qkv_bias=True), "layers": kinds, **rope.rope(values, where, notes)}


def read_qwen3(values: Values, layers: int, where: Any, notes: Notes | None) -> dict[str, Any]:
    """Norms over each head of queries and keys."""
    kind = replace(biased(values, where), qk_norm="head")
    return {"attention": kind, "layers": qwen_windows(values, layers, where), **rope.rope(values, where, notes)}


def write_qwen3(c: LlamaConfig) -> dict[str, Any]:
    """See `read_qwen3`."""
    return {"attention_bias": c.attention.qkv_bias, **write_qwen_windows(c)}


QWEN = {"max_position_embeddings": 32768, "max_window_layers": 28, "sliding_window": 4096, "num_key_value_heads": 32}

FAMILIES = (
    ModelFamily("qwen2", "Qwen2ForCausalLM", read_qwen2, write_qwen_windows, QWEN),
    ModelFamily("qwen3", "Qwen3ForCausalLM", read_qwen3, write_qwen3, {**QWEN, "head_dim": 128}),
)
