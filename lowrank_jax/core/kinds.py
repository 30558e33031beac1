"""Whether a value from a file is of the kind that a dataclass's annotation names."""

import dataclasses
import types
import typing
from typing import Any

from lowrank_jax.core.ranges import is_number


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotation's kind; a whole number is a float too, a bool is no number.

    Args:
      hint: of plain values, Literal, Annotated, unions, and tuples of these.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return fits(value, args[0])
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in args)
    if origin is typing.Literal:
        return any(value == one and type(value) is type(one) for one in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else args
        return len(kinds) == len(value) and all(map(fits, value, kinds))
    if hint in (int, float):
        return is_number(value, whole=hint is int)
    return isinstance(value, hint)


def misfit(values: typing.Mapping[str, Any], cls: type) -> str | None:
    """The first of these fields of a dataclass whose value is of another kind; None where all fit."""
    hints = typing.get_type_hints(cls, include_extras=True)
    named = (field.name for field in dataclasses.fields(cls))
    return next((name for name in named if name in values and not fits(values[name], hints[name])), None)
