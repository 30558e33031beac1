"""DeBERTa-v2 and v3 checkpoints: config and key table of HF's layout, with or without a head, and the export back."""

from pathlib import Path
from typing import Any

from lowrank_jax.core.errors import UserError
from lowrank_jax.interop.export import exporter, special_ids
from lowrank_jax.interop.fields import Notes, checked, flag, label_count, number, refused_everywhere
from lowrank_jax.interop.gguf.file import GGUFReader
from lowrank_jax.interop.keymap import TRANSPOSE, Row
from lowrank_jax.interop.readers import Reader
from lowrank_jax.interop.tied import Pair, copies
from lowrank_jax.models.deberta import DebertaConfig
from lowrank_jax.models.parts.heads import SEQUENCE_HEADS
from lowrank_jax.text.tokenizers import Tokenizer

PREFIX = "deberta."  # of the encoder's keys, in files of a model with a head and in Microsoft's
# Published files contain weights that only pre-training used, which transformers does not read either: the
# replaced-word head, positions that only the masked-word head read, and that head itself unless the model has it.
HF_IGNORED = (r"mask_predictions\..*", r"(deberta\.)?embeddings\.(position_embeddings\.weight|position_ids)")
UNASKED = (r"lm_predictions\..*",)
LM_HEADS = {  # the masked-word head's bias: the prefix of its product and norm
    "cls.predictions": "cls.predictions.transform",  # transformers' spelling
    "lm_predictions.lm_head": "lm_predictions.lm_head",  # Microsoft's spelling, for transformers "not legacy"
}

_LAYER = {  # ours, below "layers": HF's, below "encoder.layer.N."
    "attention/query": "attention.self.query_proj",
    "attention/key": "attention.self.key_proj",
    "attention/value": "attention.self.value_proj",
    "attention/out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp/up": "intermediate.dense",
    "mlp/down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
_UNSHARED = {"c2p": ("attention/position_key", "pos_key_proj"), "p2c": ("attention/position_query", "pos_query_proj")}
_CLASSES = {  # HF's class name -> head
    "DebertaV2Model": "none",
    "DebertaV2ForMaskedLM": "masked-lm",
    "DebertaV2ForSequenceClassification": "classification",
}


def hf_table(config: DebertaConfig, prefix: str | None = None, lm_head: str = "cls.predictions") -> tuple[Row, ...]:
    """Key table of HF's DebertaV2Model and its classes with a head; kernels are [out, in] there.

    Args:
      prefix: of the encoder's keys, "" or "deberta."; None: as transformers writes it, with a prefix only where there
        is a head.
      lm_head: the spelling of a masked-lm head's keys, a name of LM_HEADS.
    """
    if prefix is None:
        prefix = "" if config.head == "none" else PREFIX
    d, ffn = config.hidden_size, config.intermediate_size
    rows = [
        Row(f"{prefix}embeddings.word_embeddings.weight", "embed/embedding", (config.vocab_size, d)),
        Row(f"{prefix}encoder.rel_embeddings.weight", "relative/embedding", (2 * config.span, d)),
    ]

    def linear(ours, theirs, shape):
        rows.append(Row(f"{theirs}.weight", f"{ours}/kernel", shape, TRANSPOSE))
        rows.append(Row(f"{theirs}.bias", f"{ours}/bias", shape[:1]))

    def norm(ours, theirs):
        rows.append(Row(f"{theirs}.weight", f"{ours}/scale", (d,)))
        rows.append(Row(f"{theirs}.bias", f"{ours}/bias", (d,)))

    norm("embed_norm", f"{prefix}embeddings.LayerNorm")
    if config.norm_rel_ebd == "layer_norm":
        norm("relative_norm", f"{prefix}encoder.LayerNorm")
    if size := config.conv_kernel_size:
        filters = (d, d // config.conv_groups, size)  # [out, in, K]: all axes in reverse order
        rows.append(Row(f"{prefix}encoder.conv.conv.weight", "conv/filters", filters, TRANSPOSE))
        rows.append(Row(f"{prefix}encoder.conv.conv.bias", "conv/bias", (d,)))
        norm("conv_norm", f"{prefix}encoder.conv.LayerNorm")
    names = dict(_LAYER)
    if not config.share_att_key:
        names |= {ours: f"attention.self.{name}" for ours, name in (_UNSHARED[term] for term in config.pos_att_type)}
    for ours, theirs in names.items():
        theirs = f"{prefix}encoder.layer.{{layer}}.{theirs}"
        if ours.endswith("norm"):
            norm(f"layers/{ours}", theirs)
        else:
            linear(f"layers/{ours}", theirs, {"mlp/up": (ffn, d), "mlp/down": (d, ffn)}.get(ours, (d, d)))
    if config.head == "masked-lm":
        linear("head/dense", f"{LM_HEADS[lm_head]}.dense", (d, d))
        norm("head/norm", f"{LM_HEADS[lm_head]}.LayerNorm")
        rows.append(Row(f"{lm_head}.bias", "head/bias", (config.vocab_size,)))
    elif config.head in SEQUENCE_HEADS:
        linear("pooler", "pooler.dense", (d, d))
        linear("head/out", "classifier", (config.num_labels, d))
    return tuple(rows)


def checkpoint_table(reader: Reader, config: DebertaConfig) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """The key table in the file's spelling (prefix, masked-lm head), and the keys that it ignores.

    Raises:
      UserError: a GGUF file.
    """
    if isinstance(reader, GGUFReader):
        raise UserError(f"{reader.path}: DeBERTa is not read from GGUF; use a checkpoint in HF's layout")
    keys = reader.keys()
    lm_head = next((name for name in LM_HEADS if any(key.startswith(f"{name}.") for key in keys)), "cls.predictions")
    left_out = copies(config, head_pairs(reader, config)) if config.head == "masked-lm" else UNASKED
    return hf_table(config, _prefix(reader), lm_head), HF_IGNORED + left_out


def head_pairs(reader: Reader, config: DebertaConfig) -> tuple[Pair, ...]:
    """A masked-lm head's copies of the embedding and of its bias, in the file's spelling."""
    if config.head != "masked-lm":
        return ()
    table = f"{_prefix(reader)}embeddings.word_embeddings.weight"
    return ("cls.predictions.decoder.weight", table), ("cls.predictions.decoder.bias", "cls.predictions.bias")


def _prefix(reader: Reader) -> str:
    keys = reader.keys()
    return PREFIX if any(key.startswith(PREFIX) for key in keys) else ""


def config_from_hf(
    values: dict[str, Any], where: str | Path = "config.json", notes: Notes | None = None
) -> DebertaConfig:
    """HF's config.json as a DebertaConfig, with the head that its architecture names.

    Args:
      notes: gets a line for each field with contradicting values; see `fields`.

    Raises:
      UserError: another architecture, a feature that this DeBERTa lacks, a missing field, or one of the wrong type.
    """
    kind = values.get("model_type")  # Microsoft's own files name no architecture
    default = "DebertaV2Model" if kind == "deberta-v2" else f"model_type {kind}"
    name = (values.get("architectures") or [default])[0]
    head = _CLASSES.get(name)
    if head is None:
        raise UserError(f"{where}: {name} is not read; known: {', '.join(_CLASSES)}")
    hidden = number(values, "hidden_size", int, where)
    heads = number(values, "num_attention_heads", int, where)
    layers = number(values, "num_hidden_layers", int, where)
    terms, norms = (_parts(values, field, where) for field in ("pos_att_type", "norm_rel_ebd"))
    refused = {
        "relative_attention false": not values.get("relative_attention", False),
        "position_biased_input": values.get("position_biased_input", True),
        "type_vocab_size above 0": number(values, "type_vocab_size", int, where, 0) > 0,
        "embedding_size other than hidden_size": number(values, "embedding_size", int, where, hidden) != hidden,
        "attention_head_size": number(values, "attention_head_size", int, where, hidden // max(heads, 1)) * heads
        != hidden,
        f"norm_rel_ebd {values.get('norm_rel_ebd')}": not set(norms) <= {"layer_norm", "none"},
        "pooler_dropout": number(values, "pooler_dropout", float, where, 0.0) > 0,
        f"pooler_hidden_act {values.get('pooler_hidden_act')}": values.get("pooler_hidden_act", "gelu") != "gelu",
        "pooler_hidden_size": number(values, "pooler_hidden_size", int, where, hidden) != hidden,
        **refused_everywhere(values, layers, where, notes),
        "an untied masked-lm head": head == "masked-lm"
        and values.get("legacy", True)
        and not flag(values, "tie_word_embeddings", where, True),
        f"problem_type {values.get('problem_type')}": values.get("problem_type") == "multi_label_classification",
    }
    if found := [feature for feature, present in refused.items() if present]:
        raise UserError(f"{where}: {', '.join(found)} is not supported by this DeBERTa; choose a base without it")
    labels = label_count(values, where, notes)
    problem = values.get("problem_type") or ("regression" if labels == 1 else "")  # as transformers decides
    if head == "classification" and problem == "regression":
        head = "regression"
    labels = labels if head in SEQUENCE_HEADS else 2  # the default; without such a head the field has no meaning
    rate = values.get("cls_dropout")
    return checked(
        where,
        DebertaConfig,
        vocab_size=number(values, "vocab_size", int, where),
        hidden_size=hidden,
        intermediate_size=number(values, "intermediate_size", int, where),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=number(values, "max_position_embeddings", int, where, 512),
        max_relative_positions=number(values, "max_relative_positions", int, where, -1),
        position_buckets=number(values, "position_buckets", int, where, -1),
        pos_att_type=tuple(sorted(set(terms))),
        share_att_key=bool(values.get("share_att_key", False)),
        norm_rel_ebd="layer_norm" if "layer_norm" in norms else "none",
        conv_kernel_size=number(values, "conv_kernel_size", int, where, 0),
        conv_groups=number(values, "conv_groups", int, where, 1),
        conv_act=values.get("conv_act") or "tanh",
        layer_norm_eps=number(values, "layer_norm_eps", float, where, 1e-7),
        hidden_act=values.get("hidden_act") or "gelu",
        pad_token_id=number(values, "pad_token_id", int, where, 0),
        head=head,
        num_labels=labels,
        hidden_dropout_prob=number(values, "hidden_dropout_prob", float, where, 0.1),
        attention_probs_dropout_prob=number(values, "attention_probs_dropout_prob", float, where, 0.1),
        classifier_dropout=None if rate is None else number(values, "cls_dropout", float, where),
    )


def config_to_hf(config: DebertaConfig, dtype: str, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    """A DebertaConfig as HF's config.json, in the fields that transformers 4 and 5 both read."""
    own = ("head", "num_labels", "classifier_dropout", "pos_att_type")
    classes = {head: name for name, head in _CLASSES.items()}
    values = {
        "architectures": [classes["classification" if config.head in SEQUENCE_HEADS else config.head]],
        "model_type": "deberta-v2",
        **{name: getattr(config, name) for name in DebertaConfig.__dataclass_fields__ if name not in own},
        "relative_attention": True,
        "position_biased_input": False,
        "type_vocab_size": 0,
        "pos_att_type": list(config.pos_att_type),
        "torch_dtype": dtype,
        **special_ids(tokenizer),
        "pad_token_id": config.pad_token_id,
    }
    if config.classifier_dropout is not None:
        values["cls_dropout"] = config.classifier_dropout
    if config.head in SEQUENCE_HEADS:
        kinds = {"classification": "single_label_classification", "regression": "regression"}
        values["id2label"] = {str(i): f"LABEL_{i}" for i in range(config.num_labels)}
        values["label2id"] = {name: int(i) for i, name in values["id2label"].items()}
        values["problem_type"] = kinds[config.head]
    return values


export_params = exporter(hf_table, config_to_hf)


def _parts(values: dict[str, Any], name: str, where: Any) -> tuple[str, ...]:
    """A field with names, a list or one text with "|" between them."""
    value = values.get(name) or ()
    parts = value.lower().split("|") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise UserError(f"{where}: {name} must be names with | between them, not {value!r}")
    return tuple(part.strip() for part in parts if part.strip())
