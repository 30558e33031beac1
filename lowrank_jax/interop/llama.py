"""Llama checkpoints: configs and key tables of HF safetensors and GGUF, and the export back to HF's layout."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lowrank_jax.core.errors import UserError
from lowrank_jax.data.tokenizers import BYTE_CLASS, ByteTokenizer, Tokenizer, save_tokenizer
from lowrank_jax.interop import keymap
from lowrank_jax.interop.keymap import IDENTITY, TRANSPOSE, Row, Transform, unpermute
from lowrank_jax.interop.readers import INDEX, SINGLE, GGUFReader, Reader, read_json
from lowrank_jax.models.llama import LlamaConfig

# Keys that hold no weight: rotary buffers of old files.
HF_IGNORED = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)
HF_TIED = ("lm_head.weight",)  # a copy of the embedding, which transformers ignores too

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
    return _table(config, 0, "model.layers.{layer}.", ("model.embed_tokens", "model.norm", "lm_head"), {})


def gguf_table(config: LlamaConfig) -> tuple[Row, ...]:
    """Key table of llama.cpp's "llama" architecture; q and k are stored permuted (`keymap.unpermute`)."""
    permuted = {
        "attention/query/kernel": unpermute(config.num_attention_heads),
        "attention/key/kernel": unpermute(config.num_key_value_heads),
    }
    return _table(config, 1, "blk.{layer}.", ("token_embd", "output_norm", "output"), permuted)


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
    embed, norm, head = (f"{name}.weight" for name in outer)
    rows = [Row(embed, "embed/embedding", (vocab, d))]
    for ours, names in _NAMES.items():
        default = TRANSPOSE if ours.endswith("kernel") else IDENTITY
        rows.append(Row(f"{prefix}{names[column]}.weight", f"layers/{ours}", shapes[ours], special.get(ours, default)))
    rows.append(Row(norm, "final_norm/scale", (d,)))
    if not config.tie_word_embeddings:
        rows.append(Row(head, "head/kernel", (vocab, d), TRANSPOSE))
    return tuple(rows)


def load_params(reader: Reader, config: LlamaConfig, dtype: Any = jnp.float32, sharding_fn=None) -> dict[str, Any]:
    """The checkpoint's weights as our params; see `keymap.load` for strictness and memory.

    Raises:
      UserError: keys or shapes that do not fit the config, or a damaged file.
    """
    if isinstance(reader, GGUFReader):
        return keymap.load(reader, gguf_table(config), config.num_hidden_layers, dtype, sharding_fn)
    ignored = HF_IGNORED + (HF_TIED if config.tie_word_embeddings else ())
    return keymap.load(reader, hf_table(config), config.num_hidden_layers, dtype, sharding_fn, ignored)


def config_from_hf(values: dict[str, Any], where: str | Path = "config.json") -> LlamaConfig:
    """HF's config.json as a LlamaConfig.

    Raises:
      UserError: another architecture, a feature that this Llama lacks, or a missing or ill-typed field.
    """
    names = values.get("architectures") or [values.get("model_type") or "a config without architectures"]
    if names[0] not in ("LlamaForCausalLM", "llama"):
        raise UserError(f"{where}: {names[0]} is not a Llama; only LlamaForCausalLM checkpoints are read")
    rope = values.get("rope_parameters") or {}  # transformers 5; before it: rope_theta and rope_scaling
    scaling = values.get("rope_scaling") or {}
    kinds = {part.get("rope_type", part.get("type", "default")) for part in (rope, scaling)}
    refused = {
        "rope_scaling": kinds != {"default"} or "factor" in scaling,
        "attention_bias": values.get("attention_bias"),
        "mlp_bias": values.get("mlp_bias"),
        "sliding_window": values.get("sliding_window") is not None and values.get("use_sliding_window", True),
        "quantization_config": values.get("quantization_config"),
        "partial_rotary_factor": values.get("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0)) != 1.0,
        f"hidden_act {values.get('hidden_act')}": values.get("hidden_act", "silu") not in ("silu", "swish"),
    }
    if found := [name for name, present in refused.items() if present]:
        raise UserError(f"{where}: {', '.join(found)} is not supported by this Llama; choose a base without it")

    heads = _number(values, "num_attention_heads", int, where)
    hidden = _number(values, "hidden_size", int, where)
    return _checked(
        where,
        vocab_size=_number(values, "vocab_size", int, where),
        hidden_size=hidden,
        intermediate_size=_number(values, "intermediate_size", int, where),
        num_hidden_layers=_number(values, "num_hidden_layers", int, where),
        num_attention_heads=heads,
        num_key_value_heads=_number(values, "num_key_value_heads", int, where, heads),
        head_dim=_number(values, "head_dim", int, where, hidden // max(heads, 1)),
        rope_theta=_number(values, "rope_theta", float, where, rope.get("rope_theta", 1e4)),
        rms_norm_eps=_number(values, "rms_norm_eps", float, where, 1e-6),
        tie_word_embeddings=bool(values.get("tie_word_embeddings", False)),
        max_position_embeddings=_number(values, "max_position_embeddings", int, where, 2048),
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
        "rope scaling": meta.get("llama.rope.scaling.type", "none") != "none" or "rope_freqs.weight" in keys,
        "a mixture of experts": meta.get("llama.expert_count", 0),
        "a sliding window": meta.get("llama.attention.sliding_window", 0),
        "attention_bias": "blk.0.attn_q.bias" in keys,
    }
    if found := [name for name, present in refused.items() if present]:
        raise UserError(f"{where}: {', '.join(found)} is not supported by this Llama; choose a base without it")
    if "token_embd.weight" not in keys:
        raise UserError(f"{where} has no token_embd.weight; it is not a whole model")

    values = {key.removeprefix("llama."): meta[key] for key in meta if key.startswith("llama.")}
    heads = _number(values, "attention.head_count", int, where)
    hidden = _number(values, "embedding_length", int, where)
    head_dim = _number(values, "attention.key_length", int, where, hidden // max(heads, 1))
    if (rotary := _number(values, "rope.dimension_count", int, where, head_dim)) != head_dim:
        raise UserError(f"{where}: only {rotary} of {head_dim} head dimensions are rotated; this Llama rotates all")
    return _checked(
        where,
        vocab_size=reader.shape("token_embd.weight")[0],
        hidden_size=hidden,
        intermediate_size=_number(values, "feed_forward_length", int, where),
        num_hidden_layers=_number(values, "block_count", int, where),
        num_attention_heads=heads,
        num_key_value_heads=_number(values, "attention.head_count_kv", int, where, heads),
        head_dim=head_dim,
        rope_theta=_shortest(_number(values, "rope.freq_base", float, where, 1e4)),
        rms_norm_eps=_shortest(_number(values, "attention.layer_norm_rms_epsilon", float, where)),
        tie_word_embeddings="output.weight" not in keys,
        max_position_embeddings=_number(values, "context_length", int, where, 2048),
    )


def config_of(path: Path, reader: Reader | None) -> LlamaConfig:
    """The config of the checkpoint at `path`: GGUF's metadata, or config.json in or beside it (no reader needed)."""
    if isinstance(reader, GGUFReader):
        return config_from_gguf(reader)
    folder = path if path.is_dir() else path.parent
    return config_from_hf(read_json(folder / "config.json"), folder / "config.json")


def config_to_hf(config: LlamaConfig, dtype: str, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    """A LlamaConfig as HF's config.json, in the fields that transformers 4 and 5 both read."""
    values = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{name: getattr(config, name) for name in LlamaConfig.__dataclass_fields__},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": dtype,
        "bos_token_id": tokenizer.bos_id if tokenizer else None,
        "eos_token_id": tokenizer.eos_id if tokenizer else None,
        "pad_token_id": tokenizer.pad_id if tokenizer else None,
    }
    if isinstance(tokenizer, ByteTokenizer):
        values["tokenizer_class"] = BYTE_CLASS
    return values


def export_params(
    params: Any,
    config: LlamaConfig,
    folder: str | Path,
    dtype: str = "float32",
    shard_size: int | None = None,
    tokenizer: Tokenizer | None = None,
) -> Path:
    """Writes a Llama in HF's layout: config.json, safetensors and the tokenizer; transformers loads the folder.

    Every file is written under a temporary name and renamed; config.json comes last, so a folder that has it is whole.

    Args:
      params: the tree below "params"; leaves are stacked over layers. Fetched from the devices tensor by tensor.
      dtype: "float32", "bfloat16" or "float16", of the written tensors.
      shard_size: bytes per file; None writes one file, which holds the whole model in host memory for a moment.
      tokenizer: written beside the weights when given.

    Raises:
      UserError: unknown dtype, a value that float16 cannot hold, or the disk refuses (full, read-only).
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    if dtype not in ("float32", "bfloat16", "float16"):
        raise UserError(f"unknown export dtype {dtype!r}; known: float32, bfloat16, float16")
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for shard in _shards(params, config, dtype, shard_size):
            files.append((folder / f".part-{len(files)}", list(shard), sum(x.nbytes for x in shard.values())))
            save_file(shard, files[-1][0], metadata={"format": "pt"})
        count = len(files)
        names = [SINGLE] if count == 1 else [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
        for old in [folder / "config.json", folder / INDEX, *folder.glob("model*.safetensors")]:
            old.unlink(missing_ok=True)  # an earlier export gives way only once all of this one's weights are written
        for (part, _, _), name in zip(files, names, strict=True):
            os.replace(part, folder / name)
        if count > 1:
            weight_map = {key: name for (_, keys, _), name in zip(files, names, strict=True) for key in keys}
            index = {"metadata": {"total_size": sum(size for *_, size in files)}, "weight_map": weight_map}
            _write_json(folder / INDEX, index)
        if tokenizer is not None:
            save_tokenizer(tokenizer, folder)
        _write_json(folder / "config.json", config_to_hf(config, dtype, tokenizer))
    except (OSError, SafetensorError, UserError) as error:
        for part in folder.glob(".part-*"):
            part.unlink(missing_ok=True)
        if isinstance(error, UserError):  # a value that the dtype cannot hold
            raise
        reason = " ".join(str(error).split())
        raise UserError(f"cannot write {folder}: {reason}; free some space or name another folder") from None
    return folder


def _shards(params, config: LlamaConfig, dtype: str, shard_size: int | None) -> Iterator[dict[str, np.ndarray]]:
    shard, used = {}, 0
    for key, tensor in keymap.unload(params, hf_table(config), config.num_hidden_layers):
        with np.errstate(over="ignore"):
            tensor = np.ascontiguousarray(tensor, jnp.dtype(dtype))
        if not keymap.is_finite(tensor):
            raise UserError(f"{key} is not finite in {dtype}; export as float32 or bfloat16")
        if shard and shard_size and used + tensor.nbytes > shard_size:
            yield shard
            shard, used = {}, 0
        shard[key] = tensor
        used += tensor.nbytes
    yield shard


def _write_json(path: Path, value: dict[str, Any]) -> None:
    part = path.with_name(f".part-{path.name}")
    part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)


def _number(values, name: str, kind: type, where, default: Any = None):
    value = values.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or kind(value) != value:
        raise UserError(f"{where}: {name} must be {'a whole number' if kind is int else 'a number'}, not {value!r}")
    return kind(value)


def _shortest(value: float) -> float:
    """GGUF stores float32: 9.99999974e-06 is meant as 1e-05."""
    return float(str(np.float32(value)))


def _checked(where, **fields) -> LlamaConfig:
    try:
        return LlamaConfig(**fields)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
