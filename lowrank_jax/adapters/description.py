"""A plan's configurations as plain values, as adapter.json and reports have them, and back."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lowrank_jax.adapters.base import AdapterConfig, BottleneckConfig, MoraConfig, PrefixConfig
from lowrank_jax.adapters.plan import Plan
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.kinds import misfit
from lowrank_jax.core.paths import nearest

SECTIONS = {"mora": MoraConfig, "bottleneck": BottleneckConfig, "prefix": PrefixConfig}


def describe(plan: Plan) -> dict[str, Any] | list[dict[str, Any]]:
    """The plan's configuration as a dict, or a list of them where it has several; `read_configs` is the inverse."""
    values = [dataclasses.asdict(config) for config in plan.configs]
    return values[0] if len(values) == 1 else values


def read_configs(values: Any, where: str) -> tuple[AdapterConfig, ...]:
    """The configurations that `describe` wrote, after a trip through JSON, in which tuples are lists.

    Args:
      values: one mapping or a list of them; fields that are absent have their defaults.
      where: the file, for messages.

    Raises:
      UserError: a field that this code does not know, or a value of the wrong type.
    """
    return tuple(read_config(one, where) for one in (values if isinstance(values, list) else [values]))


def read_config(values: Mapping[str, Any], where: str) -> AdapterConfig:
    """One configuration; see `read_configs`."""
    fields = _fields(values, AdapterConfig, where)
    sections = {name: cls(**_fields(values.get(name, {}), cls, where)) for name, cls in SECTIONS.items()}
    return AdapterConfig(**{**fields, **sections})


def _fields(values: Any, cls: type, where: str) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: its config is {str(values)[:60]!r}, not an object; restore the file as written")
    known = {field.name for field in dataclasses.fields(cls)}
    if strange := sorted(values.keys() - known):
        close = nearest(strange[0], known) or sorted(known)
        raise UserError(f"{where}: unknown field {strange[0]!r} (near: {', '.join(close)}); use the code that wrote it")
    found = {name: _tuples(value) for name, value in values.items()}
    if wrong := misfit({name: value for name, value in found.items() if name not in SECTIONS}, cls):
        shown = str(found[wrong])[:60]
        raise UserError(f"{where}: {wrong} is {shown!r}, a value of the wrong type; restore the file as written")
    return found


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
