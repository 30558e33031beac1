"""Llama: RMSNorm, rotary grouped-query attention and SwiGLU, scanned over layers."""

import math
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.types import Array
from lowrank_jax.layouts.fused import Groups
from lowrank_jax.layouts.segments import segments
from lowrank_jax.models.attention import QKV, Attention, RopeScaling, rotary_tables
from lowrank_jax.models.causal import CausalLM
from lowrank_jax.models.counts import MOST, check_counts
from lowrank_jax.models.layers import Embedding, Linear, RMSNorm
from lowrank_jax.models.stack import add_layers
from lowrank_jax.ops.saved import saved_product

COUNTS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)


@dataclass(frozen=True)
class LlamaConfig:
    """The shape of a Llama, under HF's names.

    num_key_value_heads defaults to num_attention_heads, head_dim to hidden_size / num_attention_heads.

    Raises:
      UserError: a count below 1, heads that do not divide, an odd head_dim.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    rope_theta: float = 1e4
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 2048

    def __post_init__(self):
        if self.num_key_value_heads is None:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        check_counts(self, COUNTS)
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise UserError(
                    f"hidden_size {self.hidden_size} does not divide into {self.num_attention_heads} heads; "
                    "change num_attention_heads or give head_dim"
                )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        heads, kv_heads, _ = self.heads
        if type(self.head_dim) is not int or not 2 <= self.head_dim <= MOST or self.head_dim % 2:
            raise UserError(f"head_dim is {self.head_dim!r}; rotary positions need an even number from 2 to {MOST}")
        if heads % kv_heads:
            raise UserError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}; choose a divisor"
            )
        if not 0 < self.rope_theta < math.inf or not 0 < self.rms_norm_eps < math.inf:
            raise UserError(
                f"rope_theta {self.rope_theta} and rms_norm_eps {self.rms_norm_eps} must both be above 0 and finite"
            )

    @property
    def heads(self) -> tuple[int, int, int]:
        """(num_attention_heads, num_key_value_heads, head_dim)."""
        assert self.num_key_value_heads is not None  # `__post_init__` put the defaults in place
        assert self.head_dim is not None
        return self.num_attention_heads, self.num_key_value_heads, self.head_dim


class SwiGLU(nn.Module):
    """W_down(silu(W_gate x) * W_up x); with `fused` gate and up are one Linear, gate_up."""

    features: int
    dtype: Any
    param_dtype: Any
    fused: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if self.fused:  # saved by name before the split: the halves would be copied
            both = saved_product(Linear(2 * self.features, name="gate_up", **types)(x), "gate_up")
            gate, up = jnp.split(both, 2, axis=-1)
        else:
            gate, up = (saved_product(Linear(self.features, name=name, **types)(x), name) for name in ("gate", "up"))
        return Linear(x.shape[-1], name="down", **types)(checkpoint_name(nn.silu(gate) * up, "hidden"))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); the residual stream is in the compute dtype."""

    config: LlamaConfig
    dtype: Any
    param_dtype: Any
    attention: str
    fused: bool = False

    @nn.compact
    def __call__(self, carry: tuple[Array, dict | None], rotary: Any, allowed: Array | None, layer: Array | None):
        c, types = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x, cache = carry
        attention = Attention(*c.heads, implementation=self.attention, fused=self.fused, name="attention", **types)
        y = RMSNorm(c.rms_norm_eps, name="attention_norm", **types)(x)
        y, cache = attention(y, rotary, allowed, cache, layer)
        # Named after the sum: the backward pass needs the sum alone, to redo the norm.
        x = checkpoint_name(x + y, "attention_out")
        y = RMSNorm(c.rms_norm_eps, name="mlp_norm", **types)(x)
        return (x + SwiGLU(c.intermediate_size, fused=self.fused, name="mlp", **types)(y), cache), None


class Llama(CausalLM):
    """tokens -> float32 logits; attributes, arguments and results are those of `causal.CausalLM`.

    Attributes:
      fused: kernels that read the same input, named by `fused_groups`, are one product; see `layouts.fused`.
    """

    config: LlamaConfig
    fused: bool = False

    def setup(self):
        c, types = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.embed = Embedding(c.vocab_size, c.hidden_size, **types)
        add_layers(self, Block, c, self.dtype, self.param_dtype, self.attention, self.fused)
        self.final_norm = RMSNorm(c.rms_norm_eps, **types)
        if not c.tie_word_embeddings:
            self.head = Linear(c.vocab_size, float32_output=True, **types)

    def fused_groups(self) -> Groups:
        """The kernels that a fused copy of this model reads as one."""
        c = self.config
        heads, kv_heads, head_dim = c.heads
        qkv = [(name, count * head_dim) for name, count in zip(QKV, (heads, kv_heads, kv_heads), strict=True)]
        found = {}
        for layers, _, _ in segments(c.num_hidden_layers, self.cuts):
            found[f"{layers}/attention/qkv"] = tuple((f"{layers}/attention/{name}", columns) for name, columns in qkv)
            found[f"{layers}/mlp/gate_up"] = tuple(
                (f"{layers}/mlp/{name}", c.intermediate_size) for name in ("gate", "up")
            )
        return found

    def start(self, tokens: Array, positions: Array) -> tuple[Array, Any]:
        """The tokens' embeddings, and the rotary tables for queries and keys."""
        c = self.config
        return self.embed(tokens), rotary_tables(positions, c.heads[2], c.rope_theta, c.rope_scaling)
