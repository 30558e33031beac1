"""Configurations of models, by name."""

import dataclasses
from typing import Any

from lowrank_jax.core.paths import unknown_name
from lowrank_jax.models import deberta, gpt2
from lowrank_jax.models.bert import BertConfig
from lowrank_jax.models.family_shapes import FAMILY_SHAPES
from lowrank_jax.models.llama_config import LlamaConfig
from lowrank_jax.models.parts.rotary import Llama3Scaling

BYTE_VOCAB = 259  # 256 bytes, then BOS, EOS and PAD

LLAMAS: dict[str, LlamaConfig] = {
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
    "smollm2-360m": LlamaConfig(
        vocab_size=49152,
        hidden_size=960,
        intermediate_size=2560,
        num_hidden_layers=32,
        num_attention_heads=15,
        num_key_value_heads=5,
        rope_theta=1e5,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
    ),
    "llama2-13b": LlamaConfig(
        vocab_size=32000,
        hidden_size=5120,
        intermediate_size=13824,
        num_hidden_layers=40,
        num_attention_heads=40,
        rms_norm_eps=1e-5,
        max_position_embeddings=4096,
    ),
    "llama3-8b": LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        rope_theta=5e5,
        rms_norm_eps=1e-5,
        max_position_embeddings=8192,
    ),
    # MoRA's pre-training shapes (paper section 5.3; its repository's configs).
    "mora-250m": LlamaConfig(
        vocab_size=32100,
        hidden_size=768,
        intermediate_size=2560,
        num_hidden_layers=24,
        num_attention_heads=16,
        max_position_embeddings=1024,
    ),
    "mora-1.3b": LlamaConfig(
        vocab_size=32100,
        hidden_size=2048,
        intermediate_size=5461,
        num_hidden_layers=24,
        num_attention_heads=32,
        max_position_embeddings=1024,
    ),
    # A small model of the same kind over bytes, for one GPU; of this project.
    "mora-14m": LlamaConfig(
        vocab_size=BYTE_VOCAB,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=6,
        max_position_embeddings=512,
    ),
}
LLAMAS |= FAMILY_SHAPES
LLAMAS["llama3.1-8b"] = dataclasses.replace(
    LLAMAS["llama3-8b"], rope_scaling=Llama3Scaling(), max_position_embeddings=131072
)

ROBERTA: dict[str, Any] = dict(
    vocab_size=50265, model_type="roberta", pad_token_id=1, max_position_embeddings=514, type_vocab_size=1
)
BASE: dict[str, Any] = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
LARGE: dict[str, Any] = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)
MINI: dict[str, Any] = dict(hidden_size=384, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=12)
TOY: dict[str, Any] = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)

ENCODERS: dict[str, BertConfig] = {
    "bert-base": BertConfig(vocab_size=30522, **BASE),
    "bert-large": BertConfig(vocab_size=30522, **LARGE),
    "roberta-base": BertConfig(**ROBERTA, **BASE, layer_norm_eps=1e-5),
    "roberta-large": BertConfig(**ROBERTA, **LARGE, layer_norm_eps=1e-5),
    "minilm-l6": BertConfig(vocab_size=30522, **MINI),
    "toy-bert": BertConfig(vocab_size=BYTE_VOCAB, **TOY, pad_token_id=BYTE_VOCAB - 1),
    "toy-roberta": BertConfig(**{**ROBERTA, "vocab_size": BYTE_VOCAB}, **TOY, layer_norm_eps=1e-5),
}
MODELS: dict[str, Any] = {**LLAMAS, **ENCODERS, **gpt2.SHAPES, **deberta.SHAPES}


def get_model(name: str) -> Any:
    """The configuration of a model known by name.

    Raises:
      UserError: an unknown name; the message has the nearest known ones.
    """
    if name not in MODELS:
        raise unknown_name("model", name, MODELS)
    return MODELS[name]
