"""Names the rows whose restarts merge into 16-bit weights, which every merge rounds."""

from collections.abc import Iterable, Mapping
from typing import Any

BITS = {"bfloat16": 8, "float16": 11}  # significant bits of a weight; float32 has 24


def rounding(rows: Mapping[str, Iterable[Mapping[str, Any]]]) -> list[str]:
    """A caption for each 16-bit type of the weights that rows merge into; [] where there is none.

    Args:
      rows: label -> the records of its runs.
    """
    found: dict[str, list[str]] = {}
    for label, runs in rows.items():
        for dtype in sorted({_dtype(run) for run in runs} & BITS.keys()):
            found.setdefault(dtype, []).append(label)
    return [
        f"{', '.join(labels)}: the base is {dtype}, so each merge rounds its weights to {BITS[dtype]} significant bits."
        for dtype, labels in found.items()
    ]


def _dtype(run: Mapping[str, Any]) -> str:
    """The type of the weights that a run merges into; "" of a run without restarts."""
    config = run.get("config") or {}
    every = (config.get("restart") or {}).get("every")
    return str((config.get("base") or {}).get("dtype") or "") if every else ""
