"""Divides records of speed by the setting and the device that they were measured with, and names these."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.tables.table import Table

Record = dict[str, Any]


def table_per_setting(
    results: Sequence[Record], setting: Callable[[Record], str], make: Callable[[Sequence[Record]], Table]
) -> Table:
    """A table for each setting and kind of device, one below the other, as only numbers of one table are comparable.

    Args:
      results: the records, one or more.
      setting: of a record, as the table's caption says it.
      make: the table of records with one setting on one kind of device.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    for one in results:
        groups.setdefault((setting(one), devices_of(one)), []).append(one)
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
