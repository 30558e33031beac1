"""Llama checkpoints: configs and key tables of HF safetensors and GGUF, and the export back to HF's layout."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from lowrank_jax.core.errors import UserError
from lowrank_jax.interop.export import exporter, special_ids
from lowrank_jax.interop.fields import Notes, checked, chosen, flag, number, refused_everywhere, section
from lowrank_jax.interop.keymap import IDENTITY, TRANSPOSE, Row, Transform, unpermute
from lowrank_jax.interop.readers import GGUFReader, Reader
from lowrank_jax.interop.tied import Pair, copies
from lowrank_jax.models.attention import RopeScaling
from lowrank_jax.models.llama import LlamaConfig
from lowrank_jax.text.tokenizers import Tokenizer

# Keys without a weight: rotary buffers of old files.
HF_IGNORED = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)
HF_TABLE, HF_HEAD = "model.embed_tokens.weight", "lm_head.weight"

_NAMES = {  # ours: (HF's, GGUF's)
    "attention_norm/scale": ("input_layernorm", "attn_norm"),
    "attention/query/kernel": ("self_attn.q_proj", "attn_q"),
    "attention/key/kernel": ("self_attn.k_proj", "attn_k"),
    "attention/value/kernel": ("self_attn.v_proj", "attn_v"),
    "attention/out/kernel": ("self_attn.o_proj", "attn_output"),
    "mlp_norm/scale": ("post_attention_layernorm", "ffn_norm"),
    "mlp/gate/kernel": ("mlp.gate_proj", "ffn_gate"),
    "mlp/up/kernel": ("mlp.up_proj", "ffn_up"),
    "mlp/down/kernel": ("mlp.down_proj", "ffn_down"),
}


def hf_table(config: LlamaConfig) -> tuple[Row, ...]:
    """Key table of HF's LlamaForCausalLM; kernels are [out, in] there."""
    return _table(config, 0, "model.layers.{layer}.", (HF_TABLE, "model.norm.weight", HF_HEAD), {})


def gguf_table(config: LlamaConfig) -> tuple[Row, ...]:
    """Key table of llama.cpp's "llama" architecture; q and k are stored permuted (`keymap.unpermute`)."""
    permuted = {
        "attention/query/kernel": unpermute(config.num_attention_heads),
        "attention/key/kernel": unpermute(config.heads[1]),
    }
    return _table(config, 1, "blk.{layer}.", ("token_embd.weight", "output_norm.weight", "output.weight"), permuted)


def _table(config, column: int, prefix: str, outer: tuple[str, str, str], special: dict[str, Transform]):
    d, ffn, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    shapes = {
        "attention_norm/scale": (d,),
        "attention/query/kernel": (q, d),
        "attention/key/kernel": (kv, d),
        "attention/value/kernel": (kv, d),
        "attention/out/kernel": (d, q),
        "mlp_norm/scale": (d,),
        "mlp/gate/kernel": (ffn, d),
        "mlp/up/kernel": (ffn, d),
        "mlp/down/kernel": (d, ffn),
    }
    embed, norm, head = outer
    rows = [Row(embed, "embed/embedding", (vocab, d))]
    for ours, names in _NAMES.items():
        default = TRANSPOSE if ours.endswith("kernel") else IDENTITY
        rows.append(Row(f"{prefix}{names[column]}.weight", f"layers/{ours}", shapes[ours], special.get(ours, default)))
    rows.append(Row(norm, "final_norm/scale", (d,)))
    if not config.tie_word_embeddings:
        rows.append(Row(head, "head/kernel", (vocab, d), TRANSPOSE))
    return tuple(rows)


def checkpoint_table(reader: Reader, config: LlamaConfig) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """The key table of the file's format, and the keys that it ignores, tied copies among them."""
    if isinstance(reader, GGUFReader):
        return gguf_table(config), ()
    return hf_table(config), HF_IGNORED + copies(config, head_pairs(reader, config))


def head_pairs(reader: Reader, config: LlamaConfig) -> tuple[Pair, ...]:
    """The head and the embedding that it may be tied to; none for GGUF, whose config follows the keys."""
    return () if isinstance(reader, GGUFReader) else ((HF_HEAD, HF_TABLE),)


def config_from_hf(
    values: dict[str, Any], where: str | Path = "config.json", notes: Notes | None = None
) -> LlamaConfig:
    """HF's config.json as a LlamaConfig.

    Args:
      notes: gets a line for each field with contradicting values; for the rotation's see `_rope`.

    Raises:
      UserError: another architecture, a feature that this Llama lacks, a missing field, or one of the wrong type.
    """
    names = values.get("architectures") or [values.get("model_type") or "a config without architectures"]
    if names[0] not in ("LlamaForCausalLM", "llama"):
        raise UserError(f"{where}: {names[0]} is not a Llama; only LlamaForCausalLM checkpoints are read")
    layers = number(values, "num_hidden_layers", int, where)
    rope = _rope(values, where, notes)
    is_scaled = rope["rope_type"] != "default" or "factor" in rope
    refused = {
        "rope_scaling": is_scaled and rope["rope_type"] != "llama3",
        "attention_bias": values.get("attention_bias"),
        "mlp_bias": values.get("mlp_bias"),
        **refused_everywhere(values, layers, where, notes),
        "partial_rotary_factor": number(rope, "partial_rotary_factor", float, where, 1.0) != 1.0,
        f"hidden_act {values.get('hidden_act')}": values.get("hidden_act", "silu") not in ("silu", "swish"),
    }
    if found := [name for name, present in refused.items() if present]:
        raise UserError(f"{where}: {', '.join(found)} is not supported by this Llama; choose a base without it")

    heads = number(values, "num_attention_heads", int, where)
    head_dim = None if values.get("head_dim") is None else number(values, "head_dim", int, where)
    return checked(
        where,
        LlamaConfig,
        vocab_size=number(values, "vocab_size", int, where),
        hidden_size=number(values, "hidden_size", int, where),
        intermediate_size=number(values, "intermediate_size", int, where),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=number(values, "num_key_value_heads", int, where, heads),
        head_dim=head_dim,
        rope_theta=number(rope, "rope_theta", float, where, 1e4),
        rope_scaling=_rope_scaling(rope, where) if is_scaled else None,
        rms_norm_eps=number(values, "rms_norm_eps", float, where, 1e-6),
        tie_word_embeddings=flag(values, "tie_word_embeddings", where, False),
        max_position_embeddings=number(values, "max_position_embeddings", int, where, 2048),
    )


def config_from_gguf(reader: GGUFReader) -> LlamaConfig:
    """GGUF metadata as a LlamaConfig; the head is tied when the file has no output.weight.

    Raises:
      UserError: another architecture, rope scaling, experts, or missing metadata.
    """
    meta, where = reader.metadata, reader.path
    architecture = meta.get("general.architecture")
    if architecture != "llama":
        raise UserError(f"{where}: {architecture!r} is not a Llama; only GGUF files of architecture 'llama' are read")
    keys = set(reader.keys())
    refused = {
        "rope scaling": _gguf_scaled(meta) or "rope_freqs.weight" in keys,
        "a mixture of experts": meta.get("llama.expert_count", 0),
        "a sliding window": meta.get("llama.attention.sliding_window", 0),
        "attention_bias": "blk.0.attn_q.bias" in keys,
    }
    if found := [name for name, present in refused.items() if present]:
        raise UserError(f"{where}: {', '.join(found)} is not supported by this Llama; choose a base without it")
    if "token_embd.weight" not in keys:
        raise UserError(f"{where} has no token_embd.weight; it is not a whole model")

    values = {key.removeprefix("llama."): meta[key] for key in meta if key.startswith("llama.")}
    heads = number(values, "attention.head_count", int, where)
    hidden = number(values, "embedding_length", int, where)
    head_dim = number(values, "attention.key_length", int, where, hidden // max(heads, 1))
    if (rotary := number(values, "rope.dimension_count", int, where, head_dim)) != head_dim:
        raise UserError(f"{where}: only {rotary} of {head_dim} head dimensions are rotated; this Llama rotates all")
    return checked(
        where,
        LlamaConfig,
        vocab_size=reader.shape("token_embd.weight")[0],
        hidden_size=hidden,
        intermediate_size=number(values, "feed_forward_length", int, where),
        num_hidden_layers=number(values, "block_count", int, where),
        num_attention_heads=heads,
        num_key_value_heads=number(values, "attention.head_count_kv", int, where, heads),
        head_dim=head_dim,
        rope_theta=_shortest(number(values, "rope.freq_base", float, where, 1e4)),
        rms_norm_eps=_shortest(number(values, "attention.layer_norm_rms_epsilon", float, where)),
        tie_word_embeddings="output.weight" not in keys,
        max_position_embeddings=number(values, "context_length", int, where, 2048),
    )


def config_to_hf(config: LlamaConfig, dtype: str, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    """A LlamaConfig as HF's config.json, in the fields that transformers 4 and 5 both read."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **dataclasses.asdict(config),
        "rope_scaling": config.rope_scaling and {"rope_type": "llama3", **dataclasses.asdict(config.rope_scaling)},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": dtype,
        **special_ids(tokenizer),
    }


export_params = exporter(hf_table, config_to_hf)


def _rope(values: dict[str, Any], where: Any, notes: Notes | None) -> dict[str, Any]:
    """The rotation's fields from all their places, as transformers 5 reads them.

    A rope_scaling that is not empty is used, with the top level's rope_theta, and rope_parameters is ignored. Within
    it, rope_theta and partial_rotary_factor take precedence over those of the top level, and rope_type over type; but
    the top level's original_max_position_embeddings takes precedence over the one within, and max_position_embeddings
    replaces both where they are missing.

    Raises:
      UserError: parameters that differ by layer type.
    """
    parts = {name: section(values, name, where) for name in ("rope_parameters", "rope_scaling")}
    for name, part in parts.items():
        if nested := [kind for kind, value in part.items() if isinstance(value, dict)]:
            raise UserError(
                f"{where}: {name} differs by layer type ({', '.join(nested)}), and this Llama rotates all layers "
                "alike; choose a base without it"
            )
    if not parts["rope_scaling"]:
        return _whole_rope(parts["rope_parameters"], "rope_parameters", values, where, notes)
    if parts["rope_parameters"]:
        new, old = (_whole_rope(part, name, values, where, None) for name, part in parts.items())
        for name in sorted(old.keys() & new.keys()):
            chosen(where, notes, (f"rope_scaling.{name}", old[name]), (f"rope_parameters.{name}", new[name]))
    return _whole_rope(parts["rope_scaling"], "rope_scaling", values, where, notes)


def _whole_rope(part: dict[str, Any], place: str, values: dict[str, Any], where: Any, notes: Notes | None) -> dict:
    """The fields of one place, completed from the top level."""

    def pick(name: str, *others: tuple[str, Any], default: Any = None) -> Any:
        found = chosen(where, notes, (f"{place}.{name}", part.get(name)), *others)
        return default if found is None else found

    rope = {name: value for name, value in part.items() if value is not None and name != "type"}
    rope["rope_type"] = pick("rope_type", (f"{place}.type", part.get("type")), default="default")
    for name, default in (("rope_theta", 1e4), ("partial_rotary_factor", 1.0)):
        rope[name] = pick(name, (name, values.get(name)), default=default)
    if rope["rope_type"] == "llama3":
        name = "original_max_position_embeddings"
        found = chosen(where, notes, (name, values.get(name)), (f"{place}.{name}", part.get(name)))
        rope[name] = values.get("max_position_embeddings", 2048) if found is None else found
    return rope


def _rope_scaling(values: dict[str, Any], where) -> RopeScaling:
    kinds = {name: int if name.startswith("original") else float for name in RopeScaling.__dataclass_fields__}
    return checked(where, RopeScaling, **{name: number(values, name, kind, where) for name, kind in kinds.items()})


def _gguf_scaled(meta: Any) -> bool:
    """Whether positions are scaled, as in llama.cpp: by the type, otherwise by the factor (once rope.scale_linear)."""
    if (kind := meta.get("llama.rope.scaling.type")) is not None:
        return kind != "none"
    return any(meta.get(f"llama.rope.{name}", 1.0) not in (0.0, 1.0) for name in ("scaling.factor", "scale_linear"))


def _shortest(value: float) -> float:
    """GGUF stores float32: 9.99999974e-06 is meant as 1e-05."""
    return float(str(np.float32(value)))
