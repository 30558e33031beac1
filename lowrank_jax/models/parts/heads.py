"""Heads on an encoder, by name: a sequence's class or score, and masked words; always at the path "head"."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from lowrank_jax.core.paths import unknown_name
from lowrank_jax.core.types import Array
from lowrank_jax.models.parts.layers import ACTIVATIONS, LayerNorm, Linear, dropout, parameter

HEADS = ("none", "classification", "regression", "masked-lm")
SEQUENCE_HEADS = ("classification", "regression")


class SequenceHead(nn.Module):
    """W_out x + b on one vector per sequence (BERT's pooled one), or W_out tanh(W_dense x + b) + b (RoBERTa's first).

    Attributes:
      labels: number of classes; 1 for a score.
      dense: the second of the two above.
      rate: dropout in front of each product.
      dtype: compute type; param_dtype: type that parameters are created in.
    """

    labels: int
    dense: bool = False
    rate: float = 0.0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, D] -> float32 [B, labels]."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = dropout(self, x, self.rate)
        if self.dense:
            x = dropout(self, jnp.tanh(Linear(x.shape[-1], use_bias=True, name="dense", **types)(x)), self.rate)
        return Linear(self.labels, use_bias=True, float32_output=True, name="out", **types)(x)


class MaskedLMHead(nn.Module):
    """E norm(act(W x + b)) + b_out, with the encoder's own word table E.

    Attributes:
      vocab_size: rows of E.
      activation: a name of `layers.ACTIVATIONS`; eps: of the norm.
      dtype: compute type; param_dtype: type that parameters are created in.
    """

    vocab_size: int
    activation: str = "gelu"
    eps: float = 1e-12
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, project: Callable[[Array], Array]) -> Array:
        """[..., D] -> float32 [..., V]; `project` is the product with E, as `Embedding.logits`."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = ACTIVATIONS[self.activation](Linear(x.shape[-1], use_bias=True, name="dense", **types)(x))
        x = LayerNorm(self.eps, name="norm", **types)(x)
        bias = parameter(self, "bias", nn.initializers.zeros_init(), (self.vocab_size,), self.param_dtype)
        return project(x) + bias.astype(jnp.float32)


def check_head(name: str) -> None:
    """Raises UserError where `name` is none of HEADS."""
    if name not in HEADS:
        raise unknown_name("head", name, HEADS)
