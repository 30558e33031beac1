"""The table of `experiments.gradients --study`: what each way to round a frozen base costs the adapters' gradients."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.records.checks import is_finite
from experiments.tables.speed.lines import is_count, is_text, read
from experiments.tables.speed.settings import devices_of
from experiments.tables.table import Table, no_figures

figures = no_figures
CELLS = {"row": ".4f", "cosine": ".3f", "growth": ".1f", "loss": "+.2%", "time": ".2f"}
FIELDS = {
    **dict.fromkeys(("case", "base", "method"), is_text),
    **dict.fromkeys(CELLS, is_finite),
    **dict.fromkeys(("seed", "rank"), is_count),
    "batch": lambda value: isinstance(value, list) and len(value) == 2 and all(map(is_count, value)),
}


def load(places: Iterable[str | Path]) -> list[dict[str, Any]]:
    """The records at the places.

    Raises:
      UserError: as `lines.read`.
    """
    return read(places, "speed/rounding.jsonl", "experiments.gradients --study --record", FIELDS)


def table(results: Sequence[dict[str, Any]], options: Any) -> Table:
    """One row a case, in the order of the records, the last of equal ones; medians over seeds."""
    del options
    newest = {(one["case"], one["seed"], _work(one)): one for one in results}
    cases: dict[str, list[dict[str, Any]]] = {}
    for one in newest.values():
        cases.setdefault(one["case"], []).append(one)
    lines: list[tuple[str, ...]] = [
        ("rounded", "cosine, median row", "cosine, batch", "longest row", "loss", "products' time")
    ]
    for case, found in cases.items():
        cells = (format(statistics.median(one[name] for one in found), form) for name, form in CELLS.items())
        lines.append((case, *cells))
    captions = sorted({_work(one) for one in results})
    captions.append(
        "Cosine: with float32's gradients; longest row: how many times longer one row's gradient is at most."
    )
    captions.append("Products' time: of the layers' frozen kernels, FP8's as 1 and bfloat16's as 2; not measured.")
    return Table("Rounding a frozen base", tuple(lines), tuple(captions))


def _work(one: dict[str, Any]) -> str:
    rows, length = one["batch"]
    work = f"{one['base']}, {one['method']} r={one['rank']} at its start, {rows} x {length} tokens"
    return f"{work}; {devices_of(one)}, jax {one['versions']['jax']}."
