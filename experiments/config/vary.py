"""Finds the keys in which several configs differ, and each config's values of them: for trials and for sweeps."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.config.labels import derive
from experiments.config.plain import BOOKKEEPING, with_defaults, without

SEED = "seed"
LABELS = ("method", "rank", "variant", "stage")
# Keys that have no column of their own: the labels show them, and full fine-tuning and BitFit too.
TOLD = ("adapter", "adapter.method", "adapter.rank", "adapter.mora.compression")
KEPT = ("train.stop_at",)  # bookkeeping, but shown: a run that is stopped early has other scores


def varying(plains: Sequence[dict]) -> list[dict[str, Any]]:
    """For each plain config its values of the keys in which they differ: method and rank first, the seed last.

    Keys are named by their last part where that is unique: "rank", "learning_rate", "base" for base.name. A config
    that lacks a key has its default.
    """
    found = [_values(plain) for plain in plains]
    keys = list(dict.fromkeys(key for one in found for key in one))
    keys = [key for key in keys if any(one.get(key) != found[0].get(key) for one in found)]
    keys.sort(key=lambda key: key == SEED)
    last = [_last(key) for key in keys]
    names = {key: _last(key) if last.count(_last(key)) == 1 else key for key in keys}
    return [{names[key]: one.get(key) for key in keys} for one in found]


def seeds_alone(plains: Sequence[dict]) -> bool:
    """Whether configs differ in nothing but their seeds: only then is a median over all of them meaningful."""
    return not plains or set(varying(plains)[0]) <= {SEED}


def named(values: Mapping[str, Any]) -> str:
    """The values of one config from `varying` in words: "method mora, rank 8, learning_rate 0.003"."""
    return ", ".join(f"{key} {shown(value)}" for key, value in values.items())


def shown(value: Any) -> str:
    """A config's value in a table."""
    if isinstance(value, list):
        return "+".join(map(shown, value))
    return "-" if value in (None, "") else f"{value:g}" if isinstance(value, float) else str(value)


def _last(key: str) -> str:
    return key.removesuffix(".name").rpartition(".")[2]


def _values(plain: dict) -> dict[str, Any]:
    labels, ignored = derive(plain), [key for key in BOOKKEEPING if key not in KEPT]
    flat = _flat(without(with_defaults(plain), ignored))
    if isinstance(flat.get("trainable"), str):  # a list of rules has no label
        del flat["trainable"]
    return {name: labels.get(name) for name in LABELS} | {key: flat[key] for key in flat if key not in TOLD}


def _flat(node: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {path: node}
    return {
        key: value for name in sorted(node) for key, value in _flat(node[name], f"{path}.{name}".strip(".")).items()
    }
