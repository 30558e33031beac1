"""Reads a program's records, one JSON line each, and checks their fields."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.records.checks import is_finite, is_number
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.files import read_bytes
from lowrank_jax.core.json_text import NotJson, parse

Fits = Callable[[Any], bool]
Record = dict[str, Any]


def is_text(value: Any) -> bool:
    """Whether it is a string."""
    return isinstance(value, str)


def is_count(value: Any) -> bool:
    """Whether it is a whole number, 0 or more."""
    return is_number(value) and isinstance(value, int) and value >= 0


def is_above_0(value: Any) -> bool:
    """Whether it is a finite number above 0, by which a table can divide."""
    return is_finite(value) and value > 0


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_text, value.values()))


def _has_devices(value: Any) -> bool:
    devices = value.get("devices") if isinstance(value, dict) else None
    return isinstance(devices, list | dict) and all(map(is_text, devices))


# Fields that every record has, and that records of another program beside ours have, each with a check of its value.
ALWAYS: dict[str, Fits] = {"hardware": _has_devices, "versions": lambda value: _are_texts(value) and "jax" in value}
SOMETIMES: dict[str, Fits] = {"peer_versions": _are_texts}


def read(
    places: Iterable[str | Path],
    below: str,
    program: str,
    fields: Mapping[str, Fits],
    optional: Mapping[str, Fits] | None = None,
) -> list[Record]:
    """All records at the places.

    Args:
      places: files of records, and folders that have the file `below`.
      program: which writes the records, and by which flag; for the message.
      fields: name -> check of its value, besides the fields of every record.
      optional: the same for fields that may be left out or null.

    Raises:
      UserError: there is none, or a line is no such record.
    """
    found, fits = [], {**ALWAYS, **fields}
    fits |= {name: _or_none(one) for name, one in {**SOMETIMES, **(optional or {})}.items()}
    for place in places:
        file = Path(place) / below if Path(place).is_dir() else Path(place)
        for count, line in enumerate(read_bytes(file).decode("utf-8", "replace").splitlines(), 1):
            found.append(_record(line, f"{file}, line {count}", program, fits))
    if not found:
        raise UserError(f"--results has no record of {program}; name the file")
    return found


def _or_none(fits: Fits) -> Fits:
    return lambda value: value is None or fits(value)


def _record(line: str, where: str, program: str, fits: Mapping[str, Fits]) -> Record:
    try:
        record = parse(line)
    except NotJson as error:
        raise UserError(f"{where} is damaged ({error}); delete it") from error
    held = record if isinstance(record, dict) else {}
    if wrong := [name for name, one in fits.items() if not one(held.get(name))]:
        raise UserError(f"{where} is no record of {program} (see {wrong[0]!r}); delete it")
    return held
