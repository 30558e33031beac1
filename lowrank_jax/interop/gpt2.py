"""GPT-2 checkpoints: config and key table of HF's layout, with the fused query-key-value product split and joined."""

from pathlib import Path
from typing import Any

import numpy as np

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.interop.export import Joined, exporter, special_ids
from lowrank_jax.interop.fields import Notes, checked, chosen, flag, number, refused_everywhere, renamed
from lowrank_jax.interop.gguf.file import GGUFReader
from lowrank_jax.interop.keymap import IDENTITY, TRANSPOSE, Row, Transform
from lowrank_jax.interop.readers import Reader
from lowrank_jax.interop.tied import Pair, copies
from lowrank_jax.models.gpt2 import GPT2Config
from lowrank_jax.text.tokenizers import Tokenizer

ARCHITECTURES = ("GPT2LMHeadModel", "GPT2Model", "gpt2")
PREFIX = "transformer."  # GPT2LMHeadModel's; GPT2Model's and OpenAI's files have none
HF_IGNORED = (r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",)  # causal masks in old files
HF_HEAD = "lm_head.weight"
HF_NAMES = {  # GPT-2's name: the general one, which transformers reads as well, with precedence
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
}
FUSED = ("query", "key", "value")  # in c_attn's order
JOINED = "layers/attention/qkv"  # where `join` puts them

_NAMES = {  # of layers; Conv1D stores [in, out], as we do
    "attention_norm": "ln_1",
    "attention/out": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp/up": "mlp.c_fc",
    "mlp/down": "mlp.c_proj",
}


def third(part: int) -> Transform:
    """One of three equal parts of the last axis. It has no inverse: exports use `join` and `fused_table`."""

    def forward(x):
        return np.split(x, 3, axis=-1)[part]

    def backward(x):
        raise ValueError("a third of c_attn is no tensor of the checkpoint; export with join and fused_table")

    def where(inside, shape):
        start = part * shape[-1] // 3
        return *inside[:-1], slice(start + inside[-1].start, start + inside[-1].stop)

    return Transform(forward, backward, lambda shape: (*shape[:-1], shape[-1] // 3), where)


def hf_table(config: GPT2Config, prefix: str = PREFIX) -> tuple[Row, ...]:
    """Key table of HF's GPT2LMHeadModel, from which our params load: three rows share each c_attn tensor."""
    rows = []
    for row in fused_table(config, prefix):
        if row.target.startswith(JOINED):
            leaf = row.target.removeprefix(JOINED)
            parts = enumerate(FUSED)
            rows += [Row(row.source, f"layers/attention/{name}{leaf}", row.shape, third(i)) for i, name in parts]
        else:
            rows.append(row)
    return tuple(rows)


def fused_table(config: GPT2Config, prefix: str = PREFIX) -> tuple[Row, ...]:
    """The same keys against joined params (see `join`): one row a tensor, for both directions."""
    d, ffn, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    products = {"attention/out": (d, d), "mlp/up": (d, ffn), "mlp/down": (ffn, d)}
    layer = f"{prefix}h.{{layer}}."
    rows = [
        Row(f"{prefix}wte.weight", "embed/embedding", (vocab, d)),
        Row(f"{prefix}wpe.weight", "position/embedding", (config.max_position_embeddings, d)),
        Row(f"{layer}attn.c_attn.weight", f"{JOINED}/kernel", (d, 3 * d)),
        Row(f"{layer}attn.c_attn.bias", f"{JOINED}/bias", (3 * d,)),
    ]
    for ours, theirs in _NAMES.items():
        shape, leaf = (products[ours], "kernel") if ours in products else ((d,), "scale")
        rows.append(Row(f"{layer}{theirs}.weight", f"layers/{ours}/{leaf}", shape, IDENTITY))
        rows.append(Row(f"{layer}{theirs}.bias", f"layers/{ours}/bias", shape[-1:]))
    rows.append(Row(f"{prefix}ln_f.weight", "final_norm/scale", (d,)))
    rows.append(Row(f"{prefix}ln_f.bias", "final_norm/bias", (d,)))
    if not config.tie_word_embeddings:
        rows.append(Row(HF_HEAD, "head/kernel", (vocab, d), TRANSPOSE))
    return tuple(rows)


def join(params: Any) -> dict[str, Any]:
    """Our params with query, key and value as one "qkv", for `keymap.unload` by `fused_table`; copies nothing yet."""
    flat = flatten(params)
    for leaf in ("kernel", "bias"):
        parts = [flat.pop(f"layers/attention/{name}/{leaf}") for name in FUSED]
        flat[f"{JOINED}/{leaf}"] = Joined(parts)
    return unflatten(flat)


def checkpoint_table(reader: Reader, config: GPT2Config) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """The key table in the file's spelling (with "transformer." or without), and the keys that it ignores.

    Raises:
      UserError: a GGUF file.
    """
    if isinstance(reader, GGUFReader):
        raise UserError(f"{reader.path}: GPT-2 is not read from GGUF; use a checkpoint in HF's layout")
    return hf_table(config, _prefix(reader)), HF_IGNORED + copies(config, head_pairs(reader, config))


def head_pairs(reader: Reader, config: GPT2Config) -> tuple[Pair, ...]:
    """The head and the embedding that it may be tied to, in the file's spelling."""
    return ((HF_HEAD, f"{_prefix(reader)}wte.weight"),)


def _prefix(reader: Reader) -> str:
    keys = reader.keys()
    return PREFIX if any(key.startswith(PREFIX) for key in keys) else ""


def config_from_hf(values: dict[str, Any], where: str | Path = "config.json", notes: Notes | None = None) -> GPT2Config:
    """HF's config.json as a GPT2Config.

    A general name (hidden_size, HF_NAMES) takes precedence over GPT-2's, as in transformers; n_ctx is not read, as
    there.

    Args:
      notes: gets a line for each field whose two names contradict each other.

    Raises:
      UserError: another architecture, a feature that this GPT-2 lacks, a missing field, or one of the wrong type.
    """
    names = values.get("architectures") or [values.get("model_type") or "a config without architectures"]
    if names[0] not in ARCHITECTURES:
        raise UserError(f"{where}: {names[0]} is not a GPT-2; only GPT2LMHeadModel checkpoints are read")
    values = renamed(values, HF_NAMES, where, notes)
    layers = number(values, "n_layer", int, where)
    positions = number(values, "n_positions", int, where, 1024)
    chosen(where, notes, ("n_positions", positions), ("n_ctx", values.get("n_ctx")))
    activation = values.get("activation_function", "gelu_new")
    refused = {
        "scale_attn_weights false": not values.get("scale_attn_weights", True),
        "scale_attn_by_inverse_layer_idx": values.get("scale_attn_by_inverse_layer_idx"),
        "add_cross_attention": values.get("add_cross_attention"),
        **refused_everywhere(values, layers, where, notes),
        f"activation_function {activation}": activation not in ("gelu_new", "gelu_pytorch_tanh"),
    }
    if found := [name for name, present in refused.items() if present]:
        raise UserError(f"{where}: {', '.join(found)} is not supported by this GPT-2; choose a base without it")
    hidden = number(values, "n_embd", int, where)
    return checked(
        where,
        GPT2Config,
        vocab_size=number(values, "vocab_size", int, where),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=number(values, "n_head", int, where),
        intermediate_size=number(values, "n_inner", int, where, 4 * hidden),
        max_position_embeddings=positions,
        layer_norm_epsilon=number(values, "layer_norm_epsilon", float, where, 1e-5),
        tie_word_embeddings=flag(values, "tie_word_embeddings", where, True),
    )


def config_to_hf(config: GPT2Config, dtype: str, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    """A GPT2Config as HF's config.json, in the fields that transformers 4 and 5 both read."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_embd": config.hidden_size,
        "n_layer": config.num_hidden_layers,
        "n_head": config.num_attention_heads,
        "n_inner": config.intermediate_size,
        "n_positions": config.max_position_embeddings,
        "n_ctx": config.max_position_embeddings,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "tie_word_embeddings": config.tie_word_embeddings,
        "activation_function": "gelu_new",
        "torch_dtype": dtype,
        **special_ids(tokenizer),
    }


export_params = exporter(fused_table, config_to_hf, join)
