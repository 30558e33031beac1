"""Whether a value from a file has the type that a dataclass's annotation names."""

import dataclasses
import types
import typing
from typing import Any

from lowrank_jax.core.ranges import is_number


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has the type of an annotation; a whole number also fits a float, a bool fits neither.

    Args:
      hint: a plain type, Literal, Annotated, a union, or a tuple of these.
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
    """The first field of a dataclass whose value here has another type; None where all fit."""
    hints = typing.get_type_hints(cls, include_extras=True)
    named = (field.name for field in dataclasses.fields(cls))
    return next((name for name in named if name in values and not fits(values[name], hints[name])), None)
