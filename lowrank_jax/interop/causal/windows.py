"""Reads and writes sliding windows in HF's config.json: one for all layers, or by layer_types."""

from collections.abc import Mapping, Sequence
from typing import Any

from lowrank_jax.core.errors import UserError
from lowrank_jax.interop.causal.rope import LOCAL
from lowrank_jax.interop.fields import FULL, Notes, chosen, layer_types, number

Values = Mapping[str, Any]


def everywhere(values: Values, layers: int, where: Any, notes: Notes | None) -> dict[str, Any]:
    """LayerKinds' fields where sliding_window, if set, holds for all layers; layer_types may only repeat that.

    Raises:
      UserError: layer_types has several names.
    """
    types, size = has_window(values, layers, where), _size(values, where)
    if types and len(set(types)) > 1:
        raise UserError(f"{where}: layer_types that differ are not supported by this model; it has one window for all")
    if types and types[0] != (size is not None):
        chosen(where, notes, ("sliding_window", size or "null"), ("layer_types", values["layer_types"][0]))
    return {"sliding_window": size}


def by_layer(values: Values, default: Sequence[bool], where: Any) -> dict[str, Any]:
    """LayerKinds' fields of a model where layer_types, or otherwise `default`, says which layers have the window.

    Raises:
      UserError: a layer has the window, and sliding_window is not set.
    """
    local = has_window(values, len(default), where) or tuple(default)
    size = _size(values, where)
    if any(local) and size is None:
        raise UserError(f"{where}: layer_types names {LOCAL}, and sliding_window is not set or switched off; set it")
    return {"sliding_window": size, "local": local} if any(local) else {}


def has_window(values: Values, layers: int, where: Any) -> tuple[bool, ...]:
    """For each layer whether it has the window, by layer_types; empty where that is not set.

    Raises:
      UserError: layer_types is not a list of one known name a layer.
    """
    types = layer_types(values, layers, where)
    if types is None:
        return ()
    if unknown := sorted({str(kind) for kind in types if kind not in (*FULL, LOCAL)}):
        raise UserError(f"{where}: layer_types names {', '.join(unknown)}; known: {FULL[0]}, {LOCAL}")
    return tuple(kind == LOCAL for kind in types)


def to_hf(local: Sequence[bool], size: int | None) -> dict[str, Any]:
    """sliding_window and layer_types."""
    return {"sliding_window": size, "layer_types": [LOCAL if one else FULL[0] for one in local]}


def _size(values: Values, where: Any) -> int | None:
    return None if values.get("sliding_window") is None else number(values, "sliding_window", int, where)
