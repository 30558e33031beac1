"""The shapes of published models, of the model families that are a Llama with flags.

Every field is that of the config.json beside the weights: Qwen/Qwen2.5-0.5B, Qwen/Qwen3-0.6B, meta-llama/Llama-3.2-1B,
google/gemma-3-270m, google/gemma-3-1b-pt, HuggingFaceTB/SmolLM3-3B, mistralai/Mistral-7B-v0.3, allenai/OLMo-2-0425-1B.
"""

from lowrank_jax.models.llama_config import AttentionKind, LayerKinds, LlamaConfig
from lowrank_jax.models.parts.rotary import Llama3Scaling


def _gemma3(hidden: int, intermediate: int, layers: int, window: int) -> LlamaConfig:
    """Gemma 3 with four query heads and one key/value head; every sixth layer attends to all keys."""
    local = tuple((layer + 1) % 6 != 0 for layer in range(layers))
    return LlamaConfig(
        vocab_size=262144,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        rope_theta=1e6,
        tie_word_embeddings=True,
        max_position_embeddings=32768,
        attention=AttentionKind(qk_norm="head", query_scalar=256.0),
        layers=LayerKinds(window, local, local_theta=1e4),
        norms="both",
        norm_offset=True,
        hidden_act="gelu_pytorch_tanh",
        scale_embedding=True,
        family="gemma3_text",
    )


FAMILY_SHAPES: dict[str, LlamaConfig] = {
    "qwen2.5-0.5b": LlamaConfig(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        rope_theta=1e6,
        tie_word_embeddings=True,
        max_position_embeddings=32768,
        attention=AttentionKind(qkv_bias=True),
        family="qwen2",
    ),
    "qwen3-0.6b": LlamaConfig(
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        rope_theta=1e6,
        tie_word_embeddings=True,
        max_position_embeddings=40960,
        attention=AttentionKind(qk_norm="head"),
        family="qwen3",
    ),
    "llama-3.2-1b": LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        rope_theta=5e5,
        rope_scaling=Llama3Scaling(factor=32.0),
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        max_position_embeddings=131072,
    ),
    "gemma-3-270m": _gemma3(640, 2048, 18, 512),
    "gemma-3-1b": _gemma3(1152, 6912, 26, 512),
    "smollm3-3b": LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=4,
        rope_theta=5e6,
        tie_word_embeddings=True,
        max_position_embeddings=65536,
        layers=LayerKinds(rotated=tuple((layer + 1) % 4 != 0 for layer in range(36))),
        family="smollm3",
    ),
    "mistral-7b-v0.3": LlamaConfig(
        vocab_size=32768,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        rope_theta=1e6,
        rms_norm_eps=1e-5,
        max_position_embeddings=32768,
        family="mistral",
    ),
    "olmo-2-1b": LlamaConfig(
        vocab_size=100352,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=16,
        rope_theta=5e5,
        max_position_embeddings=4096,
        attention=AttentionKind(qk_norm="width"),
        norms="after",
        family="olmo2",
    ),
}
FAMILY_SHAPES["gemma3-270m"] = FAMILY_SHAPES["gemma-3-270m"]  # the fetched weights' name
