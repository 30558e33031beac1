"""The models that are known by name."""

from lowrank_jax.core.paths import unknown_name
from lowrank_jax.models.llama import LlamaConfig

BYTE_VOCAB = 259  # 256 bytes, then BOS, EOS and PAD

MODELS: dict[str, LlamaConfig] = {
    "toy-llama": LlamaConfig(
        vocab_size=BYTE_VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=512,
    ),
    "pico-llama": LlamaConfig(
        vocab_size=BYTE_VOCAB,
        hidden_size=256,
        intermediate_size=712,
        num_hidden_layers=4,
        num_attention_heads=4,
        tie_word_embeddings=True,
        max_position_embeddings=512,
    ),
    "smollm2-135m": LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        rope_theta=1e5,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
    ),
    "llama2-7b": LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        rms_norm_eps=1e-5,
        max_position_embeddings=4096,
    ),
}


def get_model(name: str) -> LlamaConfig:
    """The configuration of a model known by name.

    Raises:
      UserError: an unknown name; the message has the nearest known ones.
    """
    if name not in MODELS:
        raise unknown_name("model", name, MODELS)
    return MODELS[name]
