"""Llama: RMSNorm, rotary grouped-query attention and SwiGLU, scanned over layers; flags make it Qwen, Gemma, ..."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from lowrank_jax.core.trees import is_coded
from lowrank_jax.core.types import Array
from lowrank_jax.layouts.fused import Groups
from lowrank_jax.layouts.segments import segments
from lowrank_jax.models.llama_config import LlamaConfig
from lowrank_jax.models.parts.attention import QKV, Attention
from lowrank_jax.models.parts.causal import CausalLM
from lowrank_jax.models.parts.layers import ACTIVATIONS, Embedding, Linear, RMSNorm, check_joined_bias
from lowrank_jax.models.parts.rotary import Rotation, query_scale, rotary_tables
from lowrank_jax.models.parts.stack import add_layers
from lowrank_jax.ops.products import side_by_side
from lowrank_jax.ops.saved import saved_product


class GatedMLP(nn.Module):
    """W_down(act(W_gate x) * W_up x), which is SwiGLU for silu; with `fused` gate and up are one Linear, gate_up."""

    features: int
    dtype: Any
    param_dtype: Any
    fused: bool = False
    activation: str = "silu"
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Array, bound: Callable[[], Array] | None = None) -> Array:
        types = {"use_bias": self.use_bias, "dtype": self.dtype, "param_dtype": self.param_dtype}
        if self.fused:
            if self.use_bias:
                check_joined_bias(self, "gate_up")
            # Saved by name before the split: the halves would be copied.
            both = saved_product(Linear(2 * self.features, name="gate_up", **types)(x, bound), "gate_up", once=False)
            gate, up = side_by_side(both, (self.features, self.features))
        else:
            gate, up = (
                saved_product(Linear(self.features, name=name, **types)(x, bound), name) for name in ("gate", "up")
            )
        hidden = ACTIVATIONS[self.activation](gate) * up
        return Linear(x.shape[-1], name="down", **types)(checkpoint_name(hidden, "hidden"))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); the residual stream is in the compute dtype.

    By `config.norms` the norms stand behind attention and MLP instead, or on both sides.
    """

    config: LlamaConfig
    dtype: Any
    param_dtype: Any
    attention: str
    fused: bool = False

    @nn.compact
    def __call__(self, carry: tuple[Array, dict | None], rotary: Rotation, allowed: Array | None, layer: dict):
        c, types = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        kind, (x, cache) = c.attention, carry

        held = jax.tree.leaves(self.variables.get("params", {}), is_leaf=is_coded)
        bounded = any(is_coded(leaf) and leaf.recipe.activations == "bound" for leaf in held)

        def norm(name: str) -> RMSNorm:
            return RMSNorm(c.rms_norm_eps, offset=c.norm_offset, apart=bounded, name=name, **types)

        def before(name: str, y: Array) -> tuple[Array, Callable[[], Array] | None]:
            if c.norms == "after":
                return y, None
            own = norm(f"{name}_norm")
            return own(y), own.bound

        def after(name: str, y: Array, saved: str) -> Array:
            # A norm's backward pass needs its input, the product, which would run again if it were not saved.
            return y if c.norms == "before" else norm(f"{name}_post_norm")(saved_product(y, saved))

        attention = Attention(
            *c.heads, kind.qkv_bias, implementation=self.attention, fused=self.fused, out_bias=kind.out_bias,
            qk_norm=kind.qk_norm, norm_eps=c.rms_norm_eps, norm_offset=c.norm_offset, softcap=kind.softcap,
            scale=None if kind.query_scalar is None else kind.query_scalar**-0.5, window=c.layers.sliding_window,
            name="attention", **types,
        )  # fmt: skip
        tables, number, local = rotary.of_layer(layer), layer.get("number"), layer.get("local")
        read, bound = before("attention", x)
        y, cache = attention(read, tables, allowed, cache, number, local, rotary.query_scale, bound)
        x = x + after("attention", y, "attention_out")
        if c.norms == "before":
            # Named after the sum: the backward pass needs the sum alone, to redo the norm.
            x = checkpoint_name(x, "attention_out")
        mlp = GatedMLP(
            c.intermediate_size, fused=self.fused, activation=c.hidden_act, use_bias=c.mlp_bias, name="mlp", **types
        )
        return (x + after("mlp", mlp(*before("mlp", x)), "mlp_out"), cache), None


def rotation_of(config: LlamaConfig, positions: Array, slots: int | None = None) -> Rotation:
    """What queries and keys at `positions` [T] or [B, T] are rotated by; `slots` as in `CausalLM.start`."""
    c, length = config, None
    if c.rope_scaling is not None and c.rope_scaling.by_length:
        # Keys in a cache are not rotated again, so the cache's whole length decides for all of them.
        length = positions.max() + 1 if slots is None else slots
    tables = rotary_tables(positions, c.rotary_dim, c.rope_theta, c.rope_scaling, length)
    theta, growth = c.layers.local_theta, c.attention.query_growth
    local = None if theta is None else rotary_tables(positions, c.rotary_dim, theta)
    return Rotation(tables, local, None if growth is None else query_scale(positions, *growth))


def layer_kinds(config: LlamaConfig) -> dict[str, np.ndarray]:
    """{"local", "rotated": bool [L]}, those in which layers differ; see `LayerKinds`."""
    found = {"local": config.layers.local, "rotated": config.layers.rotated}
    return {name: np.array(each, bool) for name, each in found.items() if each}


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
        self.final_norm = RMSNorm(c.rms_norm_eps, offset=c.norm_offset, **types)
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

    def start(self, tokens: Array, positions: Array, slots: int | None = None) -> tuple[Array, Rotation]:
        """The tokens' embeddings, and what queries and keys are rotated by."""
        c, x = self.config, self.embed(tokens)
        if c.scale_embedding:
            x = x * jnp.asarray(c.hidden_size**0.5, x.dtype)
        return x, rotation_of(c, positions, slots)

    def kinds(self) -> dict[str, np.ndarray]:
        """What differs between layers: {name: [L]}, which the scan slices for each."""
        return layer_kinds(self.config)

    def logits(self, hidden: Array) -> Array:
        """See `CausalLM.logits`."""
        logits, cap = super().logits(hidden), self.config.logit_softcap
        return logits if cap is None else cap * jnp.tanh(logits / cap)
