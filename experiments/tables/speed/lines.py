"""Reads a program's records, one JSON line each, whose fields and types are known."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.files import read_bytes
from lowrank_jax.core.json_text import NotJson, parse


def read(places: Iterable[str | Path], below: str, program: str, fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All records at the places.

    Args:
      places: files of records, and folders that have the file `below`.
      program: that writes them, and by which flag.
      fields: name -> type or types, as for `isinstance`.

    Raises:
      UserError: there is none, or a line is no such record.
    """
    found = []
    for place in places:
        file = Path(place) / below if Path(place).is_dir() else Path(place)
        for count, line in enumerate(read_bytes(file).decode("utf-8", "replace").splitlines(), 1):
            found.append(_record(line, f"{file}, line {count}", program, fields))
    if not found:
        raise UserError(f"--results has no record of {program}; name the file")
    return found


def _record(line: str, where: str, program: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    try:
        record = parse(line)
    except NotJson as error:
        raise UserError(f"{where} is damaged ({error}); delete it") from error
    held = record if isinstance(record, dict) else {}
    if wrong := [name for name, kind in fields.items() if not isinstance(held.get(name), kind)]:
        raise UserError(f"{where} is no record of {program} (see {wrong[0]!r}); delete it")
    return held


def place_of(record: Mapping[str, Any]) -> str:
    """Where a record was measured: "NVIDIA H200: jax 0.11.2, torch 2.11.0."."""
    kinds = ", ".join(record["hardware"]["devices"])
    versions = {**record["versions"], **record.get("peer_versions", {})}
    kept = ("jax", "torch", "transformers", "peft")
    return f"{kinds}: " + ", ".join(f"{name} {versions[name]}" for name in kept if name in versions) + "."
