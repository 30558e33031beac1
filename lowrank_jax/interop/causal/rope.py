"""Reads the rotary fields of HF's config.json, from old and new places and in both spellings, and writes them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lowrank_jax.core.errors import UserError
from lowrank_jax.interop.fields import Notes, chosen, flag, number, section
from lowrank_jax.models.llama_config import LlamaConfig
from lowrank_jax.models.parts.rotary import SCALINGS, DynamicScaling, LongRopeScaling, RopeScaling

WHOLE, LOCAL = "full_attention", "sliding_attention"  # layer types with rotations of their own
OLD_LENGTH = "original_max_position_embeddings"
Values = Mapping[str, Any]


def rope(values: Values, where: Any, notes: Notes | None, theta: float = 1e4, rename: Values | None = None) -> Values:
    """LlamaConfig's rotary fields and the positions, from all their places, as transformers 5 reads them.

    A rope_scaling that is not empty is used, with the top level's rope_theta, and rope_parameters is ignored. Within
    it, rope_theta and partial_rotary_factor take precedence over those of the top level, and rope_type over type; but
    the top level's original_max_position_embeddings takes precedence over the one within, and max_position_embeddings
    replaces both where they are missing.

    Args:
      theta: the family's default.
      rename: {rope_type in the file: the rope_type that it means in this family}.

    Raises:
      UserError: parameters that differ by layer type; an unknown or incomplete scaling.
    """
    found = flat(values, where, notes, theta)
    kind = found["rope_type"]
    return {
        "rope_theta": number(found, "rope_theta", float, where),
        "partial_rotary_factor": number(found, "partial_rotary_factor", float, where),
        **_scaling({**found, "rope_type": (rename or {}).get(kind, kind)}, values, where),
    }


def flat(values: Values, where: Any, notes: Notes | None, theta: float = 1e4) -> dict[str, Any]:
    """The rotary fields that hold for all layers, under HF's names; see `rope`."""
    parts = {name: section(values, name, where) for name in ("rope_parameters", "rope_scaling")}
    for name, part in parts.items():
        if nested := [kind for kind, value in part.items() if isinstance(value, dict)]:
            raise UserError(
                f"{where}: {name} differs by layer type ({', '.join(nested)}), and this model rotates all layers "
                "alike; choose a base without it"
            )
    if not parts["rope_scaling"]:
        return _whole_rope(parts["rope_parameters"], "rope_parameters", values, where, notes, theta)
    if parts["rope_parameters"]:
        new, old = (_whole_rope(part, name, values, where, None, theta) for name, part in parts.items())
        for name in sorted(old.keys() & new.keys()):
            chosen(where, notes, (f"rope_scaling.{name}", old[name]), (f"rope_parameters.{name}", new[name]))
    return _whole_rope(parts["rope_scaling"], "rope_scaling", values, where, notes, theta)


def by_layer_type(
    values: Values, where: Any, notes: Notes | None, theta: float, local_name: str, local_theta: float
) -> Values:
    """As `rope`, with "local_theta" for families whose layers with a window have a rotary base of their own, unscaled.

    rope_parameters has an object for each layer type; rope_scaling, where it stands too, takes precedence for the
    layers without a window.

    Args:
      theta, local_theta: the family's defaults.
      local_name: the second one's field in the older spelling; "" where it has none.

    Raises:
      UserError: rope_parameters that are not by layer type, or a scaling of the layers with a window.
    """
    new, old = section(values, "rope_parameters", where), section(values, "rope_scaling", where)
    if strange := sorted(new.keys() - {WHOLE, LOCAL}):
        raise UserError(
            f"{where}: rope_parameters has {', '.join(strange)} beside or instead of {WHOLE} and {LOCAL}; "
            "give the rotation of each layer type"
        )
    whole, local = (dict(section(new, kind, where)) or {"rope_type": "default"} for kind in (WHOLE, LOCAL))
    for name in sorted(old.keys() & section(new, WHOLE, where).keys()):
        places = (f"rope_scaling.{name}", old[name]), (f"rope_parameters.{WHOLE}.{name}", whole[name])
        chosen(where, notes, *places)
    whole |= old
    for part, default in ((whole, values.get("rope_theta", theta)), (local, values.get(local_name, local_theta))):
        part.setdefault("rope_type", part.get("type", "default"))
        part.setdefault("rope_theta", default)
        part["partial_rotary_factor"] = part.get("partial_rotary_factor", values.get("partial_rotary_factor")) or 1.0
    if local["rope_type"] != "default":
        raise UserError(f"{where}: rope_type {local['rope_type']!r} of {LOCAL} is not supported; it must be default")
    if any(part["partial_rotary_factor"] != 1 for part in (whole, local)):
        raise UserError(f"{where}: partial_rotary_factor is not supported by this model; choose a base without it")
    whole.setdefault(OLD_LENGTH, values["max_position_embeddings"])
    return {
        "rope_theta": number(whole, "rope_theta", float, where),
        "local_theta": number(local, "rope_theta", float, where),
        "partial_rotary_factor": 1.0,
        **_scaling(whole, values, where),
    }


def to_hf(config: LlamaConfig) -> dict[str, Any]:
    """The rotation's fields and max_position_embeddings in the spelling that transformers 4 and 5 both read."""
    scaling, length = config.rope_scaling, config.max_position_embeddings
    written = None
    if scaling is not None:
        set_ = {name: value for name, value in dataclasses.asdict(scaling).items() if value is not None}
        written = {"rope_type": scaling.rope_type, **set_}
        if isinstance(scaling, DynamicScaling):
            length = written.pop(OLD_LENGTH)
        if isinstance(scaling, LongRopeScaling):
            written |= {name: list(written[name]) for name in ("short_factor", "long_factor")}
    return {"rope_theta": config.rope_theta, "rope_scaling": written, "max_position_embeddings": length}


def both_to_hf(config: LlamaConfig) -> dict[str, Any]:
    """rope_parameters by layer type, of a config with a local_theta."""
    old = to_hf(config)
    whole = {"rope_type": "default", **(old["rope_scaling"] or {}), "rope_theta": config.rope_theta}
    return {WHOLE: whole, LOCAL: {"rope_type": "default", "rope_theta": config.layers.local_theta}}


def _whole_rope(
    part: Values, place: str, values: Values, where: Any, notes: Notes | None, theta: float
) -> dict[str, Any]:
    """The fields of one place, completed from the top level."""

    def pick(name: str, *others: tuple[str, Any], default: Any = None) -> Any:
        found = chosen(where, notes, (f"{place}.{name}", part.get(name)), *others)
        return default if found is None else found

    rope = {name: value for name, value in part.items() if value is not None and name != "type"}
    rope["rope_type"] = pick("rope_type", (f"{place}.type", part.get("type")), default="default")
    for name, default in (("rope_theta", theta), ("partial_rotary_factor", 1.0)):
        rope[name] = pick(name, (name, values.get(name)), default=default)
    if rope["rope_type"] not in ("default", "linear", "dynamic"):
        found = chosen(
            where, notes, (OLD_LENGTH, values.get(OLD_LENGTH)), (f"{place}.{OLD_LENGTH}", part.get(OLD_LENGTH))
        )
        rope[OLD_LENGTH] = values.get("max_position_embeddings", 2048) if found is None else found
    return rope


def _scaling(found: Values, values: Values, where: Any) -> dict[str, Any]:
    """rope_scaling and max_position_embeddings, of one rotation's fields."""
    kind, length = found["rope_type"], number(values, "max_position_embeddings", int, where)
    if kind == "default":
        if "factor" in found or "mrope_section" in found:
            raise UserError(
                f"{where}: rope_scaling has a factor or mrope_section, and rope_type default is not supported with it; "
                "name the type, or choose a base without it"
            )
        return {"rope_scaling": None, "max_position_embeddings": length}
    if kind not in SCALINGS:
        raise UserError(f"{where}: rope_type {kind!r} is not supported; known: default, {', '.join(SCALINGS)}")
    one = SCALINGS[kind]
    if one is DynamicScaling:  # HF's max_position_embeddings is the context before the scaling
        found = {**found, OLD_LENGTH: length}
        longer = length * number(found, "factor", float, where)
        length = number({"max_position_embeddings": longer}, "max_position_embeddings", float, where)
        length = int(length)
    if one is LongRopeScaling and found.get("factor") is None:
        found = {**found, "factor": length / number(found, OLD_LENGTH, int, where, least=1)}
    given = {field.name: _field(found, field, where) for field in dataclasses.fields(one)}
    return {"rope_scaling": _made(one, given, where), "max_position_embeddings": length}


def _field(found: Values, field: Any, where: Any) -> Any:
    """One field of a scaling."""
    name, value = field.name, found.get(field.name)
    if name in ("short_factor", "long_factor"):
        if not isinstance(value, list):
            raise UserError(f"{where}: {name} must be a list of numbers, not {value!r}")
        return tuple(number({name: one}, name, float, where) for one in value)
    if name == "truncate":
        return flag(found, name, where, True)
    if value is None and field.default is None:
        return None
    # Llama 3's defaults are those of one model, not HF's.
    default = None if field.default is dataclasses.MISSING or found["rope_type"] == "llama3" else field.default
    return number(found, name, int if name == OLD_LENGTH else float, where, default)


def _made(one: type[RopeScaling], given: dict[str, Any], where: Any) -> RopeScaling:
    try:
        return one(**given)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
