"""The shape of a Llama and of the models that differ from it by flags in attention, norms and layers."""

import math
from dataclasses import dataclass
from typing import Literal

from lowrank_jax.core.errors import UserError
from lowrank_jax.models.parts.counts import MOST, check_counts
from lowrank_jax.models.parts.layers import ACTIVATIONS
from lowrank_jax.models.parts.rotary import DynamicScaling, LongRopeScaling, RopeScaling, YarnScaling

COUNTS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)
NORM_PLACES = ("before", "after", "both")
QK_NORMS = ("none", "head", "width")


def _check_positive(values: dict[str, float | None]) -> None:
    for name, value in values.items():
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise UserError(f"{name} is {value}; it must be above 0")


@dataclass(frozen=True)
class AttentionKind:
    """How attention differs from Llama's.

    Attributes:
      qkv_bias, out_bias: whether query, key and value have biases, and whether out has one.
      qk_norm: RMSNorm of queries and keys before the rotation: over each "head", or over the "width" of all heads.
      softcap: scores s become softcap tanh(s / softcap).
      query_scalar: scores are divided by its square root; None is head_dim.
      query_growth: (beta, period) for `rotary.query_scale`; None for none.
    """

    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: Literal["none", "head", "width"] = "none"
    softcap: float | None = None
    query_scalar: float | None = None
    query_growth: tuple[float, int] | None = None


@dataclass(frozen=True)
class LayerKinds:
    """How layers differ from one another; a tuple has an entry for each layer, and is empty where all are alike.

    Attributes:
      sliding_window: how many keys a query attends to, the last of them its own; None is all.
      local: whether the layer has the window; empty: every layer has it.
      local_theta: rotary base of the layers with the window, unscaled; None: that of the others.
      rotated: whether the layer rotates queries and keys; empty: every layer does.
    """

    sliding_window: int | None = None
    local: tuple[bool, ...] = ()
    local_theta: float | None = None
    rotated: tuple[bool, ...] = ()


@dataclass(frozen=True)
class LlamaConfig:
    """The shape of a Llama, under HF's names; what makes it another family's model is off by default.

    num_key_value_heads defaults to num_attention_heads, head_dim to hidden_size / num_attention_heads.

    Attributes:
      attention, layers: see `AttentionKind` and `LayerKinds`.
      norms: where a block's norms stand: x + f(norm(x)) "before", x + norm(f(x)) "after", or "both".
      norm_offset: norms multiply by 1 + their parameter.
      hidden_act: the MLP's activation, a name of `layers.ACTIVATIONS`.
      mlp_bias: whether gate, up and down have biases.
      scale_embedding: whether embeddings are multiplied by sqrt(hidden_size).
      logit_softcap: logits l become logit_softcap tanh(l / logit_softcap).
      partial_rotary_factor: this part of a head is rotated, the rest kept.
      family: the model family, as HF's model_type; decides the names in files.

    Raises:
      UserError: a count below 1, heads that do not divide, an odd head_dim, tuples of another number of layers, an
        unknown name, a cap, window or base that is not above 0.
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
    partial_rotary_factor: float = 1.0
    attention: AttentionKind = AttentionKind()
    layers: LayerKinds = LayerKinds()
    norms: Literal["before", "after", "both"] = "before"
    norm_offset: bool = False
    hidden_act: str = "silu"
    mlp_bias: bool = False
    scale_embedding: bool = False
    logit_softcap: float | None = None
    family: str = "llama"

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
        self._check_kinds()

    def _check_kinds(self) -> None:
        if self.norms not in NORM_PLACES:
            raise UserError(f"norms is {self.norms!r}; it must be one of {', '.join(NORM_PLACES)}")
        if self.hidden_act not in ACTIVATIONS:
            raise UserError(f"hidden_act is {self.hidden_act!r}; it must be one of {', '.join(ACTIVATIONS)}")
        kind, layers = self.attention, self.layers
        if kind.qk_norm not in QK_NORMS:
            raise UserError(f"qk_norm is {kind.qk_norm!r}; it must be one of {', '.join(QK_NORMS)}")
        numbers = {"softcap": kind.softcap, "query_scalar": kind.query_scalar, "logit_softcap": self.logit_softcap}
        numbers["the period of query_growth"] = kind.query_growth and kind.query_growth[1]
        _check_positive({**numbers, "sliding_window": layers.sliding_window, "local_theta": layers.local_theta})
        if layers.local_theta is not None and not layers.local:
            raise UserError("layers.local_theta needs layers.local, which layers rotate by it")
        if not 0 < self.partial_rotary_factor <= 1 or self.rotary_dim < 2 or self.rotary_dim % 2:
            raise UserError(
                f"partial_rotary_factor {self.partial_rotary_factor} does not suit a head of {self.head_dim}; it "
                "must be at most 1 and give an even number of at least 2"
            )
        if isinstance(self.rope_scaling, LongRopeScaling):
            lengths = {len(self.rope_scaling.short_factor), len(self.rope_scaling.long_factor)}
            if lengths != {self.rotary_dim // 2}:
                raise UserError(f"short_factor and long_factor must have {self.rotary_dim // 2} numbers each")
        if isinstance(self.rope_scaling, DynamicScaling) and self.rotary_dim < 4:
            raise UserError(f"dynamic rope scaling needs at least 4 rotated numbers of a head, not {self.rotary_dim}")
        if isinstance(self.rope_scaling, YarnScaling) and self.rope_theta <= 1:
            raise UserError(f"yarn rope scaling needs a rope_theta above 1, not {self.rope_theta}")
        for name, kinds in (("local", layers.local), ("rotated", layers.rotated)):
            if kinds and len(kinds) != self.num_hidden_layers:
                raise UserError(f"layers.{name} has {len(kinds)} entries for {self.num_hidden_layers} layers")

    @property
    def heads(self) -> tuple[int, int, int]:
        """(num_attention_heads, num_key_value_heads, head_dim)."""
        assert self.num_key_value_heads is not None  # `__post_init__` put the defaults in place
        assert self.head_dim is not None
        return self.num_attention_heads, self.num_key_value_heads, self.head_dim

    @property
    def rotary_dim(self) -> int:
        """The rotated part of a head."""
        return int(self.heads[2] * self.partial_rotary_factor)
