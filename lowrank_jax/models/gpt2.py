"""GPT-2: LayerNorm first, learned positions, biases everywhere, scanned over layers; its shapes up to GPT-3 175B."""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
from jax.ad_checkpoint import checkpoint_name

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.types import Array
from lowrank_jax.models.parts.attention import Attention
from lowrank_jax.models.parts.causal import CausalLM
from lowrank_jax.models.parts.counts import check_counts
from lowrank_jax.models.parts.layers import ACTIVATIONS, Embedding, LayerNorm, Linear
from lowrank_jax.models.parts.stack import add_layers

COUNTS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)


@dataclass(frozen=True)
class GPT2Config:
    """The shape of a GPT-2, under the names that HF's config accepts as aliases of GPT-2's n_embd, n_layer, ...

    intermediate_size defaults to 4 hidden_size. There are as many key/value heads as heads.

    Raises:
      UserError: a count below 1, heads that do not divide.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int | None = None
    max_position_embeddings: int = 1024
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = True

    def __post_init__(self):
        if self.intermediate_size is None:
            object.__setattr__(self, "intermediate_size", 4 * self.hidden_size)
        check_counts(self, COUNTS)
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"hidden_size {self.hidden_size} does not divide into {self.num_attention_heads} heads; "
                "change num_attention_heads"
            )
        if not self.layer_norm_epsilon > 0:
            raise UserError(f"layer_norm_epsilon {self.layer_norm_epsilon} must be above 0")

    @property
    def num_key_value_heads(self) -> int:
        """For `cache.init_cache`, which makes this model's cache too."""
        return self.num_attention_heads

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_attention_heads


SHAPES: dict[str, GPT2Config] = {
    "gpt2": GPT2Config(50257, 768, 12, 12),
    "gpt2-medium": GPT2Config(50257, 1024, 24, 16),
    "gpt2-large": GPT2Config(50257, 1280, 36, 20),
    # For planning: its weights are not public, and every other layer of the original attends sparsely, not densely.
    "gpt3-175b": GPT2Config(50257, 12288, 96, 96, max_position_embeddings=2048),
}


class MLP(nn.Module):
    """W_down gelu(W_up x + b) + b, with the gelu by tanh ("gelu_new")."""

    features: int
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        types = {"use_bias": True, "dtype": self.dtype, "param_dtype": self.param_dtype}
        up = checkpoint_name(Linear(self.features, name="up", **types)(x), "up")
        return Linear(x.shape[-1], name="down", **types)(checkpoint_name(ACTIVATIONS["gelu_new"](up), "hidden"))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); the residual stream is in the compute dtype."""

    config: GPT2Config
    dtype: Any
    param_dtype: Any
    attention: str

    @nn.compact
    def __call__(self, carry: tuple[Array, dict | None], rotary: None, allowed: Array | None, layer: dict):
        c, types = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x, cache = carry
        heads = (c.num_attention_heads, c.num_attention_heads, c.head_dim)
        attention = Attention(*heads, use_bias=True, implementation=self.attention, name="attention", **types)
        y = LayerNorm(c.layer_norm_epsilon, name="attention_norm", **types)(x)
        y, cache = attention(y, rotary, allowed, cache, layer.get("number"))
        x = checkpoint_name(x + y, "attention_out")
        y = LayerNorm(c.layer_norm_epsilon, name="mlp_norm", **types)(x)
        assert c.intermediate_size is not None  # the config's default is in its place
        return (x + MLP(c.intermediate_size, name="mlp", **types)(y), cache), None


class GPT2(CausalLM):
    """tokens -> float32 logits; attributes, arguments and results are those of `causal.CausalLM`."""

    config: GPT2Config

    def setup(self):
        c, types = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.embed = Embedding(c.vocab_size, c.hidden_size, **types)
        self.position = Embedding(c.max_position_embeddings, c.hidden_size, **types)
        add_layers(self, Block, c, self.dtype, self.param_dtype, self.attention)
        self.final_norm = LayerNorm(c.layer_norm_epsilon, **types)
        if not c.tie_word_embeddings:
            self.head = Linear(c.vocab_size, float32_output=True, **types)

    def start(self, tokens: Array, positions: Array, slots: int | None = None) -> tuple[Array, None]:
        """The tokens' embeddings plus those of their positions."""
        return self.embed(tokens) + self.position(positions), None
