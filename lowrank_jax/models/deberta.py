"""DeBERTa-v2: attention to content and relative positions, a convolution next to layer 0, a head by name."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import unknown_name
from lowrank_jax.core.types import Array
from lowrank_jax.models.bert import Mlp
from lowrank_jax.models.parts.attention_kernel import ATTENTION
from lowrank_jax.models.parts.counts import MOST, check_counts
from lowrank_jax.models.parts.heads import SEQUENCE_HEADS, MaskedLMHead, SequenceHead, check_head
from lowrank_jax.models.parts.layers import (
    ACTIVATIONS,
    EMBEDDING_INIT,
    Embedding,
    LayerNorm,
    Linear,
    dropout,
    parameter,
)
from lowrank_jax.models.parts.stack import Model, add_layers, run_layers

COUNTS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "num_labels",
)
RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
POSITIONAL = ("c2p", "p2c")  # content to position, position to content
CONV_ACTIVATIONS = {**ACTIVATIONS, "tanh": jnp.tanh}


@dataclass(frozen=True)
class DebertaConfig:
    """The shape of a DeBERTa-v2 (or v3) encoder, under HF's names, and its head. No absolute positions, no types.

    Attributes:
      position_buckets: distances beyond half of it share buckets by their logarithm; -1: each has its own row.
      max_relative_positions: distance at which the last bucket ends; below 1 it is max_position_embeddings.
      pos_att_type: those of "c2p" and "p2c" that are added to the content-to-content term.
      share_att_key: positions go through the content's query and key products; otherwise through separate ones.
      norm_rel_ebd: "layer_norm" of the relative table, or "none".
      conv_kernel_size: odd; 0: no convolution.
      head: a name of `heads.HEADS`; num_labels: its classes (1 for regression).
      classifier_dropout: None is hidden_dropout_prob. All dropout acts only in calls with a "dropout" key.

    Raises:
      UserError: a count below 1, heads or groups that do not divide, an unknown name, a rate outside [0, 1).
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int = 512
    max_relative_positions: int = -1
    position_buckets: int = 256
    pos_att_type: tuple[str, ...] = POSITIONAL
    share_att_key: bool = True
    norm_rel_ebd: str = "layer_norm"
    conv_kernel_size: int = 0
    conv_groups: int = 1
    conv_act: str = "tanh"
    layer_norm_eps: float = 1e-7
    hidden_act: str = "gelu"
    pad_token_id: int = 0
    head: str = "none"
    num_labels: int = 2
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None

    def __post_init__(self):
        if self.max_relative_positions < 1:
            object.__setattr__(self, "max_relative_positions", self.max_position_embeddings)
        check_counts(self, COUNTS)
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise UserError(f"pad_token_id is {self.pad_token_id}; it must be a token, from 0 to {self.vocab_size - 1}")
        for name, parts in (("num_attention_heads", self.num_attention_heads), ("conv_groups", self.conv_groups)):
            if parts < 1 or self.hidden_size % parts:
                raise UserError(f"hidden_size {self.hidden_size} does not divide by {name} {parts}; change {name}")
        if not 0 <= self.conv_kernel_size <= MOST or (self.conv_kernel_size and self.conv_kernel_size % 2 == 0):
            raise UserError(f"conv_kernel_size is {self.conv_kernel_size}; it must be odd, or 0 for no convolution")
        if self.position_buckets > 0 and not 4 <= self.position_buckets < 2 * self.max_relative_positions - 2:
            raise UserError(
                f"position_buckets {self.position_buckets} does not fit max_relative_positions "
                f"{self.max_relative_positions}; take 4 or more and fewer than twice the distances, or -1"
            )
        for name, known in (("hidden_act", ACTIVATIONS), ("conv_act", CONV_ACTIVATIONS)):
            if getattr(self, name) not in known:
                raise unknown_name(name, getattr(self, name), known)
        for term in self.pos_att_type:
            if term not in POSITIONAL:
                raise unknown_name("pos_att_type", term, POSITIONAL)
        if self.norm_rel_ebd not in ("layer_norm", "none"):
            raise unknown_name("norm_rel_ebd", self.norm_rel_ebd, ("layer_norm", "none"))
        check_head(self.head)
        if self.head == "regression" and self.num_labels != 1:
            raise UserError(f"a regression head gives one score, not num_labels {self.num_labels}; set it to 1")
        for name in RATES:
            if not 0 <= (getattr(self, name) or 0.0) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; a dropout rate is at least 0 and below 1")
        if not self.layer_norm_eps > 0:
            raise UserError(f"layer_norm_eps {self.layer_norm_eps} must be above 0")

    @property
    def span(self) -> int:
        """Half the relative table's rows: row span + b is bucket b's."""
        return self.position_buckets if self.position_buckets > 0 else self.max_relative_positions


SHAPES: dict[str, DebertaConfig] = {
    "deberta-v2-xlarge": DebertaConfig(128100, 1536, 6144, 24, 24, conv_kernel_size=3, conv_act="gelu"),
    "deberta-v2-xxlarge": DebertaConfig(128100, 1536, 6144, 48, 24, conv_kernel_size=3, conv_act="gelu"),
    "deberta-v3-base": DebertaConfig(128100, 768, 3072, 12, 12),
    "deberta-v3-large": DebertaConfig(128100, 1024, 4096, 24, 16),
}


def with_head(config: DebertaConfig, head: str, num_labels: int = 2) -> DebertaConfig:
    """The config with another head."""
    return dataclasses.replace(config, head=head, num_labels=1 if head == "regression" else num_labels)


class SelfAttention(nn.Module):
    """softmax((Q K^T + Q P_K^T + P_Q K^T) / sqrt(n head_dim)) V with n terms, then a projection.

    P_K and P_Q are the relative table's rows at each distance, through the key's and the query's products. The sum of
    the last two terms is in the compute dtype, as it has 2 T scores a query and head.
    """

    config: DebertaConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Array, relative: tuple[Array, Array], allowed: Array | None) -> Array:
        """Args:
        x: [B, T, D].
        relative: the relative table's rows, each [2 T, D], by rising and by falling distance; see `distances`.
        allowed: bool [B, 1, 1, T], True at valid keys, or None for all.
        """
        c, types = self.config, {"use_bias": True, "dtype": self.dtype, "param_dtype": self.param_dtype}
        heads, head_dim = c.num_attention_heads, c.hidden_size // c.num_attention_heads

        def linear(name):
            return Linear(c.hidden_size, name=name, **types)

        def project(product, x, name):
            y = product(x)
            return checkpoint_name(y.reshape(*y.shape[:-1], heads, head_dim), name)

        to_query, to_key = linear("query"), linear("key")
        query, key = project(to_query, x, "query"), project(to_key, x, "key")
        value = project(linear("value"), x, "value")
        scale = 1 / math.sqrt(head_dim * (1 + len(c.pos_att_type)))
        rising, falling = relative
        bias = jnp.zeros((), self.dtype)
        if "c2p" in c.pos_att_type:
            position = project(to_key if c.share_att_key else linear("position_key"), falling, "key")
            bias = bias + by_distance(jnp.einsum("bihd,mhd->bhim", query, position))
        if "p2c" in c.pos_att_type:
            position = project(to_query if c.share_att_key else linear("position_query"), rising, "query")
            bias = bias + by_distance(jnp.einsum("bjhd,mhd->bhjm", key, position)).swapaxes(-1, -2)
        bias = bias * jnp.asarray(scale, self.dtype)
        rate = c.attention_probs_dropout_prob
        if rate and self.has_rng("dropout"):  # jax.nn's function has no dropout
            scores = jnp.einsum("bihd,bjhd->bhij", query, key, preferred_element_type=jnp.float32) * scale
            scores = scores + bias.astype(jnp.float32)
            if allowed is not None:
                scores = jnp.where(allowed, scores, jnp.finfo(jnp.float32).min)
            weights = dropout(self, jax.nn.softmax(scores), rate).astype(self.dtype)
            y = jnp.einsum("bhij,bjhd->bihd", weights, value)
        else:
            bias = jnp.broadcast_to(bias, (x.shape[0], heads, x.shape[1], x.shape[1]))
            y = jax.nn.dot_product_attention(
                query, key, value, bias=bias, mask=allowed, scale=scale, implementation="xla"
            )
        y = checkpoint_name(y, "attention")
        return dropout(self, linear("out")(y.reshape(x.shape)), c.hidden_dropout_prob)


class Block(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)): post-norm. After layer 0, norm(x + branch) too.

    The convolution reads the embeddings, not this block's output, and runs once, outside the scan; only its sum and
    norm are here, selected at layer 0. A separate scan over the other layers would do without that selection, but the
    slice of the stacked weights that it reads would be a copy of nearly the whole base at every step.
    """

    config: DebertaConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Array, inputs: tuple[Any, Any], allowed: Array | None, layer: Array | None):
        """Args: x [B, T, D]; inputs: (`SelfAttention`'s relative, None or (branch, its norm's parameters, mask))."""
        c, types = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        relative, beside = inputs
        y = SelfAttention(c, name="attention", **types)(x, relative, allowed)
        x = LayerNorm(c.layer_norm_eps, name="attention_norm", **types)(checkpoint_name(x + y, "attention_out"))
        y = Mlp(c, name="mlp", **types)(x)
        x = LayerNorm(c.layer_norm_eps, name="mlp_norm", **types)(checkpoint_name(x + y, "mlp_out"))
        if beside is not None:
            branch, norm, mask = beside
            joined = cast(Array, LayerNorm(c.layer_norm_eps, parent=None, **types).apply({"params": norm}, x + branch))
            if mask is not None:
                joined = jnp.where(mask[..., None], joined, 0)
            x = jnp.where(layer == 0, joined, x)
        return x, None


class Conv(nn.Module):
    """act(W * x + b) over neighbouring tokens, 0 at padding. Adapters do not match its "filters" [K, D / groups, D]."""

    config: DebertaConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Array, mask: Array | None) -> Array:
        c, d = self.config, self.config.hidden_size
        shape = (c.conv_kernel_size, d // c.conv_groups, d)
        filters = parameter(self, "filters", EMBEDDING_INIT, shape, self.param_dtype)
        bias = parameter(self, "bias", nn.initializers.zeros_init(), (d,), self.param_dtype)
        side = (c.conv_kernel_size - 1) // 2
        y = lax.conv_general_dilated(
            x,
            filters.astype(self.dtype),
            window_strides=(1,),
            padding=((side, side),),
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=c.conv_groups,
        )
        y = y + bias.astype(self.dtype)
        if mask is not None:
            y = jnp.where(mask[..., None], y, 0)
        return CONV_ACTIVATIONS[c.conv_act](dropout(self, y, c.hidden_dropout_prob))


class Deberta(Model):
    """tokens -> what the head gives; (hidden, None) without a head. Called as `bert.Bert` is.

    Fields as in `stack.Model`; of attention, "auto" and "xla" are the same here, and others are refused.
    """

    config: DebertaConfig

    def setup(self):
        c, types = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if self.attention not in ATTENTION:
            raise unknown_name("attention", self.attention, ATTENTION)
        if self.attention not in ("auto", "xla"):
            raise UserError('DeBERTa\'s attention adds scores of positions; set attention to "auto" or "xla"')
        self.embed = Embedding(c.vocab_size, c.hidden_size, **types)
        self.embed_norm = LayerNorm(c.layer_norm_eps, **types)
        self.relative = Embedding(2 * c.span, c.hidden_size, **types)
        if c.norm_rel_ebd == "layer_norm":
            self.relative_norm = LayerNorm(c.layer_norm_eps, **types)
        if c.conv_kernel_size:
            self.conv = Conv(c, **types)
            self.conv_norm = LayerNorm(c.layer_norm_eps, **types)
        add_layers(self, Block, c, self.dtype, self.param_dtype)
        if c.head == "masked-lm":
            self.head: Any = MaskedLMHead(c.vocab_size, c.hidden_act, c.layer_norm_eps, **types)
        elif c.head in SEQUENCE_HEADS:
            self.pooler = Linear(c.hidden_size, use_bias=True, **types)
            rate = c.hidden_dropout_prob if c.classifier_dropout is None else c.classifier_dropout
            self.head = SequenceHead(c.num_labels, rate=rate, **types)

    def __call__(self, tokens: Array, mask: Array | None = None) -> Any:
        """Float32 logits [B, labels], or scores [B] of regression, from gelu(W x + b) of the first token.

        Logits [B, T, V] of masked-lm. Without a head: (hidden [B, T, D], None), as DeBERTa pools only for a sequence's
        head. Arguments as in `hidden`.
        """
        c, hidden = self.config, self.hidden(tokens, mask)
        if c.head == "none":
            return hidden, None
        if c.head == "masked-lm":
            return self.head(hidden, self.embed.logits)
        logits = self.head(ACTIVATIONS["gelu"](self.pooler(hidden[:, 0])))
        return logits[:, 0] if c.head == "regression" else logits

    def hidden(self, tokens: Array, mask: Array | None = None) -> Array:
        """The last layer's output, [B, T, D] in the compute dtype. Positions are relative, so any T will do.

        Args:
          tokens: int32 [B, T].
          mask: bool [B, T], the valid keys; None: all.
        """
        c = self.config
        if mask is not None:
            if mask.shape != tokens.shape:
                raise ValueError(f"mask has shape {mask.shape}; it needs one bool per token, {tokens.shape}")
            mask = mask.astype(bool)
        x = self.embed_norm(self.embed(tokens))
        if mask is not None:
            x = jnp.where(mask[..., None], x, 0)
        x = dropout(self, x, c.hidden_dropout_prob)
        table = self.relative(jnp.arange(2 * c.span, dtype=jnp.int32))
        if c.norm_rel_ebd == "layer_norm":
            table = self.relative_norm(table)
        table = dropout(self, table, c.hidden_dropout_prob)  # one mask for all layers; the original draws one a layer
        rising, falling = distances(tokens.shape[1])
        relative = tuple(table[rows(d, c)] for d in (rising, falling))
        beside = numbers = None
        if c.conv_kernel_size:
            branch = self.conv(x, mask)
            if self.is_initializing():
                self.conv_norm(branch)
            beside = (branch, self.conv_norm.variables["params"], mask)
            numbers = jnp.arange(c.num_hidden_layers, dtype=jnp.int32)
        allowed = None if mask is None else mask[:, None, None, :]
        return run_layers(self, x, (relative, beside), allowed, numbers)


def distances(length: int) -> tuple[np.ndarray, np.ndarray]:
    """The distances i - j of queries i and keys j, rising from 1 - T and falling from T - 1: [2 T] each.

    The last of each is never read; it makes `by_distance` a plain reshape.
    """
    rising = np.arange(1 - length, length + 1)
    return rising, -rising


def rows(distance: np.ndarray, config: DebertaConfig) -> np.ndarray:
    """Rows of the relative table at distances: span + bucket, within the table.

    With m = position_buckets / 2, a distance |d| <= m is its own bucket; beyond, bucket sign(d) (m + ceil((m - 1)
    ln(|d| / m) / ln((max_relative_positions - 1) / m))). In float32, as the original does: the ceiling is sensitive.
    """
    bucket, span = distance, config.span
    if config.position_buckets > 0:
        mid = config.position_buckets // 2
        far = np.maximum(np.abs(distance), mid).astype(np.float32)
        width = np.log(np.float32((config.max_relative_positions - 1) / mid))
        log = np.ceil(np.log(far / np.float32(mid)) / width * np.float32(mid - 1)) + mid
        bucket = np.where(np.abs(distance) <= mid, distance, np.sign(distance) * log)
    return np.clip(bucket + span, 0, 2 * span - 1).astype(np.int32)


def by_distance(scores: Array) -> Array:
    """[..., T, 2 T] -> [..., T, T]: out[i, j] = scores[i, j - i + T - 1].

    Read as one line, row i's window starts at i (2 T - 1) + T - 1: drop T - 1 scores and the windows are the rows of
    width 2 T - 1. A gather would say the same, and its gradient would be a scatter.
    """
    length = scores.shape[-2]
    line = scores.reshape(*scores.shape[:-2], 2 * length * length)
    line = line[..., length - 1 : length - 1 + length * (2 * length - 1)]
    return line.reshape(*scores.shape[:-1], 2 * length - 1)[..., :length]
