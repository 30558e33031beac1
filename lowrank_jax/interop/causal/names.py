"""Key tables of Llama and its model families: HF's names, where a file may join several kernels, and GGUF's."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.interop.export import Joined
from lowrank_jax.interop.keymap import IDENTITY, LESS_ONE, TRANSPOSE, Row, Transform, unpermute
from lowrank_jax.models.llama_config import LlamaConfig

TABLE, HF_HEAD = "embed_tokens.weight", "lm_head.weight"
GGUF_NAMES = {  # ours, below "layers": llama.cpp's
    "attention_norm": "attn_norm",
    "attention/query": "attn_q",
    "attention/query_norm": "attn_q_norm",
    "attention/key": "attn_k",
    "attention/key_norm": "attn_k_norm",
    "attention/value": "attn_v",
    "attention/out": "attn_output",
    "attention_post_norm": "post_attention_norm",
    "mlp_norm": "ffn_norm",
    "mlp/gate": "ffn_gate",
    "mlp/up": "ffn_up",
    "mlp/down": "ffn_down",
    "mlp_post_norm": "post_ffw_norm",
}
ROPE_FREQS, GGUF_SHORT, GGUF_LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
# Tensors that are read with the config (`interop.gguf.config`), and not as weights.
GGUF_IGNORED = {
    "llama": (re.escape(ROPE_FREQS),),
    "phi3": (re.escape(GGUF_SHORT), re.escape(GGUF_LONG)),
}
PARTS = {  # kernels that Phi-3's files join in one: our name of it -> (HF's name, our parts in order)
    "attention/qkv": ("self_attn.qkv_proj", ("attention/query", "attention/key", "attention/value")),
    "mlp/gate_up": ("mlp.gate_up_proj", ("mlp/gate", "mlp/up")),
}
GGUF_PARTS = {"attention/qkv": "attn_qkv", "mlp/gate_up": "ffn_up"}  # llama.cpp's names of the same


def hf_names(config: LlamaConfig) -> dict[str, str]:
    """Our modules below "layers" -> HF's, in the order of a block."""
    sandwich = config.norms == "both"
    names = {
        "attention_norm": "input_layernorm",
        "attention/query": "self_attn.q_proj",
        "attention/query_norm": "self_attn.q_norm",
        "attention/key": "self_attn.k_proj",
        "attention/key_norm": "self_attn.k_norm",
        "attention/value": "self_attn.v_proj",
        "attention/out": "self_attn.o_proj",
        "attention_post_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm" if sandwich else "post_attention_layernorm",
        "mlp/gate": "mlp.gate_proj",
        "mlp/up": "mlp.up_proj",
        "mlp/down": "mlp.down_proj",
        "mlp_post_norm": "post_feedforward_layernorm",
    }
    held = {path.removeprefix("layers/").rpartition("/")[0] for path in leaves(config)}
    return {ours: theirs for ours, theirs in names.items() if ours in held}


def leaves(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Path below "params" -> shape in a file ([out, in] for a kernel), of one layer where it is stacked."""
    c, kind = config, config.attention
    heads, kv_heads, head_dim = c.heads
    d, ffn, q, kv = c.hidden_size, c.intermediate_size, heads * head_dim, kv_heads * head_dim
    norm = "offset" if c.norm_offset else "scale"
    found: dict[str, tuple[int, ...]] = {"embed/embedding": (c.vocab_size, d)}

    def add(name: str, shape: tuple[int, ...], bias: bool = False) -> None:
        found[f"layers/{name}/{'kernel' if len(shape) == 2 else norm}"] = shape
        if bias:
            found[f"layers/{name}/bias"] = shape[:1]

    if c.norms != "after":
        add("attention_norm", (d,))
    for name, width in (("query", q), ("key", kv), ("value", kv)):
        add(f"attention/{name}", (width, d), kind.qkv_bias)
        if kind.qk_norm != "none" and name != "value":
            add(f"attention/{name}_norm", (head_dim if kind.qk_norm == "head" else width,))
    add("attention/out", (d, q), kind.out_bias)
    if c.norms != "before":
        add("attention_post_norm", (d,))
    if c.norms != "after":
        add("mlp_norm", (d,))
    for name, shape in (("gate", (ffn, d)), ("up", (ffn, d)), ("down", (d, ffn))):
        add(f"mlp/{name}", shape, c.mlp_bias)
    if c.norms != "before":
        add("mlp_post_norm", (d,))
    found[f"final_norm/{norm}"] = (d,)
    if not c.tie_word_embeddings:
        found["head/kernel"] = (c.vocab_size, d)
    return found


def hf_table(config: LlamaConfig, base: str = "model.", head: str = HF_HEAD, joined: bool = False) -> tuple[Row, ...]:
    """Key table of HF's class of the family; kernels are [out, in] there.

    Args:
      base, head: the prefix of the model's keys, and the head's key.
      joined: kernels that the file joins have one row, for params from `join`; otherwise a row for each part.
    """
    outer = f"{base}{TABLE}", f"{base}norm.weight", head
    names = {ours: f"{base}layers.{{layer}}.{theirs}" for ours, theirs in hf_names(config).items()}
    rows = _table(config, names, outer, {})
    return _with_parts(rows, f"{base}layers.{{layer}}.", joined) if is_fused(config) else rows


def gguf_table(config: LlamaConfig) -> tuple[Row, ...]:
    """Key table of llama.cpp's architecture of the family.

    Llama's q and k are stored permuted (`keymap.unpermute`). Norms that multiply by 1 + w are stored as 1 + w.
    """
    permuted = {
        "attention/query": unpermute(config.num_attention_heads),
        "attention/key": unpermute(config.heads[1]),
    }
    names = {ours: f"blk.{{layer}}.{theirs}" for ours, theirs in GGUF_NAMES.items()}
    outer = ("token_embd.weight", "output_norm.weight", "output.weight")
    rows = _table(config, names, outer, permuted if config.family == "llama" else {})
    if config.norm_offset:
        rows = tuple(replace(row, transform=LESS_ONE) if row.target.endswith("/offset") else row for row in rows)
    return _with_parts(rows, "blk.{layer}.", False, GGUF_PARTS) if is_fused(config) else rows


def is_fused(config: LlamaConfig) -> bool:
    """Whether the family's files join the kernels of `PARTS`."""
    return config.family == "phi3"


def rows_of(start: int, stop: int) -> Transform:
    """Takes these rows of a kernel [out, in] and transposes them. No inverse: exports use `join` and joined rows."""

    def backward(x):
        raise ValueError("a part of a product is no tensor of the checkpoint; export with join and joined rows")

    def where(part, shape):
        inner, outer = part
        return slice(start + outer.start, start + outer.stop), inner

    return Transform(lambda x: x[start:stop].T, backward, lambda shape: (shape[1], stop - start), where, True)


def join(params: Any) -> dict[str, Any]:
    """Our params with the kernels of `PARTS` joined, for `keymap.unload`; nothing is copied before it is read."""
    flat = dict(flatten(params))
    for fused, (_, parts) in PARTS.items():
        flat[f"layers/{fused}/kernel"] = Joined([flat.pop(f"layers/{part}/kernel") for part in parts])
    return unflatten(flat)


def _table(
    config: LlamaConfig, names: Mapping[str, str], outer: tuple[str, str, str], special: Mapping[str, Transform]
) -> tuple[Row, ...]:
    tops: dict[str, str] = dict(zip(("embed", "final_norm", "head"), outer, strict=True))
    rows = []
    for path, shape in leaves(config).items():
        module, _, leaf = path.rpartition("/")
        ours = module.removeprefix("layers/")
        source = tops.get(module) or f"{names[ours]}.{'bias' if leaf == 'bias' else 'weight'}"
        transform = special.get(ours, TRANSPOSE) if leaf == "kernel" else IDENTITY
        rows.append(Row(source, path, shape, transform))
    return tuple(rows)


def _with_parts(
    rows: Sequence[Row], prefix: str, joined: bool, names: Mapping[str, str] | None = None
) -> tuple[Row, ...]:
    """The rows, those of `PARTS` pointing into the tensors that they share.

    Args:
      names: of these tensors, by our name, where they are not HF's.
    """
    by_path = {row.target: row for row in rows}
    for fused, (name, parts) in PARTS.items():
        paths = [f"layers/{part}/kernel" for part in parts]
        shapes = [by_path[path].shape for path in paths]
        name = names[fused] if names else name
        source, total, start = f"{prefix}{name}.weight", sum(shape[0] for shape in shapes), 0
        for path, shape in zip(paths, shapes, strict=True):
            part = rows_of(start, start + shape[0])
            by_path[path] = Row(source, path, (total, shape[1]), part)
            start += shape[0]
        if joined:
            whole = Row(source, f"layers/{fused}/kernel", (total, shapes[0][1]), TRANSPOSE)
            by_path = {
                path: whole if path == paths[0] else row for path, row in by_path.items() if path not in paths[1:]
            }
    return tuple(by_path.values())
