"""PEFT's adapter_config.json: its fields, the modules that it names, and the features that are refused."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from lowrank_jax.adapters.base import ALL_LINEAR
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.patterns import check_pattern
from lowrank_jax.core.ranges import MOST
from lowrank_jax.interop.keymap import LAYER, Row

CONFIG, WEIGHTS, TORCH_WEIGHTS = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
Scheme = Literal["type1", "type2", "type3", "type4", "type6"]
# The MoRA fork's mora_type -> our name of the compression.
MORA_SCHEMES: dict[int, Scheme] = {1: "type1", 2: "type2", 3: "type3", 4: "type4", 6: "type6"}
# Values of init_lora_weights that change the base when the adapter is loaded, and that can be computed again here.
STARTS: dict[str, Literal["pissa", "olora"]] = {"pissa": "pissa", "olora": "olora"}
PLAIN_STARTS = ("gaussian", "orthogonal", "eva", True, False, None)  # those that leave the base as it is
MODULE_TEMPLATE = r"(.*\.)?({})$"  # as PEFT matches a pattern of ranks or alphas
LAYERS_TEMPLATE = r"(?:^|.*?\.){}\.(?P<layer>\d+)\."
CLASSIFIER = "classifier."  # the head of every encoder's ForSequenceClassification
HEAD = "lm_head"  # the output layer of every decoder; where it is tied, no row of the key table
ENCODERS = {"bert.": "Bert", "roberta.": "Roberta", "deberta.": "DebertaV2"}  # key prefix with a head: HF's name
# PEFT's kinds of virtual tokens -> our method; `peft.prompts` reads them.
PROMPT_METHODS: dict[str, Literal["preembed", "prefix"]] = {"PROMPT_TUNING": "preembed", "PREFIX_TUNING": "prefix"}
# Fields that do not change a trained adapter's output, and those that are read below.
KNOWN = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision"),
    *("task_type", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "rank_pattern"),
    *("alpha_pattern", "layers_to_transform", "layers_pattern", "bias", "modules_to_save", "fan_in_fan_out"),
    *("use_rslora", "use_dora", "use_mora", "mora_type", "init_lora_weights", "loftq_config", "eva_config"),
    *("corda_config", "lora_ga_config", "megatron_config", "megatron_core", "qalora_group_size", "runtime_config"),
    *("ensure_weight_tying", "velora_config", "merge_weights", "trainable_token_indices"),
}


@dataclasses.dataclass(frozen=True)
class HFModule:
    """One linear module, or embedding, of the Hugging Face model.

    Attributes:
      name: e.g. "model.layers.0.self_attn.q_proj".
      parts: our modules whose outputs it concatenates: one, or query, key and value in GPT-2's c_attn.
      layer: index into the stacked leaves, None outside a stack.
      table: it is an embedding.
    """

    name: str
    parts: tuple[str, ...]
    layer: int | None
    table: bool = False

    @property
    def weights(self) -> tuple[str, ...]:
        """Paths below "params" of the parts' weights."""
        return tuple(f"{part}/{'embedding' if self.table else 'kernel'}" for part in self.parts)


def hf_modules(rows: Sequence[Row], layers: int, tables: bool = False) -> dict[str, HFModule]:
    """The linear modules of an architecture by name, from its key table (`llama.hf_table` and its like).

    Args:
      tables: include its embeddings.
    """
    parts: dict[str, list[str]] = {}
    for row in rows:
        if row.target.endswith("/kernel") and row.source.endswith(".weight") and len(row.shape) == 2:
            parts.setdefault(row.source.removesuffix(".weight"), []).append(row.target.removesuffix("/kernel"))
    found = {}
    for source, ours in parts.items():
        for layer in range(layers) if LAYER in source else (None,):
            name = source.replace(LAYER, str(layer))
            found[name] = HFModule(name, tuple(ours), layer)
    for row in rows if tables else ():
        if row.target.endswith("/embedding") and row.source.endswith(".weight") and LAYER not in row.source:
            name = row.source.removesuffix(".weight")
            found[name] = HFModule(name, (row.target.removesuffix("/embedding"),), None, table=True)
    return found


def task_of(rows: Sequence[Row]) -> tuple[str | None, str | None]:
    """(PEFT's task_type, transformers' class where that is None) of an architecture, from its key table."""
    sources = [row.source for row in rows]
    kind = next((name for prefix, name in ENCODERS.items() if any(s.startswith(prefix) for s in sources)), "")
    if any(source.startswith(CLASSIFIER) for source in sources):
        return "SEQ_CLS", f"{kind}ForSequenceClassification"
    if not any("embeddings.word_embeddings" in source for source in sources):
        return "CAUSAL_LM", None
    return (None, f"{kind}ForMaskedLM") if kind else ("FEATURE_EXTRACTION", None)


@dataclasses.dataclass(frozen=True)
class PeftConfig:
    """The parsed file; fields under PEFT's names, but for `method` and `start`."""

    method: Literal["lora", "mora", "dora"]
    r: int
    lora_alpha: float
    lora_dropout: float
    use_rslora: bool
    target_modules: str | tuple[str, ...]
    exclude_modules: str | tuple[str, ...]
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    layers_to_transform: tuple[int, ...] | None
    layers_pattern: tuple[str, ...]
    bias: str
    modules_to_save: tuple[str, ...]
    start: Literal["kaiming_uniform", "pissa", "olora"]
    mora_type: int
    base: str
    task_type: str = ""
    ensure_weight_tying: bool = False
    token_rows: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)  # {end of a table's name: rows}
    input_rows: tuple[int, ...] | None = None  # of the input embedding, whatever its name

    def rank(self, name: str) -> int:
        """The rank of a module: that of the first pattern that matches the end of its name, otherwise r."""
        return _first(self.rank_pattern, name, self.r)

    def scale(self, name: str) -> float:
        """alpha / r or alpha / sqrt(r) of a module; 1 for MoRA, which ignores alpha."""
        rank = self.rank(name)
        alpha = _first(self.alpha_pattern, name, self.lora_alpha)
        return 1.0 if self.method == "mora" else alpha / (rank**0.5 if self.use_rslora else rank)

    def adapts(self, name: str) -> bool:
        """Whether PEFT puts an adapter on the module of this name."""
        if _ends(self.exclude_modules, name) or self._holds(name):
            return False
        if self.all_linear:  # of linear modules; PEFT leaves a classifier out where the task says so
            return name != HEAD and not (self.task_type == "SEQ_CLS" and f"{name}." == CLASSIFIER)
        if not _ends(self.target_modules, name):
            return False
        if self.layers_to_transform is None or isinstance(self.target_modules, str):
            return True
        patterns = [LAYERS_TEMPLATE.format(p) for p in self.layers_pattern] or [r".*?\.[^.]*\.(?P<layer>\d+)\."]
        found = next((match for p in patterns if (match := re.match(p, name))), None)
        return found is not None and int(found.group("layer")) in self.layers_to_transform

    @property
    def all_linear(self) -> bool:
        """Whether target_modules is PEFT's shorthand for every linear module but the output layer."""
        return isinstance(self.target_modules, str) and self.target_modules.lower() == ALL_LINEAR

    def saves(self, name: str) -> bool:
        """Whether the module of this name, or one that contains it, is saved whole.

        PEFT compares the last letters of a name here ("norm" is also "final_norm"), and whole parts of a name where it
        says what is adapted.
        """
        return any(path.endswith(m) for path in _paths(name) for m in self.modules_to_save)

    def rows_of(self, name: str, first: bool) -> tuple[int, ...] | None:
        """The only rows of the table of this name that are trained; None where no rows are named.

        Args:
          first: it is the input embedding.
        """
        if first and self.input_rows is not None:
            return self.input_rows
        return next((rows for end, rows in self.token_rows.items() if name.endswith(end)), None)

    def _holds(self, name: str) -> bool:
        return any(path == m or path.endswith(f".{m}") for path in _paths(name) for m in self.modules_to_save)


def parse_config(values: dict[str, Any], where: str) -> PeftConfig:
    """adapter_config.json as a PeftConfig.

    Raises:
      UserError: another method than LoRA, rsLoRA, DoRA or MoRA, a field of the wrong type, or an unsupported feature.
    """
    kind = values.get("peft_type")
    if kind != "LORA":
        raise UserError(
            f"{where}: peft_type {kind!r} is not read; known: LORA (with use_rslora, use_dora, use_mora), "
            f"{', '.join(PROMPT_METHODS)}"
        )
    extra = [name for name, value in values.items() if name not in KNOWN and value not in (None, False, [], {}, ())]
    if extra:
        raise UserError(f"{where}: {', '.join(sorted(extra))} is not supported here; merge the adapter with PEFT first")
    mora = bool(values.get("use_mora"))
    if mora and (values.get("use_dora") or values.get("use_rslora")):
        raise UserError(f"{where}: use_mora with use_dora or use_rslora names two methods; keep one")
    start = values.get("init_lora_weights", True)
    if not isinstance(start, str | bool | None) or (start not in STARTS and start not in PLAIN_STARTS):
        raise UserError(f"{where}: init_lora_weights {start!r} changes the base in a way that is not repeated here")
    bias = values.get("bias", "none")
    if bias not in ("none", "all", "lora_only"):
        raise UserError(f"{where}: bias {bias!r} is not one of none, all, lora_only")
    layers = values.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers
    if layers and not (isinstance(layers, list) and all(type(layer) is int for layer in layers)):
        raise UserError(f"{where}: layers_to_transform is {layers!r}; it must be whole numbers")
    mora_type = values.get("mora_type", 1) if mora else 0
    if mora and (type(mora_type) is not int or mora_type not in MORA_SCHEMES):
        raise UserError(
            f"{where}: mora_type {mora_type!r} has no forward pass in the fork; known: {list(MORA_SCHEMES)}"
        )
    targets = values.get("target_modules")
    if not targets or not isinstance(targets, str | list):
        raise UserError(f"{where}: target_modules is {targets!r}; it must name the adapted modules")
    _check_names(values, where)
    tokens = values.get("trainable_token_indices")
    dropout = values.get("lora_dropout") or 0.0
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise UserError(f"{where}: lora_dropout is {dropout!r}; it must lie in [0, 1)")
    return PeftConfig(
        method="mora" if mora else "dora" if values.get("use_dora") else "lora",
        r=_positive(values, "r", int, where),
        lora_alpha=_positive(values, "lora_alpha", float, where),
        lora_dropout=float(dropout),
        use_rslora=bool(values.get("use_rslora")),
        target_modules=_names(targets),
        exclude_modules=_names(values.get("exclude_modules") or ()),
        rank_pattern=_each_positive(values, "rank_pattern", int, where),
        alpha_pattern=_each_positive(values, "alpha_pattern", float, where),
        layers_to_transform=tuple(layers) if layers else None,
        layers_pattern=tuple(_listed(values.get("layers_pattern") or ())),
        bias=bias,
        modules_to_save=tuple(_listed(values.get("modules_to_save") or ())),
        start=STARTS.get(str(start), "kaiming_uniform"),
        mora_type=mora_type,
        base=str(values.get("base_model_name_or_path") or ""),
        task_type=str(values.get("task_type") or ""),
        ensure_weight_tying=bool(values.get("ensure_weight_tying")),
        token_rows={name: _rows(rows, where) for name, rows in tokens.items()} if isinstance(tokens, dict) else {},
        input_rows=None if isinstance(tokens, dict | None) else _rows(tokens, where),
    )


def _rows(value: Any, where: str) -> tuple[int, ...]:
    """One table's entry of trainable_token_indices."""
    whole = isinstance(value, list) and all(type(row) is int and row >= 0 for row in value)
    if not whole or not value or len(set(value)) < len(value):
        raise UserError(f"{where}: trainable_token_indices has {value!r}; it must be different ids of tokens")
    return tuple(value)


def _paths(name: str) -> list[str]:
    """The names of a module and of those that contain it."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _check_names(values: dict[str, Any], where: str) -> None:
    """Refuses names and patterns that are not strings, and patterns that are not regular expressions."""
    patterns: list[tuple[str, str]] = []
    for name in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern"):
        value = values.get(name) or ()
        if not isinstance(value, str) and not all(isinstance(one, str) for one in _iterable(value)):
            raise UserError(f"{where}: {name} is {value!r}; it must be strings")
        whole = name in ("target_modules", "exclude_modules")  # a string is a pattern, a list has names
        if name != "modules_to_save" and (isinstance(value, str) or not whole):
            patterns += [(name, one) for one in _listed(value)]
    for name in ("rank_pattern", "alpha_pattern"):
        value = values.get(name) or {}
        if not isinstance(value, dict):
            raise UserError(f"{where}: {name} is {value!r}; it must be an object with a value for each pattern")
        patterns += [(name, pattern) for pattern in value]
    templates = {"layers_pattern": LAYERS_TEMPLATE, "rank_pattern": MODULE_TEMPLATE, "alpha_pattern": MODULE_TEMPLATE}
    for name, pattern in patterns:
        check_pattern(f"{where}: {name} entry", pattern, templates.get(name, "{}"))


def _iterable(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else (value,)


def short_names(adapted: Sequence[str], known: Iterable[str]) -> list[str]:
    """target_modules for these modules: their last names if those select no other module; full names otherwise."""
    ends = sorted({name.rpartition(".")[2] for name in adapted})
    selected = {name for name in known if _ends(tuple(ends), name)}
    # Modules outside the table may be called "dense" too (poolers, heads).
    return ends if selected == set(adapted) and "dense" not in ends else sorted(adapted)


def _ends(names: str | tuple[str, ...], name: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, name) is not None
    return any(name == n or name.endswith(f".{n}") for n in names)


def _first(patterns: dict[str, Any], name: str, default: Any) -> Any:
    return next((value for key, value in patterns.items() if re.match(MODULE_TEMPLATE.format(key), name)), default)


def _names(value: Any) -> str | tuple[str, ...]:
    return value if isinstance(value, str) else tuple(value)


def _listed(value: Any) -> Sequence[str]:
    return [value] if isinstance(value, str) else value


def _each_positive(values: dict[str, Any], name: str, kind: type, where: str) -> dict[str, Any]:
    given = values.get(name) or {}
    return {pattern: _positive(given, pattern, kind, f"{where}: {name}") for pattern in given}


def _positive(values: dict[str, Any], name: str, kind: type, where: str) -> Any:
    value = values.get(name)
    fits = False
    if isinstance(value, int | float) and not isinstance(value, bool):
        fits = 0 < value <= MOST and kind(value) == value  # larger ones are no rank, and may not fit in a float
    if not fits:
        whole = "a whole number" if kind is int else "a number"
        raise UserError(f"{where}: {name} is {value!r}; it must be {whole} above 0, and at most {MOST}")
    return kind(value)  # pyright: ignore[reportArgumentType] it fits
