"""Fields of a checkpoint's config, checked for their types and read from old and new places; errors name the file.

A field that has an old and a new place, or two names, is read where transformers 5 reads it. Where the other place
contradicts it, a note names both.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from lowrank_jax.core.errors import UserError

Config = TypeVar("Config")
Notes = list[str]  # a line for each field with contradicting values
TEXTS = (  # fields of config.json that are names
    *("model_type", "hidden_act", "activation_function", "conv_act", "pooler_hidden_act", "position_embedding_type"),
    *("problem_type", "tokenizer_class"),
)
FULL = ("full_attention", "attention")  # layer_types' name, and the one before it


def number(
    values: Mapping[str, Any], name: str, kind: type, where: Any, default: Any = None, least: float | None = None
) -> Any:
    """values[name] as an int or a float; an absent or null one is `default`.

    Raises:
      UserError: not a number, or not a whole one for int, or less than `least`.
    """
    value = values.get(name)
    value = default if value is None else value
    wanted = "a whole number" if kind is int else "a number"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{where}: {name} must be {wanted}, not {value!r:.60}")
    try:
        fits = math.isfinite(value) and kind(value) == value
    except OverflowError:  # an int beyond a float's range
        fits = False
    if not fits:
        raise UserError(f"{where}: {name} must be {wanted}, not {str(value)[:60]}")
    if least is not None and value < least:
        raise UserError(f"{where}: {name} is {value}; it must be at least {least}")
    return kind(value)


def check_kinds(values: Mapping[str, Any], where: Any) -> None:
    """Refuses names in a config.json that are not strings; numbers and flags are checked where they are read.

    Raises:
      UserError: names the first such field.
    """
    for name in TEXTS:
        if not isinstance(values.get(name), str | None):
            raise UserError(f"{where}: {name} must be a string, not {values[name]!r}")
    named = values.get("architectures")
    if named is not None and not (isinstance(named, list) and all(isinstance(one, str) for one in named)):
        raise UserError(f"{where}: architectures must be a list of strings, not {named!r}")
    for place in ("rope_scaling", "rope_parameters"):
        kinds = section(values, place, where)
        if wrong := [name for name in ("rope_type", "type") if not isinstance(kinds.get(name), str | None)]:
            raise UserError(f"{where}: {place}.{wrong[0]} must be a string, not {kinds[wrong[0]]!r}")


def flag(values: Mapping[str, Any], name: str, where: Any, default: bool) -> bool:
    """values[name] as a bool; an absent or null one is `default`.

    Raises:
      UserError: anything else, such as the text "false".
    """
    value = values.get(name)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise UserError(f"{where}: {name} must be true or false, not {value!r}")
    return value


def section(values: Mapping[str, Any], name: str, where: Any) -> dict[str, Any]:
    """values[name] as an object; an absent or null one is empty.

    Raises:
      UserError: anything else.
    """
    value = values.get(name)
    value = {} if value is None else value
    if not isinstance(value, dict):
        raise UserError(f"{where}: {name} must be an object with named values, not {value!r}")
    return value


def chosen(where: Any, notes: Notes | None, *places: tuple[str, Any]) -> Any:
    """The first value that is set, of one field's (name, value) pairs; notes those that differ from it."""
    there = [(name, value) for name, value in places if value is not None]
    for name, value in there[1:]:
        if value != there[0][1] and notes is not None:
            taken = f"{there[0][0]} {there[0][1]!r}"
            notes.append(f"{where}: {taken} is read, as transformers 5 does, and {name} {value!r} is not")
    return there[0][1] if there else None


def renamed(values: Mapping[str, Any], names: Mapping[str, str], where: Any, notes: Notes | None) -> dict[str, Any]:
    """The values with `names` {own name: general name} under their own names; the general one takes precedence."""
    found = {own: chosen(where, notes, (general, values.get(general)), (own, values.get(own)))
             for own, general in names.items()}  # fmt: skip
    return {**values, **{own: value for own, value in found.items() if value is not None}}


def label_count(values: Mapping[str, Any], where: Any, notes: Notes | None) -> int:
    """Classes of a sequence head: num_labels, otherwise the length of id2label, otherwise 2."""
    by_name = len(section(values, "id2label", where)) or None
    count = chosen(where, notes, ("num_labels", values.get("num_labels")), ("the length of id2label", by_name))
    return number({"num_labels": count}, "num_labels", int, where, 2)


def layer_types(values: Mapping[str, Any], layers: int, where: Any) -> list[Any] | None:
    """layer_types; None where it is not set.

    Raises:
      UserError: it is not a list of one name a layer.
    """
    types = values.get("layer_types")
    if types is not None and (not isinstance(types, list) or len(types) != layers):
        raise UserError(f"{where}: layer_types must be a list of one name for each of the {layers} layers")
    return types


def refused_everywhere(
    values: Mapping[str, Any], layers: int, where: Any, notes: Notes | None, windows: bool = False
) -> dict[str, bool]:
    """Features that no model here has: {name: whether the config has it}.

    layer_types takes precedence over its old places, sliding_window and attention_chunk_size.

    Args:
      windows: whether the model has sliding windows, and reads layer_types and sliding_window itself.

    Raises:
      UserError: layer_types is not a list of one name a layer.
    """
    types = None if windows else layer_types(values, layers, where)
    found = {name: bool(values.get(name)) for name in ("quantization_config", "compression_config", "per_layer_config")}
    found["a nested text_config"] = values.get("text_config") is not None
    found["layer_types other than full_attention"] = any(kind not in FULL for kind in types or ())
    old = {name: values.get(name) for name in ("sliding_window", "attention_chunk_size")}
    if windows or not values.get("use_sliding_window", True):
        del old["sliding_window"]
    if types is None:
        return found | {name: value is not None for name, value in old.items()}
    for name, value in old.items():
        chosen(where, notes, ("layer_types", "full_attention"), (name, value))
    return found


def checked(where: Any, make: Callable[..., Config], **fields: Any) -> Config:
    """make(**fields), with `where` in front of its error.

    Raises:
      UserError: the config's own check fails.
    """
    try:
        return make(**fields)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
