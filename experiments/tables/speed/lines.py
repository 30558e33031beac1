"""Reads a program's records, one JSON line each, whose fields are known; and divides them by what a table compares."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.records.checks import is_number
from experiments.tables.table import Table
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


def is_finite(value: Any) -> bool:
    """Whether it is a number, and neither NaN nor infinite."""
    return is_number(value) and math.isfinite(value)


def is_above_0(value: Any) -> bool:
    """Whether it is a finite number above 0, as what is divided by."""
    return is_finite(value) and value > 0


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_text, value.values()))


def _has_devices(value: Any) -> bool:
    devices = value.get("devices") if isinstance(value, dict) else None
    return isinstance(devices, list | dict) and all(map(is_text, devices))


# Of every record; and of those that compare with another program.
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
      program: that writes them, and by which flag.
      fields: name -> whether a value is one; besides those of every record.
      optional: the same of fields that may be left out or null.

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


def tables(
    results: Sequence[Record], words: Callable[[Record], str], make: Callable[[Sequence[Record]], Table]
) -> Table:
    """A table for each setting and kind of device, one below the other: their numbers are not for comparison.

    Args:
      words: the setting of a record, as the table's caption says it.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    for one in results:
        groups.setdefault((words(one), devices_of(one)), []).append(one)
    first, *others = (make(groups[key]) for key in sorted(groups))
    return Table(first.title, first.lines, first.captions, tuple(others))


def devices_of(record: Mapping[str, Any]) -> str:
    """The kinds of devices that a record was measured on."""
    return ", ".join(record["hardware"]["devices"])


def place_of(record: Mapping[str, Any]) -> str:
    """Where a record was measured: "NVIDIA H200: jax 0.11.2, torch 2.11.0."."""
    versions = {**record["versions"], **(record.get("peer_versions") or {})}
    kept = ("jax", "torch", "transformers", "peft")
    return f"{devices_of(record)}: " + ", ".join(f"{name} {versions[name]}" for name in kept if name in versions) + "."
