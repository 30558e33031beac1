"""The labels of a run, derived from its config, for run names, tables and W&B."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lowrank_jax.core.errors import UserError

STAGE = "full"  # of a single run, and of a grid of one stage
# Methods that are LoRA with one other setting. A run is called rsLoRA only if its labels say so, as recorded runs with
# that scaling are called "lora".
LORA_PLUS, ASYLORA, RSLORA = "lora+", "asylora", "rslora"
METHODS_OF_RULES = {"full": "fft"}  # `trainable` -> method, where they differ (not for bitfit, head, ft-top2)
ADAPTED = "adapters"
# Of LoRA's Table 5: W_q, W_k, W_v, W_o.
LETTERS = {"query": "q", "key": "k", "value": "v", "attention/out": "o"}
PLAIN_TARGETS = ("query", "value")
# Methods without a rank, whose variant says how many tokens stand before and after a prompt, with what they add to the
# name of another family that they stand beside ("lora+pe"; Hu et al., appendix E); and the default of prefix.tokens.
PREFIX_METHODS, PREFIX_TOKENS = {"preembed": "pe", "prelayer": "pl", "prefix": "prefix"}, 8
FAMILYS_START = "family"  # default of prefix.init
SQUARES = ("mora", "remora")  # methods with a compression
PLAIN_COMPRESSIONS = ("sharing", "type1")  # one reading, two names
NOTHING_DROPPED = "drop0"  # AdapterDrop of no layer, which the config alone tells from a plain bottleneck
TAG_LENGTH = 64  # W&B refuses longer ones
# Labels that are strings, and labels that are whole numbers.
TEXTS = ("method", "scale", "setting", "model", "task", "stage", "variant", "protocol", "reading")
COUNTS = ("rank", "seq_len")
BENCH = "bench"  # its labels describe a step, not a run


def derive(plain: Mapping[str, Any], stage: str | None = None) -> dict[str, Any]:
    """The labels of a plain config: {"method", "rank", "stage", ...}, and further ones of its `labels`.

    A config keeps in its `labels` what nothing else in it says: scale, setting, model (its base may be a folder),
    protocol and reading (sets of numbers, by name), AdapterDrop of no layer (the variant "drop0"), and the method
    where `trainable` is a list of rules.

    Args:
      plain: as `plain.to_plain` gives it.
      stage: of the grid's cell; by default what the config's labels say, "full" where they say nothing.
    """
    kept = dict(_section(plain, "labels", "config"))
    for name in TEXTS:
        if not isinstance(kept.get(name), str | None):
            raise UserError(f"config.labels.{name}={kept[name]!r} is no string; tables compare it as one")
    for name in COUNTS:
        if kept.get(name) is not None and not (type(kept[name]) is int and kept[name] > 0):
            raise UserError(f"config.labels.{name}={kept[name]!r} is no whole number above 0")
    if plain.get("experiment") == BENCH:
        return {name: value for name, value in kept.items() if name != "stage"}
    adapter, task = _section(plain, "adapter", "config"), _section(plain, "task", "config")
    method, adapts = _method(plain.get("trainable", ADAPTED), adapter, kept.get("method"))
    if adapts and method == "lora":
        method = _kind_of_lora(plain, adapter, kept.get("method"))
    beside = _beside(plain) if adapts else []
    if adapts and _section(plain, "restart", "config").get("every"):
        method = f"re{method}"
    derived = {
        "method": "+".join([str(method), *(PREFIX_METHODS[one["method"]] for one in beside)]) if beside else method,
        "rank": adapter.get("rank") if adapts and method not in PREFIX_METHODS else None,
        "stage": stage or kept.get("stage") or STAGE,
    }
    given = kept.pop("variant", None)
    # A benchmark of several tasks compares several variants of MoRA, and names each; elsewhere the plain one has none.
    benchmark = task.get("task")
    words = [_variant(adapter, bool(benchmark)) if adapts else "", *map(_tokens, beside)]
    words += ["frozen A"] if method == ASYLORA and not isinstance(plain.get("trainable", ADAPTED), str) else []
    variant = " ".join(filter(None, words))
    if given == NOTHING_DROPPED and not variant:
        variant = given
    if benchmark:
        derived |= {"task": benchmark, "variant": variant}
    elif variant:
        derived["variant"] = variant
    return dict(sorted((kept | derived).items()))


def with_labels(plain: dict, stage: str | None = None) -> dict:
    """The plain config with its derived labels."""
    return {**plain, "labels": derive(plain, stage)}


def methods_apart(labels: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names for the methods of several runs, with their variants: "mora rotation".

    MoRA's plain compression, which labels leave out, is named where another variant of the method is in the list.
    """
    methods = [str(one.get("method") or "-") for one in labels]
    variants = [one.get("variant") or "" for one in labels]
    several = {method for method, variant in zip(methods, variants, strict=True) if variant}
    return [
        f"{method} {variant or (PLAIN_COMPRESSIONS[0] if method in SQUARES and method in several else '')}".strip()
        for method, variant in zip(methods, variants, strict=True)
    ]


def tags(plain: Mapping[str, Any]) -> tuple[str, ...]:
    """W&B's tags of a run: the user's own `tracking.tags`, then method, variant, rank, rate, seed, task and base."""
    labels, task = derive(plain), plain.get("task") or {}
    base = Path((plain.get("base") or {}).get("name") or "").name  # a base may be a folder
    rank = None if labels["rank"] is None else f"rank {labels['rank']}"
    rate = (plain.get("optimizer") or {}).get("learning_rate")
    rate = f"rate {rate:g}" if isinstance(rate, int | float) else None
    seed = f"seed {plain.get('seed', 0)}"
    found = (labels["method"], labels.get("variant"), rank, rate, seed, labels.get("task") or task.get("name"), base)
    own = (plain.get("tracking") or {}).get("tags") or ()
    return tuple(dict.fromkeys([*own, *(word[:TAG_LENGTH] for word in found if word)]))


def _section(holder: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    """A section of the config, {} where it is absent; a value that is not a section is refused."""
    value = holder.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise UserError(f"{where}.{name}={value!r} is not a section; give it keys and values")
    return value or {}


def _method(trainable: Any, adapter: Mapping[str, Any], kept: str | None) -> tuple[str | None, bool]:
    """The method's name, and whether it is a family of adapters."""
    family = adapter.get("method")
    family = None if family == "none" else family
    if not isinstance(trainable, str):  # a list of rules, which only the config's labels can name
        return family or kept, family is not None
    rule = trainable.removesuffix("+head")
    if rule != ADAPTED:
        return METHODS_OF_RULES.get(rule, rule), False
    return family or kept, family is not None


def _kind_of_lora(plain: Mapping[str, Any], adapter: Mapping[str, Any], kept: str | None) -> str:
    """ "lora+" with a rate of its own for B, "asylora" with an orthonormal A, "rslora" by labels and scaling."""
    if _section(plain, "optimizer", "config").get("multipliers"):
        return LORA_PLUS
    if str(adapter.get("init")).startswith(ASYLORA):
        return ASYLORA
    return RSLORA if kept == RSLORA == adapter.get("scaling") else "lora"


def _beside(plain: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The prefix methods among a run's further adapters."""
    further = plain.get("adapters") or ()
    sections = [one for one in further if isinstance(one, Mapping)] if isinstance(further, list | tuple) else []
    return [one for one in sections if one.get("method") in PREFIX_METHODS]


def _tokens(adapter: Mapping[str, Any]) -> str:
    """ "p8i4": eight prefix tokens, four infix tokens; "p8i4 states": also where they start, if not as by default."""
    prefix = _section(adapter, "prefix", "config.adapter")
    start = prefix.get("init", FAMILYS_START)
    numbers = f"p{prefix.get('tokens', PREFIX_TOKENS)}i{prefix.get('infix', 0)}"
    return numbers if start == FAMILYS_START else f"{numbers} {start}"


def _variant(adapter: Mapping[str, Any], all_named: bool) -> str:
    """How a row differs from the family's plain one: "rotation", "q+k", "drop5"."""
    words = []
    compression = _section(adapter, "mora", "config.adapter").get("compression", PLAIN_COMPRESSIONS[0])
    if adapter["method"] == "mora" and (all_named or compression not in PLAIN_COMPRESSIONS):
        words.append(compression)
    if adapter["method"] in PREFIX_METHODS:
        words.append(_tokens(adapter))
    if not all_named:
        return " ".join(words)
    bottleneck = _section(adapter, "bottleneck", "config.adapter").get("drop_layers")
    targets = adapter.get("targets") or PLAIN_TARGETS
    if not isinstance(targets, list | tuple) or not all(isinstance(name, str) for name in targets):
        raise UserError(f"config.adapter.targets={targets!r} is no list of strings")
    targets = tuple(targets)
    if adapter["method"] in ("lora", "mora", "dora") and targets != PLAIN_TARGETS:
        words.append("+".join(LETTERS.get(name, name) for name in targets))
    return " ".join([*words, *([f"drop{bottleneck}"] if bottleneck else [])])
