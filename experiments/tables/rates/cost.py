"""Cost beside quality: time a step, memory and parameters of the suite `rates`, and the best losses on a base."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.records import json_files
from experiments.records.text_table import number
from experiments.tables import style
from experiments.tables.rates.rows import RateRow, Setting
from experiments.tables.table import Table

FILE, OURS = "rates_suite.json", "ours"
SAME_STEP = {"rslora": "lora"}  # methods that differ in a number alone
HOW = (
    "One step alone on its device, and the most memory in use; rsLoRA's step is LoRA's. Losses are those of the tables "
    "above, at each row's best rate."
)


def load(places: Iterable[str | Path]) -> list[dict]:
    """The measurements of the suite's records below folders."""
    files = [file for place in map(Path, places) if place.is_dir() for file in sorted(place.rglob(FILE))]
    read = [json_files.read_json(file, remedy="measure the suite again") for file in files]
    return [one for data in read for one in data.get("measurements", []) if one.get("side") == OURS and "record" in one]


def tables(measured: Sequence[Mapping[str, Any]], settings: Mapping[Setting, Sequence[RateRow]]) -> list[Table]:
    """A table for each base that was measured and trained."""
    found = []
    for base in dict.fromkeys(setting.base for setting in settings):
        here = {setting: rows for setting, rows in settings.items() if setting.base == base}
        costs = _costs(measured, base)
        keys = dict.fromkeys((row.method, row.rank, row.variant) for rows in here.values() for row in rows)
        lines = [["method", "trainable", "ms a step", "GiB", *(f"loss, {one.task}" for one in here)]]
        for key in keys if costs else ():
            mine = [row for rows in here.values() for row in rows if (row.method, row.rank, row.variant) == key]
            cost = costs.get((SAME_STEP.get(key[0], key[0]), *key[1:]))
            cells = [number(cost[name] if cost else None, ".2f") for name in ("ms", "peak_gib")]
            losses = [_loss(rows, key) for rows in here.values()]
            parameters = next((row.parameters for row in mine if row.parameters), None)
            lines.append([style.label(*key), number(parameters, ",d"), *cells, *losses])
        if len(lines) > 1:
            sizes = sorted({tuple(one["record"]["batch"]) for one in measured if _base(one) == base})
            batch = ", ".join(" x ".join(map(str, size)) for size in sizes)
            found.append(Table(f"Cost beside quality, {base}, steps of {batch} tokens", tuple(lines), (HOW,)))
    return found


def _costs(measured: Sequence[Mapping[str, Any]], base: str) -> dict[tuple, dict[str, float]]:
    """{(method, rank, variant): medians over processes}."""
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for one in measured:
        labels = one["record"]["labels"]
        method, _, variant = labels["method"].partition(" ")
        if _base(one) == base:
            rank = None if method == "fft" else labels["rank"]
            groups.setdefault((method, rank, variant), []).append(one["record"])
    return {
        key: {name: statistics.median(record[name] for record in records) for name in ("ms", "peak_gib")}
        for key, records in groups.items()
        if all(record.get("peak_gib") is not None for record in records)
    }


def _base(one: Mapping[str, Any]) -> str:
    return one["record"]["labels"].get("shape", "")


def _loss(rows: Sequence[RateRow], key: tuple) -> str:
    best = next((row.best for row in rows if (row.method, row.rank, row.variant) == key and row.best), None)
    return best.loss.text if best and best.loss else "-"
