"""Turns the metadata of a GGUF file into HF's config.json of the same model, and that into a LlamaConfig."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from lowrank_jax.core.errors import UserError
from lowrank_jax.interop.causal.names import GGUF_LONG, GGUF_SHORT, ROPE_FREQS
from lowrank_jax.interop.fields import Notes, number
from lowrank_jax.interop.gguf.fields import shortest
from lowrank_jax.interop.gguf.file import GGUFReader
from lowrank_jax.interop.llama import config_from_hf
from lowrank_jax.models.llama_config import LlamaConfig
from lowrank_jax.models.parts.rotary import Llama3Scaling

Values = Mapping[str, Any]  # the architecture's metadata, without its name in front
OLD_LENGTH = "original_max_position_embeddings"
HEAD, TABLE = "output.weight", "token_embd.weight"
CLOSE = 1e-5  # relative; factors are stored as float32


def config_from_gguf(reader: GGUFReader, notes: Notes | None = None) -> LlamaConfig:
    """GGUF metadata as a LlamaConfig; the head is tied when the file has no output.weight.

    Raises:
      UserError: another architecture, a scaling of positions that is not read, experts, or missing metadata.
    """
    meta, where = reader.metadata, reader.path
    architecture = meta.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in READ:
        raise UserError(
            f"{where}: architecture {str(architecture)[:40]!r} is not read from GGUF; known: {', '.join(READ)}"
        )
    model_type, read = READ[architecture]
    prefix = f"{architecture}."
    values = {key.removeprefix(prefix): meta[key] for key in meta if key.startswith(prefix)}
    keys = set(reader.keys())
    if TABLE not in keys:
        raise UserError(f"{where} has no {TABLE}; it is not a whole model")
    shared = _shared(values, reader, keys)
    refused = {
        "a mixture of experts": values.get("expert_count", 0),
        "a sliding window": model_type in PLAIN and values.get("attention.sliding_window", 0),
        "attention_bias": model_type != "qwen2" and "blk.0.attn_q.bias" in keys,
    }
    if found := [name for name, present in refused.items() if present]:
        raise UserError(
            f"{where}: {', '.join(found)} is not supported by this {architecture}; choose a base without it"
        )
    found = read(values, shared, reader)
    return config_from_hf({"model_type": model_type, **shared, **found}, where, notes)


def _shared(values: Values, reader: GGUFReader, keys: set[str]) -> dict[str, Any]:
    """HF's fields that all architectures have."""
    where = reader.path
    heads, hidden = _whole(values, "attention.head_count", where), _whole(values, "embedding_length", where)
    head_dim = _whole(values, "attention.key_length", where, hidden // max(heads, 1))
    rotary = _whole(values, "rope.dimension_count", where, head_dim)
    if rotary != head_dim and reader.metadata["general.architecture"] != "phi3":
        raise UserError(f"{where}: only {rotary} of {head_dim} head dimensions are rotated; this model rotates all")
    return {
        "vocab_size": reader.shape(TABLE)[0],
        "hidden_size": hidden,
        "intermediate_size": _whole(values, "feed_forward_length", where),
        "num_hidden_layers": _whole(values, "block_count", where),
        "num_attention_heads": heads,
        "num_key_value_heads": _whole(values, "attention.head_count_kv", where, heads),
        "head_dim": head_dim,
        "rms_norm_eps": _float(values, "attention.layer_norm_rms_epsilon", where),
        "tie_word_embeddings": HEAD not in keys,
        "max_position_embeddings": _whole(values, "context_length", where, 2048),
        "rope_theta": _float(values, "rope.freq_base", where, 1e4),
        "rope_scaling": _linear(values, where),
    }


def _llama(values: Values, shared: Values, reader: GGUFReader) -> dict[str, Any]:
    """Llama: rotary factors by dimension; where they are those of LLaMA 3's scaling, that scaling."""
    factors = _factors(reader, ROPE_FREQS)
    if not factors or set(factors) == {1.0}:
        return {}
    if shared["rope_scaling"]:
        raise UserError(f"{reader.path}: rope scaling and {ROPE_FREQS} together are not supported; choose another base")
    length = shared["max_position_embeddings"]
    whole = {"factor": 1.0, "attention_factor": 1.0, OLD_LENGTH: length}
    named = _llama3(factors, shared["rope_theta"])
    by_pair = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors, **whole}
    return {"rope_scaling": named or by_pair}


def _llama3(factors: list[float], theta: float) -> dict[str, Any] | None:
    """The scaling of LLaMA 3.1 to 3.3 that gives these factors; None where it gives others."""
    if not max(factors) >= 1:
        return None
    scaling = Llama3Scaling(factor=max(factors))
    frequency = theta ** -(jnp.arange(len(factors), dtype=jnp.float32) / len(factors))
    if not np.allclose(frequency / scaling.apply(frequency, theta), factors, rtol=CLOSE, atol=0):
        return None
    fields = {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    old = {OLD_LENGTH: scaling.original_max_position_embeddings}
    return {"rope_type": "llama3", "factor": scaling.factor, **fields, **old}


def _qwen(values: Values, shared: Values, reader: GGUFReader) -> dict[str, Any]:
    """Qwen 2 and 3: llama.cpp knows no windows of theirs."""
    return {"use_sliding_window": False}


def _gemma(values: Values, shared: Values, reader: GGUFReader) -> dict[str, Any]:
    """Gemma 2 and 3: windows by a pattern; as in llama.cpp, the largest model has another scale of the scores."""
    where, three = reader.path, reader.metadata["general.architecture"] == "gemma3"
    largest = shared["num_hidden_layers"] == (62 if three else 46)  # 27B, of both
    width = shared["hidden_size"] // max(shared["num_attention_heads"], 1)
    found = {
        "query_pre_attn_scalar": width if largest else shared["head_dim"],
        "sliding_window": _whole(values, "attention.sliding_window", where, None if three else 4096),
    }
    pattern = values.get("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        found["layer_types"] = ["sliding_attention" if one else "full_attention" for one in pattern]
    elif pattern is not None:
        every = number({"the window's pattern": pattern}, "the window's pattern", int, where, least=1)
        local = [(layer + 1) % every != 0 for layer in range(min(shared["num_hidden_layers"], 10**4))]
        found["layer_types"] = ["sliding_attention" if one else "full_attention" for one in local]
    if three:
        found["rope_local_base_freq"] = _float(values, "rope.freq_base_swa", where, 1e4)
    for name, key in (("attn_logit_softcapping", "attn_logit"), ("final_logit_softcapping", "final_logit")):
        if f"{key}_softcapping" in values:
            found[name] = _float(values, f"{key}_softcapping", where)
    return found


def _phi3(values: Values, shared: Values, reader: GGUFReader) -> dict[str, Any]:
    """Phi-3 and Phi-4: a part of each head is rotated, by LongRoPE's factors where the file has them."""
    where = reader.path
    rotary = _whole(values, "rope.dimension_count", where, shared["head_dim"])
    found: dict[str, Any] = {
        "partial_rotary_factor": rotary / max(shared["head_dim"], 1),
        "sliding_window": _whole(values, "attention.sliding_window", where, 0) or None,
    }
    short, long = (_factors(reader, name) for name in (GGUF_SHORT, GGUF_LONG))
    if short is None and long is None:
        return found
    length = _whole(values, "rope.scaling.original_context_length", where, shared["max_position_embeddings"])
    scaling: dict[str, Any] = {"rope_type": "longrope", "short_factor": short, "long_factor": long}
    if "rope.scaling.attn_factor" in values:
        scaling["attention_factor"] = _float(values, "rope.scaling.attn_factor", where)
    return {**found, OLD_LENGTH: length, "rope_scaling": scaling}


def _linear(values: Values, where: Any) -> dict[str, Any] | None:
    """A linear scaling, or None; as in llama.cpp, scaling is linear where no type is set, and none where factor is 1.

    Raises:
      UserError: another type.
    """
    kind = values.get("rope.scaling.type", "linear")
    old = values.get("rope.scale_linear", 1.0)  # an earlier name of the factor
    factor = _float({"rope.scaling.factor": values.get("rope.scaling.factor", old)}, "rope.scaling.factor", where)
    if kind == "none" or (kind in ("linear", "longrope") and factor in (0.0, 1.0)):
        return None
    if kind != "linear":
        raise UserError(
            f"{where}: rope scaling is not supported where its type is {str(kind)[:40]!r}; choose a base without it, "
            "or a checkpoint in HF's layout"
        )
    return {"rope_type": "linear", "factor": factor}


def _factors(reader: GGUFReader, key: str) -> list[float] | None:
    """A tensor of frequency factors as a list; None where the file has none."""
    if key not in reader.keys():  # noqa: SIM118 (no dictionary)
        return None
    if len(reader.shape(key)) != 1:
        raise UserError(f"{reader.path}: {key} has shape {list(reader.shape(key))}; download the file again")
    return [shortest(one) for one in reader.read(key).tolist()]


def _whole(values: Values, name: str, where: Any, default: int | None = None) -> int:
    return number(values, name, int, where, default)


def _float(values: Values, name: str, where: Any, default: float | None = None) -> float:
    return shortest(number(values, name, float, where, default))


# llama.cpp's architecture -> HF's model_type, and the function that reads the fields that only this family has.
READ: dict[str, tuple[str, Callable[[Values, Values, GGUFReader], dict[str, Any]]]] = {
    "llama": ("llama", _llama),
    "qwen2": ("qwen2", _qwen),
    "qwen3": ("qwen3", _qwen),
    "gemma2": ("gemma2", _gemma),
    "gemma3": ("gemma3_text", _gemma),
    "phi3": ("phi3", _phi3),
}
PLAIN = ("llama", "qwen2", "qwen3")  # model types without windows in llama.cpp
