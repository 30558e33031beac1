"""BERT, RoBERTa and MiniLM: a bidirectional post-norm encoder scanned over layers, with a pooler and a head by name."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import unknown_name
from lowrank_jax.core.types import Array
from lowrank_jax.models.parts.attend import attend
from lowrank_jax.models.parts.attention_kernel import pick_implementation
from lowrank_jax.models.parts.counts import check_counts
from lowrank_jax.models.parts.heads import SEQUENCE_HEADS, MaskedLMHead, SequenceHead, check_head
from lowrank_jax.models.parts.layers import ACTIVATIONS, Embedding, LayerNorm, Linear, dropout
from lowrank_jax.models.parts.stack import Model, add_layers, run_layers

KINDS = ("bert", "roberta")
COUNTS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "type_vocab_size",
    "num_labels",
)
RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")


@dataclass(frozen=True)
class BertConfig:
    """The shape of an encoder, under HF's names, and its head.

    Attributes:
      model_type: "bert" (and MiniLM), or "roberta": positions start after the padding id, and its head differs.
      pad_token_id: RoBERTa skips it when it counts positions.
      pooler: whether the model has tanh(W x + b) of the first token.
      head: a name of `heads.HEADS`; num_labels: its classes (1 for regression).
      classifier_dropout: None is hidden_dropout_prob. All dropout acts only in calls with a "dropout" key.

    Raises:
      UserError: a count below 1, heads that do not divide, an unknown name, a rate outside [0, 1), BERT's sequence head
        without a pooler.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"
    model_type: str = "bert"
    pad_token_id: int = 0
    pooler: bool = True
    head: str = "none"
    num_labels: int = 2
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None

    def __post_init__(self):
        check_counts(self, COUNTS)
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise UserError(f"pad_token_id is {self.pad_token_id}; it must be a token, from 0 to {self.vocab_size - 1}")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"hidden_size {self.hidden_size} does not divide into {self.num_attention_heads} heads; "
                "change num_attention_heads"
            )
        if self.model_type not in KINDS:
            raise unknown_name("encoder", self.model_type, KINDS)
        if self.hidden_act not in ACTIVATIONS:
            raise unknown_name("hidden_act", self.hidden_act, ACTIVATIONS)
        check_head(self.head)
        for name in RATES:
            if not 0 <= (getattr(self, name) or 0.0) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; a dropout rate is at least 0 and below 1")
        if not self.layer_norm_eps > 0:
            raise UserError(f"layer_norm_eps {self.layer_norm_eps} must be above 0")
        if self.head == "regression" and self.num_labels != 1:
            raise UserError(f"a regression head gives one score, not num_labels {self.num_labels}; set it to 1")
        if self.pooler and self.head == "masked-lm":
            raise UserError("a masked-lm head reads no pooler; set pooler to False")
        if self.head in SEQUENCE_HEADS and self.pooler != (self.model_type == "bert"):
            needs = "needs the" if self.model_type == "bert" else "reads no"
            raise UserError(f"{self.model_type}'s {self.head} head {needs} pooler; use with_head, which sets it")

    @property
    def first_position(self) -> int:
        """Row of the position table for a sequence's first token."""
        return self.pad_token_id + 1 if self.model_type == "roberta" else 0


def with_head(config: BertConfig, head: str, num_labels: int = 2) -> BertConfig:
    """The config with another head, and with the pooler where that head (or an encoder without a head) reads it."""
    pooler = head == "none" or (head in SEQUENCE_HEADS and config.model_type == "bert")
    num_labels = 1 if head == "regression" else num_labels
    return dataclasses.replace(config, head=head, num_labels=num_labels, pooler=pooler)


class Embed(nn.Module):
    """E_word[token] + E_position[position] + E_type[type]."""

    config: BertConfig
    dtype: Any
    param_dtype: Any

    def setup(self):
        c, types = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.word = Embedding(c.vocab_size, c.hidden_size, **types)
        self.position = Embedding(c.max_position_embeddings, c.hidden_size, **types)
        self.type = Embedding(c.type_vocab_size, c.hidden_size, **types)

    def __call__(self, tokens: Array, positions: Array, types: Array) -> Array:
        return self.word(tokens) + self.type(types) + self.position(positions)

    def logits(self, x: Array) -> Array:
        """x E_word^T, float32."""
        return self.word.logits(x)


class SelfAttention(nn.Module):
    """softmax(Q K^T / sqrt(head_dim)) V over all valid keys, then a projection; dropout on weights and result."""

    config: BertConfig
    dtype: Any
    param_dtype: Any
    implementation: str

    @nn.compact
    def __call__(self, x: Array, allowed: Array | None) -> Array:
        """Args: x [B, T, D]; allowed bool [B, 1, 1, T], True at valid keys, or None for all."""
        c, types = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        head_dim = c.hidden_size // c.num_attention_heads

        def project(name):
            y = Linear(c.hidden_size, use_bias=True, name=name, **types)(x)
            return checkpoint_name(y.reshape(*y.shape[:-1], c.num_attention_heads, head_dim), name)

        query, key, value = project("query"), project("key"), project("value")
        rate = c.attention_probs_dropout_prob
        if rate and self.has_rng("dropout"):  # jax.nn's function has no dropout
            scores = jnp.einsum("bthd,bshd->bhts", query, key, preferred_element_type=jnp.float32) * head_dim**-0.5
            if allowed is not None:
                scores = jnp.where(allowed, scores, jnp.finfo(jnp.float32).min)
            weights = dropout(self, jax.nn.softmax(scores), rate).astype(self.dtype)
            y = checkpoint_name(jnp.einsum("bhts,bshd->bthd", weights, value), "attention")
        else:
            kernel = pick_implementation(
                self.implementation, self.dtype, head_dim, x.shape[1], masked=allowed is not None, cached=False
            )
            y = attend(query, key, value, allowed, causal=False, kernel=kernel)
        y = Linear(c.hidden_size, use_bias=True, name="out", **types)(y.reshape(x.shape))
        return dropout(self, y, c.hidden_dropout_prob)


class Mlp(nn.Module):
    """W_down act(W_up x + b) + b."""

    config: Any  # BertConfig or DebertaConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, types = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        up = checkpoint_name(Linear(c.intermediate_size, use_bias=True, name="up", **types)(x), "up")
        hidden = checkpoint_name(ACTIVATIONS[c.hidden_act](up), "hidden")
        y = Linear(c.hidden_size, use_bias=True, name="down", **types)(hidden)
        return dropout(self, y, c.hidden_dropout_prob)


class Block(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)): post-norm."""

    config: BertConfig
    dtype: Any
    param_dtype: Any
    attention: str

    @nn.compact
    def __call__(self, x: Array, rotary: None, allowed: Array | None, layer: None):
        c, types = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        attention = SelfAttention(c, implementation=self.attention, name="attention", **types)
        x = checkpoint_name(x + attention(x, allowed), "attention_out")
        x = LayerNorm(c.layer_norm_eps, name="attention_norm", **types)(x)
        x = checkpoint_name(x + Mlp(c, name="mlp", **types)(x), "mlp_out")
        return LayerNorm(c.layer_norm_eps, name="mlp_norm", **types)(x), None


class Bert(Model):
    """tokens -> what the head gives; (hidden, pooled) without a head. Fields as in `stack.Model`."""

    config: BertConfig

    def setup(self):
        c, types = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.embed = Embed(c, **types)
        self.embed_norm = LayerNorm(c.layer_norm_eps, **types)
        add_layers(self, Block, c, self.dtype, self.param_dtype, self.attention)
        if c.pooler:
            self.pooler = Linear(c.hidden_size, use_bias=True, **types)
        if c.head == "masked-lm":
            activation = "gelu" if c.model_type == "roberta" else c.hidden_act  # RoBERTa's head ignores hidden_act
            self.head: Any = MaskedLMHead(c.vocab_size, activation, c.layer_norm_eps, **types)
        elif c.head in SEQUENCE_HEADS:
            rate = c.hidden_dropout_prob if c.classifier_dropout is None else c.classifier_dropout
            self.head = SequenceHead(c.num_labels, c.model_type == "roberta", rate, **types)

    def __call__(
        self, tokens: Array, mask: Array | None = None, types: Array | None = None, positions: Array | None = None
    ) -> Any:
        """Float32 logits [B, labels], scores [B] of regression, or logits [B, T, V] of masked-lm.

        Without a head: (hidden [B, T, D], pooled [B, D] or None). Arguments as in `hidden`.
        """
        c, hidden = self.config, self.hidden(tokens, mask, types, positions)
        if c.head == "masked-lm":
            return self.head(hidden, self.embed.logits)
        pooled = jnp.tanh(self.pooler(hidden[:, 0])) if c.pooler else None
        if c.head == "none":
            return hidden, pooled
        logits = self.head(hidden[:, 0] if pooled is None else pooled)
        return logits[:, 0] if c.head == "regression" else logits

    def hidden(
        self, tokens: Array, mask: Array | None = None, types: Array | None = None, positions: Array | None = None
    ) -> Array:
        """The last layer's output, [B, T, D] in the compute dtype.

        Args:
          tokens: int32 [B, T].
          mask: bool [B, T], the valid keys; None: all.
          types: int32 [B, T], rows of the type table; None: zeros.
          positions: int32 [T] or [B, T], rows of the position table; by default 0, 1, ..., or for RoBERTa the count of
            tokens up to each that are not padding, plus the padding id.

        Raises:
          UserError: more tokens than the model has positions.
        """
        c, (batch, length) = self.config, tokens.shape
        if length > c.max_position_embeddings - c.first_position:
            room = c.max_position_embeddings - c.first_position
            raise UserError(f"sequences of {length} tokens exceed the model's {room} positions; shorten them")
        if mask is not None and mask.shape != (batch, length):
            raise ValueError(f"mask has shape {mask.shape}; it needs one bool per token, {(batch, length)}")
        if positions is None:
            positions = default_positions(tokens, c)
        types = jnp.zeros_like(tokens) if types is None else types
        x = dropout(self, self.embed_norm(self.embed(tokens, positions, types)), c.hidden_dropout_prob)
        allowed = None if mask is None else mask.astype(bool)[:, None, None, :]
        return run_layers(self, x, None, allowed, None)


def default_positions(tokens: Array, config: BertConfig) -> Array:
    """Rows of the position table: [T] for BERT, [B, T] for RoBERTa, whose padding reads the padding id's row."""
    if config.model_type == "bert":
        return jnp.arange(tokens.shape[1], dtype=jnp.int32)
    real = (tokens != config.pad_token_id).astype(jnp.int32)
    return jnp.cumsum(real, axis=1, dtype=jnp.int32) * real + config.pad_token_id
