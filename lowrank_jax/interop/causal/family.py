"""`ModelFamily`, how a model family reads and writes its config.json as a Llama, and what several families share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lowrank_jax.interop.causal import windows
from lowrank_jax.interop.fields import Notes, flag
from lowrank_jax.models.llama_config import AttentionKind, LayerKinds, LlamaConfig

Values = Mapping[str, Any]
Read = Callable[[Values, int, Any, "Notes | None"], dict[str, Any]]
Write = Callable[[LlamaConfig], dict[str, Any]]
ALIASES = {"silu": "swish"}  # activations with two names


@dataclass(frozen=True)
class ModelFamily:
    """How one model_type of HF becomes a LlamaConfig.

    Attributes:
      model_type, architecture: HF's names of the config and of the class with a head.
      read: (values, layers, where, notes) -> the LlamaConfig's fields beyond those that all families share, the
        rotary fields among them.
      write: the other way, HF's fields.
      defaults: HF's for fields that a file lacks.
      activation: the only one that is accepted; its field is called `activation_field`.
      windows: whether `read` reads sliding windows.
      partial: whether only a part of a head may be rotated.
    """

    model_type: str
    architecture: str
    read: Read
    write: Write
    defaults: Values = field(default_factory=dict)
    activation: str = "silu"
    activation_field: str = "hidden_act"
    windows: bool = True
    partial: bool = False

    @property
    def title(self) -> str:
        """Its name in messages."""
        return self.architecture.removesuffix("ForCausalLM")


def biased(values: Values, where: Any) -> AttentionKind:
    """An AttentionKind with biases on all projections or on none, by attention_bias."""
    has = flag(values, "attention_bias", where, False)
    return AttentionKind(qkv_bias=has, out_bias=has)


def local_layers(
    values: Values, layers: int, every: int, where: Any, found: dict[str, Any] | None = None
) -> LayerKinds:
    """Windows in all layers but every `every`-th, unless layer_types says otherwise.

    Args:
      found: the rotary fields, from which "local_theta" is taken; None: all layers rotate alike.
    """
    local = [(layer + 1) % every != 0 for layer in range(layers)]
    kinds, theta = windows.by_layer(values, local, where), None if found is None else found.pop("local_theta")
    return LayerKinds(**kinds, local_theta=theta if kinds else None)


def write_local(c: LlamaConfig) -> dict[str, Any]:
    """sliding_window and layer_types, both always written."""
    local = c.layers.local or (c.layers.sliding_window is not None,) * c.num_hidden_layers
    return windows.to_hf(local, c.layers.sliding_window)
