"""Fields of a checkpoint's config, read with their types checked; every complaint names the file."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from lowrank_jax.core.errors import UserError

Config = TypeVar("Config")


def number(values: Mapping[str, Any], name: str, kind: type, where: Any, default: Any = None) -> Any:
    """values[name] as an int or a float; an absent or null one is `default`.

    Raises:
      UserError: not a number, or not a whole one for int.
    """
    value = values.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or kind(value) != value:
        raise UserError(f"{where}: {name} must be {'a whole number' if kind is int else 'a number'}, not {value!r}")
    return kind(value)


def checked(where: Any, make: Callable[..., Config], **fields: Any) -> Config:
    """make(**fields), with `where` in front of its complaint.

    Raises:
      UserError: what the config's own check says.
    """
    try:
        return make(**fields)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
