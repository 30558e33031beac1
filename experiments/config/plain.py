"""The plain form of a config: JSON values, content hash and differences."""

import collections.abc
import dataclasses
import hashlib
import json
import math
import numbers
import os
import typing
from typing import Any

from experiments.config.sections import eval_type, experiment_types
from lowrank_jax.core.errors import UserError

# What a run is called, where it runs and what it writes down: none of it changes what is learned.
BOOKKEEPING = ("name", "labels", "tracking", "checkpoint", "mesh", "export") + (
    "train.log_every", "train.stop_at", "train.profile_steps", "task.data_dir", "data", "chosen", "place",
    "evals.*.data_dir",
)  # fmt: skip

MOST_BITS = 1_024  # of a whole number: larger ones do not fit in a float, and Python prints at most 4,300 digits


def to_plain(config: Any, where: str = "config") -> Any:
    """The JSON form of a config: nested dicts with sorted keys, lists, strings, finite numbers, booleans, None.

    Raises:
      UserError: a value has no JSON form.
    """
    if isinstance(config, str):
        check_text(config, where)
        return config
    if config is None or isinstance(config, bool):
        return config
    if isinstance(config, numbers.Integral):
        check_size(int(config), where)
        return int(config)
    if isinstance(config, numbers.Real):
        if not math.isfinite(config):
            raise UserError(f"{where}={config!r} is not a finite number; use None to turn a limit off")
        return float(config)
    if isinstance(config, os.PathLike):
        return os.fspath(config)
    if isinstance(config, list | tuple):
        return [to_plain(value, f"{where}[{i}]") for i, value in enumerate(config)]
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    if is_section(config):
        if wrong := [key for key in config if not isinstance(key, str)]:
            raise UserError(f"{where} has the key {wrong[0]!r}; keys must be strings")
        return {key: to_plain(config[key], f"{where}.{key}") for key in sorted(config)}
    raise UserError(f"{where}={config!r} cannot be written as JSON; use numbers, strings, booleans, lists or sections")


def check_size(number: int, where: str) -> None:
    """Refuses a whole number beyond a float's range.

    Raises:
      UserError: it has more than MOST_BITS bits.
    """
    if number.bit_length() > MOST_BITS:
        raise UserError(f"{where} is a whole number of {number.bit_length():,} bits; no key takes one")


def check_text(text: str, where: str) -> None:
    """Refuses a string that cannot be part of a file name, as any string of a config may become one.

    Raises:
      UserError: it has a null byte, or half of a surrogate pair.
    """
    try:
        os.fsencode(text)  # accepts what Python makes of bytes on the command line that are not UTF-8
    except UnicodeEncodeError:
        raise UserError(f"{where}={text[:80]!r} holds half of a surrogate pair; remove it") from None
    if "\0" in text:
        raise UserError(f"{where}={text[:80]!r} holds a null byte; remove it")


def config_hash(plain: dict, ignore: typing.Sequence[str] = BOOKKEEPING) -> str:
    """Content name of a plain config: 10 hex digits of the sha256 of what is left without the ignored paths."""
    text = json.dumps(_canonical(without(plain, ignore)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def content_hash(plain: dict) -> str:
    """`config_hash` of what differs from the defaults: a key added to the code later does not rename recorded runs."""
    bare = without(plain)
    types_ = _section_types(bare)
    for name, cls in types_.items():
        if isinstance(bare.get(name), dict):
            bare[name] = _without_defaults(bare[name], cls)
    if isinstance(further := bare.get("adapters"), list):
        bare["adapters"] = [_without_defaults(one, types_["adapter"]) for one in further]
    if isinstance(bare.get("evals"), dict):
        bare["evals"] = {name: _without_defaults(one, eval_type(one)) for name, one in bare["evals"].items()}
    return config_hash({name: value for name, value in bare.items() if value not in ({}, [])}, ())


def changes(plain_a: dict, plain_b: dict) -> list[str]:
    """`diff` of two configs without bookkeeping; a config that lacks a key has its default."""
    return diff(with_defaults(without(plain_a)), with_defaults(without(plain_b)))


def with_defaults(plain: dict) -> dict:
    """A plain config with the defaults of the keys and sections that were added since it was written."""
    filled = dict(plain)
    for name, cls in _section_types(plain).items():
        if isinstance(section := plain.get(name, {}), dict):
            filled[name] = _filled(section, cls)
    return filled


def _section_types(plain: dict) -> dict[str, type]:
    """Section -> dataclass, for "task" the one of its name. The config is unchecked and may be damaged."""
    types_ = experiment_types()
    tasks, task = types_.pop("task"), plain.get("task")
    name = task.get("name") if isinstance(task, dict) else None
    return {**types_, "task": tasks[name]} if isinstance(name, str) and name in tasks else types_


def _filled(section: dict, cls: type) -> dict:
    filled = dict(section)
    for field in dataclasses.fields(cls):
        if field.init and field.default is not dataclasses.MISSING:
            default, value = field.default, filled.setdefault(field.name, to_plain(field.default))
            if dataclasses.is_dataclass(default) and isinstance(value, dict):
                filled[field.name] = _filled(value, type(default))
    return filled


def _without_defaults(section: Any, cls: type) -> Any:
    if not isinstance(section, dict):
        return section
    fields = {field.name: field for field in dataclasses.fields(cls)}
    kept = {}
    for key, value in section.items():
        default = fields[key].default if key in fields else dataclasses.MISSING
        if dataclasses.is_dataclass(default) and isinstance(value, dict):
            value = _without_defaults(value, type(default))
            if not value:
                continue
        elif default is not dataclasses.MISSING and _canonical(to_plain(default)) == _canonical(value):
            continue
        kept[key] = value
    return kept


def without(plain: dict, ignore: typing.Sequence[str] = BOOKKEEPING) -> dict:
    """A copy of a plain config without the ignored dotted paths; "evals.*.key" is that key of every entry."""

    def copy(node, prefix, shown):
        if not isinstance(node, dict):
            return node
        kept = {}
        for key, value in node.items():
            each = f"{shown}*" if shown == "evals." else f"{shown}{key}"
            if f"{prefix}{key}" not in ignore and each not in ignore:
                kept[key] = copy(value, f"{prefix}{key}.", f"{each}.")
        return kept

    return copy(plain, "", "")


def diff(plain_a: dict, plain_b: dict) -> list[str]:
    """The differences of two plain configs, sorted by path: "optimizer.learning_rate: 0.001 -> 0.003"."""
    lines = []

    def show(side, key):
        return json.dumps(side[key]) if key in side else "absent"

    def walk(a, b, prefix):
        for key in sorted({*a, *b}):
            if isinstance(a.get(key), dict) and isinstance(b.get(key), dict):
                walk(a[key], b[key], f"{prefix}{key}.")
            elif key not in a or key not in b or json.dumps(_canonical(a[key])) != json.dumps(_canonical(b[key])):
                lines.append(f"{prefix}{key}: {show(a, key)} -> {show(b, key)}")

    walk(plain_a, plain_b, "")
    return lines


def _canonical(node: Any) -> Any:
    """1.0 and 1 are one number; keys sorted by the caller."""
    if isinstance(node, dict):
        return {key: _canonical(node[key]) for key in sorted(node)}
    if isinstance(node, list):
        return [_canonical(value) for value in node]
    return int(node) if isinstance(node, float) and node.is_integer() else node


def is_section(value: Any) -> typing.TypeGuard[collections.abc.Mapping]:
    """Whether a value is a mapping or a ConfigDict."""
    # A ConfigDict is not a Mapping, and ml_collections need not be installed to find that out.
    return isinstance(value, collections.abc.Mapping) or (hasattr(value, "items") and hasattr(value, "to_dict"))
