"""SmolLM3: layers that do not rotate."""

from typing import Any

from lowrank_jax.core.errors import UserError
from lowrank_jax.interop.causal import rope, windows
from lowrank_jax.interop.causal.family import ModelFamily, Values, biased
from lowrank_jax.interop.causal.llama import write_llama
from lowrank_jax.interop.causal.qwen import write_qwen_windows
from lowrank_jax.interop.fields import Notes, flag, number
from lowrank_jax.models.llama_config import LayerKinds, LlamaConfig

SMOLLM3_THETA = 2e6  # transformers' default


def read_smollm3(values: Values, layers: int, where: Any, notes: Notes | None) -> dict[str, Any]:
    """Layers that do not rotate, by no_rope_layers (0 for those) or every no_rope_layer_interval-th; there a window."""
    every, rotated = number(values, "no_rope_layer_interval", int, where, least=1), values.get("no_rope_layers")
    if rotated is None:
        rotated = [int((layer + 1) % every != 0) for layer in range(layers)]
    if not isinstance(rotated, list) or len(rotated) < layers or any(one not in (0, 1) for one in rotated):
        raise UserError(f"{where}: no_rope_layers must be a list of 0 or 1 for each of the {layers} layers")
    rotated = tuple(bool(one) for one in rotated[:layers])
    slides = flag(values, "use_sliding_window", where, False) and values.get("sliding_window") is not None
    local = windows.by_layer(values, [slides and not one for one in rotated], where)
    kinds = LayerKinds(**local, rotated=() if all(rotated) else rotated)
    shared = {"attention": biased(values, where), "mlp_bias": flag(values, "mlp_bias", where, False)}
    return {**shared, "layers": kinds, **rope.rope(values, where, notes, SMOLLM3_THETA)}


def write_smollm3(c: LlamaConfig) -> dict[str, Any]:
    """See `read_smollm3`."""
    rotated = c.layers.rotated or (True,) * c.num_hidden_layers
    return {**write_llama(c), **write_qwen_windows(c), "no_rope_layers": [int(one) for one in rotated]}


SMOLLM3 = {"no_rope_layer_interval": 4, "num_key_value_heads": 4, "max_position_embeddings": 32768}
SMOLLM3 |= {"tie_word_embeddings": True}

FAMILIES = (ModelFamily("smollm3", "SmolLM3ForCausalLM", read_smollm3, write_smollm3, SMOLLM3),)
