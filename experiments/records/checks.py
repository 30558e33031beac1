"""Checks a run's record: the types of the fields that the tables and a resumed run read."""

import functools
import sys
from collections.abc import Callable
from typing import Any

from experiments.config.labels import TEXTS as TEXTS_OF_LABELS
from experiments.config.sections import SECTIONS
from lowrank_jax.core.errors import UserError

LARGEST = 1e100  # sums, squares and percentages of such numbers are finite too
CHOICES = ("task.seq_len", "train.batch_size", "train.steps")  # keys of a config that a 0 leaves to the data


def check_record(record: dict[str, Any], where: str, remedy: str) -> None:
    """Refuses a record with a field of another type than a run writes.

    Args:
      record: with a status.
      where, remedy: the file and what to do about it, for the message.

    Raises:
      UserError: names the first such field.
    """
    for name, (fits, wanted) in FIELDS.items():
        if name in record and not fits(record[name]):
            found = f"its {name} is {_short(record[name])}, not {wanted}"
            raise UserError(f"{where} is no record of a run: {found}; {remedy}")
    labels = record.get("labels") or {}
    if wrong := [name for name in TEXTS_OF_LABELS if not isinstance(labels.get(name), str | None)]:
        found = f"its labels.{wrong[0]} is {_short(labels[wrong[0]])}, not a string"
        raise UserError(f"{where} is no record of a run: {found}; {remedy}")
    if labels.get("rank") is not None and not _is_whole(labels["rank"]):
        found = f"its labels.rank is {_short(labels['rank'])}, not a whole number"
        raise UserError(f"{where} is no record of a run: {found}; {remedy}")
    if fault := _config_fault(record.get("config") or {}):
        raise UserError(f"{where} is no record of a run: its config.{fault}; {remedy}")


def check_chosen(value: Any, where: str, remedy: str) -> None:
    """Refuses a damaged record of the values that the data decided; None, where there is no record, passes.

    Raises:
      UserError: names the first unknown key, or the first value that is not a whole number above 0.
    """
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{where}: its chosen is {_short(value)}, not an object; {remedy}")
    for key, one in (value or {}).items():
        if key not in CHOICES:
            raise UserError(f"{where}: its chosen has {_short(key)}, which is none of {', '.join(CHOICES)}; {remedy}")
        if not (_is_whole(one) and one > 0):
            raise UserError(f"{where}: its chosen.{key} is {_short(one)}, not a whole number above 0; {remedy}")


def is_number(value: Any) -> bool:
    """Whether it is a number that fits in a float."""
    if isinstance(value, float):  # most of a record's values
        return True
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_finite(value: Any) -> bool:
    """Whether it is a number that tables can compute with: neither NaN nor infinite, and no larger than LARGEST."""
    return is_number(value) and abs(value) <= LARGEST


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


_number_or_none = _or_none(is_number)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and is_number(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | bool) or is_number(value)


def _is_section(value: Any) -> bool:
    return isinstance(value, dict)


def _values(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


def _items(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and _is_whole(value[0]) and _number_or_none(value[1])


def _is_evaluation(value: Any) -> bool:
    return _values(_number_or_none)(value) and _is_whole(value.get("step"))


def _is_rise(value: Any) -> bool:
    return _values(is_finite)(value) and "rise" in value


_PLAIN_OR_LIST = lambda value: _is_plain(value) or _items(_is_plain)(value)  # noqa: E731
FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (_is_text, "a string"),
    "status": (_is_text, "a string"),
    "labels": (_values(_PLAIN_OR_LIST), "an object of plain values"),
    "config": (_is_section, "an object"),
    "environment": (_is_section, "an object"),
    "wall_seconds": (_number_or_none, "a number"),
    "train_seconds": (_number_or_none, "a number"),
    "compile_seconds": (_number_or_none, "a number"),
    "parameters": (_values(_is_whole), "an object of whole numbers"),
    "evaluations": (_items(_is_evaluation), "a list of objects with a step and numbers"),
    "losses": (_items(_is_point), "a list of [step, loss]"),
    "message": (_is_text, "a string"),
    "notes": (_items(_is_text), "a list of strings"),
    "missing": (_values(_is_text), "an object of strings"),
    "forgetting": (_values(_is_rise), "an object of objects of numbers with a rise"),
    "best": (_values(_number_or_none), "an object of numbers"),
    "base": (_values(_is_text), "an object of strings"),
    "seq_len": (_or_none(_is_whole), "a whole number"),
    "together": (_is_whole, "a whole number"),
}
# Values of a record's config that tables and a resumed run compute with.
NUMBERS = ("seed", "optimizer.learning_rate", "train.steps", "train.stop_at", "train.epochs",
           "train.batch_size", "task.seq_len")  # fmt: skip
TEXTS = ("experiment", "base.name", "base.quantize", "task.name", "adapter.mora.compression")
SECTIONS_OF_ADAPTER = ("adapter.mora", "adapter.bottleneck")
LISTS = ("adapter.targets",)  # of texts
TEXT_OR_LIST = ("task.path",)


def _config_fault(config: dict[str, Any]) -> str:
    """What is wrong with the parts of a record's config that are read; "" for nothing."""
    for name in (*SECTIONS, "task", "labels", "evals"):
        if config.get(name) is not None and not isinstance(config[name], dict):
            return f"{name} is {_short(config[name])}, not an object"
    for paths, fits, wanted in (
        (NUMBERS, is_number, "a number"),
        (SECTIONS_OF_ADAPTER, _is_section, "an object"),
        (TEXTS, _is_text, "a string"),
        (LISTS, _items(_is_text), "a list of strings"),
        (TEXT_OR_LIST, lambda value: _is_text(value) or _items(_is_text)(value), "a string or a list of strings"),
    ):
        for path in paths:
            *sections, key = path.split(".")
            value = functools.reduce(lambda node, name: node.get(name) or {}, sections, config).get(key)
            if value is not None and not fits(value):
                return f"{path} is {_short(value)}, not {wanted}"
    return ""


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or is_number(value) else "a whole number of many digits"
    return text if len(text) <= 60 else f"{text[:60]}..."
