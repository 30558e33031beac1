"""BERT and RoBERTa checkpoints: configs and key tables of HF, with or without their heads, and the export back."""

from pathlib import Path
from typing import Any

from lowrank_jax.core.errors import UserError
from lowrank_jax.interop.export import exporter, special_ids
from lowrank_jax.interop.fields import Notes, checked, flag, label_count, number, refused_everywhere
from lowrank_jax.interop.keymap import IDENTITY, TRANSPOSE, Row
from lowrank_jax.interop.readers import Reader
from lowrank_jax.interop.tied import Pair, copies
from lowrank_jax.models.bert import BertConfig
from lowrank_jax.models.parts.heads import SEQUENCE_HEADS
from lowrank_jax.models.parts.layers import ACTIVATIONS
from lowrank_jax.text.tokenizers import Tokenizer

_LAYER = {  # ours, below "layers": HF's, below "encoder.layer.N."
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp/up": "intermediate.dense",
    "mlp/down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
_HEADS = {  # (kind of encoder, head): {ours: HF's}, outside the encoder's prefix
    ("bert", "sequence"): {"head/out": "classifier"},
    ("roberta", "sequence"): {"head/dense": "classifier.dense", "head/out": "classifier.out_proj"},
    ("bert", "masked-lm"): {
        "head/dense": "cls.predictions.transform.dense",
        "head/norm": "cls.predictions.transform.LayerNorm",
        "head": "cls.predictions",
    },
    ("roberta", "masked-lm"): {"head/dense": "lm_head.dense", "head/norm": "lm_head.layer_norm", "head": "lm_head"},
}
_CLASSES = {  # end of HF's class name -> head; others are refused
    "Model": "none",
    "ForMaskedLM": "masked-lm",
    "ForPreTraining": "masked-lm",
    "ForSequenceClassification": "classification",
}
_HF_NAMES = {"bert": "Bert", "roberta": "Roberta"}


def hf_table(config: BertConfig, prefix: str | None = None, norm: tuple[str, str] = ("weight", "bias")):
    """Key table of HF's BertModel, RobertaModel and their classes with a head; kernels are [out, in] there.

    Args:
      prefix: of the encoder's keys, "" or "bert." or "roberta."; None: as transformers writes it, with a prefix only
        where there is a head.
      norm: names of a norm's scale and bias in the file.
    """
    if prefix is None:
        prefix = "" if config.head == "none" else f"{config.model_type}."
    d, ffn = config.hidden_size, config.intermediate_size
    widths = {"mlp/up": (ffn, d), "mlp/down": (d, ffn), "head/out": (config.num_labels, d)}
    rows = []
    for part, size in (
        ("word", config.vocab_size),
        ("position", config.max_position_embeddings),
        ("type", config.type_vocab_size),
    ):
        theirs = "token_type" if part == "type" else part
        rows.append(Row(f"{prefix}embeddings.{theirs}_embeddings.weight", f"embed/{part}/embedding", (size, d)))

    def pair(ours, theirs):
        if ours.endswith("norm"):
            names = ("weight", "bias") if theirs.endswith("layer_norm") else norm
            rows.append(Row(f"{theirs}.{names[0]}", f"{ours}/scale", (d,)))
            rows.append(Row(f"{theirs}.{names[1]}", f"{ours}/bias", (d,)))
            return
        shape = widths.get(ours.removeprefix("layers/"), (d, d))
        rows.append(Row(f"{theirs}.weight", f"{ours}/kernel", shape, TRANSPOSE))
        rows.append(Row(f"{theirs}.bias", f"{ours}/bias", shape[:1], IDENTITY))

    pair("embed_norm", f"{prefix}embeddings.LayerNorm")
    for ours, theirs in _LAYER.items():
        pair(f"layers/{ours}", f"{prefix}encoder.layer.{{layer}}.{theirs}")
    if config.pooler:
        pair("pooler", f"{prefix}pooler.dense")
    for ours, theirs in _HEADS.get((config.model_type, _kind(config.head)), {}).items():
        if ours == "head":
            rows.append(Row(f"{theirs}.bias", "head/bias", (config.vocab_size,)))
        else:
            pair(ours, theirs)
    return tuple(rows)


def checkpoint_table(reader: Reader, config: BertConfig) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """The key table in the file's spelling (prefix; LayerNorm.gamma in old files), and the keys that it ignores."""
    keys = reader.keys()
    old = any(key.endswith("LayerNorm.gamma") for key in keys)
    rows = hf_table(config, _prefix(reader, config), ("gamma", "beta") if old else ("weight", "bias"))
    return rows, copies(config, head_pairs(reader, config))


def head_pairs(reader: Reader, config: BertConfig) -> tuple[Pair, ...]:
    """A masked-lm head's copies of the embedding and of its bias, in the file's spelling."""
    if config.head != "masked-lm":
        return ()
    head = _HEADS[config.model_type, config.head]["head"]
    table = f"{_prefix(reader, config)}embeddings.word_embeddings.weight"
    return (f"{head}.decoder.weight", table), (f"{head}.decoder.bias", f"{head}.bias")


def _prefix(reader: Reader, config: BertConfig) -> str:
    prefix, keys = f"{config.model_type}.", reader.keys()
    return prefix if any(key.startswith(prefix) for key in keys) else ""


def config_from_hf(values: dict[str, Any], where: str | Path = "config.json", notes: Notes | None = None) -> BertConfig:
    """HF's config.json as a BertConfig, with the head that its architecture names.

    Args:
      notes: gets a line for each field with contradicting values; see `fields`.

    Raises:
      UserError: another architecture, a feature that this encoder lacks, a missing field, or one of the wrong type.
    """
    kind = str(values.get("model_type"))
    name = (values.get("architectures") or [f"{_HF_NAMES.get(kind, kind)}Model"])[0]
    head = _CLASSES.get(name.removeprefix(_HF_NAMES.get(kind, "?")))
    if head is None:
        known = ", ".join(f"{'|'.join(_HF_NAMES.values())}{end}" for end in _CLASSES)
        raise UserError(f"{where}: {name} is not read; known: {known}")
    layers = number(values, "num_hidden_layers", int, where)
    refused = {
        "position_embedding_type": values.get("position_embedding_type") not in (None, "absolute"),
        "is_decoder": values.get("is_decoder"),
        "add_cross_attention": values.get("add_cross_attention"),
        **refused_everywhere(values, layers, where, notes),
        "an untied masked-lm head": head == "masked-lm" and not flag(values, "tie_word_embeddings", where, True),
        f"hidden_act {values.get('hidden_act')}": values.get("hidden_act", "gelu") not in ACTIVATIONS,
        f"problem_type {values.get('problem_type')}": values.get("problem_type") == "multi_label_classification",
    }
    if found := [feature for feature, present in refused.items() if present]:
        raise UserError(f"{where}: {', '.join(found)} is not supported by this encoder; choose a base without it")
    labels = label_count(values, where, notes)
    if (
        head == "classification"
        and (values.get("problem_type") or ("regression" if labels == 1 else "")) == "regression"
    ):
        head = "regression"  # transformers reads a single label as regression too
    roberta = kind == "roberta"
    rate = values.get("classifier_dropout")
    return checked(
        where,
        BertConfig,
        **{field: number(values, field, int, where) for field in ("vocab_size", "hidden_size", "intermediate_size")},
        num_hidden_layers=layers,
        num_attention_heads=number(values, "num_attention_heads", int, where),
        max_position_embeddings=number(values, "max_position_embeddings", int, where, 512),
        type_vocab_size=number(values, "type_vocab_size", int, where, 2),
        layer_norm_eps=number(values, "layer_norm_eps", float, where, 1e-12),
        hidden_act=values.get("hidden_act") or "gelu",
        model_type=kind,
        pad_token_id=number(values, "pad_token_id", int, where, 1 if roberta else 0),
        pooler=head == "none" or (head in SEQUENCE_HEADS and not roberta),
        head=head,
        num_labels=labels,
        hidden_dropout_prob=number(values, "hidden_dropout_prob", float, where, 0.1),
        attention_probs_dropout_prob=number(values, "attention_probs_dropout_prob", float, where, 0.1),
        classifier_dropout=None if rate is None else number(values, "classifier_dropout", float, where),
    )


def config_to_hf(config: BertConfig, dtype: str, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    """A BertConfig as HF's config.json, in the fields that transformers 4 and 5 both read."""
    own = ("head", "pooler", "num_labels", "model_type")
    end = "ForSequenceClassification" if config.head in SEQUENCE_HEADS else ""
    end = end or {"none": "Model", "masked-lm": "ForMaskedLM"}[config.head]
    values = {
        "architectures": [_HF_NAMES[config.model_type] + end],
        "model_type": config.model_type,
        **{name: getattr(config, name) for name in BertConfig.__dataclass_fields__ if name not in own},
        "position_embedding_type": "absolute",
        "torch_dtype": dtype,
        **special_ids(tokenizer),
        "pad_token_id": config.pad_token_id,  # RoBERTa counts positions from this id: the tokenizer must not change it
    }
    if config.head in SEQUENCE_HEADS:
        kinds = {"classification": "single_label_classification", "regression": "regression"}
        values["id2label"] = {str(i): f"LABEL_{i}" for i in range(config.num_labels)}
        values["label2id"] = {name: int(i) for i, name in values["id2label"].items()}
        values["problem_type"] = kinds[config.head]
    return values


export_params = exporter(hf_table, config_to_hf)


def _kind(head: str) -> str:
    return "sequence" if head in SEQUENCE_HEADS else head
