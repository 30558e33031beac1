"""Checkpoints of Llama and its model families: HF's configs, key tables, and the export to HF's layout."""

import functools
from pathlib import Path
from typing import Any

from lowrank_jax.core.errors import UserError
from lowrank_jax.interop.causal import rope
from lowrank_jax.interop.causal.families import BY_TYPE, NESTED, family_of, text_part
from lowrank_jax.interop.causal.family import ALIASES
from lowrank_jax.interop.causal.names import GGUF_IGNORED, HF_HEAD, TABLE, gguf_table, hf_table, is_fused, join
from lowrank_jax.interop.export import exporter, special_ids
from lowrank_jax.interop.fields import Notes, checked, flag, number, refused_everywhere
from lowrank_jax.interop.gguf.file import GGUFReader
from lowrank_jax.interop.keymap import Row
from lowrank_jax.interop.readers import Reader
from lowrank_jax.interop.tied import Pair, copies
from lowrank_jax.models.llama_config import LlamaConfig
from lowrank_jax.models.parts.counts import MOST_LAYERS
from lowrank_jax.text.tokenizers import Tokenizer

# Keys without a weight: rotary buffers of old files.
HF_IGNORED = (r"(.*\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)
COMMON = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "max_position_embeddings": 2048}  # HF's for most
SHARED = (  # LlamaConfig's fields that every family writes under the same name
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings"),
)
MODEL_TYPES = (*BY_TYPE, *NESTED)
# A model's prefix and its head: alone, and as the text part of a model of text and images, in two spellings.
SPELLINGS = (
    ("model.", HF_HEAD),
    ("language_model.model.", f"language_model.{HF_HEAD}"),
    ("model.language_model.", HF_HEAD),
)
NOT_TEXT = (r"(model\.)?(vision_tower|multi_modal_projector)\..*",)


def checkpoint_table(reader: Reader, config: LlamaConfig) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """The key table of the file's format, and the keys that it ignores, tied copies among them."""
    if isinstance(reader, GGUFReader):
        return gguf_table(config), GGUF_IGNORED.get(config.family, ())
    base, head = _spelling(reader)
    beside = () if base == SPELLINGS[0][0] else NOT_TEXT
    return hf_table(config, base, head), HF_IGNORED + beside + copies(config, head_pairs(reader, config))


def head_pairs(reader: Reader, config: LlamaConfig) -> tuple[Pair, ...]:
    """The head and the embedding that it may be tied to; none for GGUF, whose config follows the keys."""
    if isinstance(reader, GGUFReader):
        return ()
    base, head = _spelling(reader)
    return ((head, f"{base}{TABLE}"),)


def _spelling(reader: Reader) -> tuple[str, str]:
    """The model's prefix and the head's key in a file, of SPELLINGS."""
    keys = set(reader.keys())
    return next((one for one in SPELLINGS if f"{one[0]}{TABLE}" in keys), SPELLINGS[0])


def config_from_hf(
    values: dict[str, Any], where: str | Path = "config.json", notes: Notes | None = None
) -> LlamaConfig:
    """A family's config.json as a LlamaConfig.

    Args:
      notes: gets a line for each field with contradicting values; for the rotation's see `rope.rope`.

    Raises:
      UserError: another architecture, a feature that the model lacks, a missing field, or one of the wrong type.
    """
    values = text_part(values, where, notes)
    family = family_of(values, where)
    common = {name: family.defaults.get(name, default) for name, default in COMMON.items()}
    values = {**family.defaults, **values, **{name: d for name, d in common.items() if values.get(name) is None}}
    layers = number(values, "num_hidden_layers", int, where, least=1)
    if layers > MOST_LAYERS:  # before a family lists them
        raise UserError(f"{where}: num_hidden_layers is {str(layers)[:60]}; it must be at most {MOST_LAYERS}")
    activation = values.get(family.activation_field, family.activation)
    refused = {
        **refused_everywhere(values, layers, where, notes, family.windows),
        f"{family.activation_field} {activation}": activation
        not in (family.activation, ALIASES.get(family.activation)),
    }
    if found := [name for name, present in refused.items() if present]:
        raise UserError(f"{where}: {', '.join(found)} is not supported by {family.title}; choose a base without it")
    read = family.read(values, layers, where, notes)
    if read["partial_rotary_factor"] != 1 and not family.partial:
        raise UserError(f"{where}: partial_rotary_factor is not supported by {family.title}; choose a base without it")
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
        rms_norm_eps=number(values, "rms_norm_eps", float, where),
        tie_word_embeddings=flag(values, "tie_word_embeddings", where, False),
        hidden_act=family.activation,
        family=family.model_type,
        **read,
    )


def config_to_hf(config: LlamaConfig, dtype: str, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    """A LlamaConfig as its family's config.json, in the fields that transformers 4 and 5 both read."""
    family = BY_TYPE[config.family]
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **{name: getattr(config, name) for name in SHARED},
        **rope.to_hf(config),
        family.activation_field: config.hidden_act,
        **family.write(config),
        "torch_dtype": dtype,
        **special_ids(tokenizer),
    }


_export = exporter(hf_table, config_to_hf)
_export_joined = exporter(functools.partial(hf_table, joined=True), config_to_hf, join)


def export_params(params: Any, config: LlamaConfig, folder: str | Path, dtype: str = "float32", **options: Any) -> Path:
    """Writes the model in HF's layout; transformers loads the folder. See `export.write_checkpoint` for the options."""
    return (_export_joined if is_fused(config) else _export)(params, config, folder, dtype, **options)
