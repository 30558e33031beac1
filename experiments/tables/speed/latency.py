"""LoRA's Table 1 and Fig. 5: forward latency of a base, with adapters merged and not; ours, and the paper's Table 1."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.papers import lora_latency as paper
from experiments.records.checks import is_number
from experiments.records.lines import read_lines
from experiments.tables import style
from experiments.tables.figures import pyplot, save_small
from experiments.tables.table import Table
from lowrank_jax.core.errors import UserError

FILE = "speed/latency.jsonl"  # below a folder of results
EXPERIMENT, TABLE, MAP = "latency", "table1", "fig5"
SIZE = re.compile(r"\d+(?:\.\d+)?[kM]?")
Record = Mapping[str, Any]
# of a record's "latency", and of each of its variants: field -> types
FIELDS = {**dict.fromkeys(("batch", "length", "passes"), int), "size": str, "variants": list}
OF_VARIANT = {"method": str, "merged": bool, "parameters": int, **dict.fromkeys(("mean_ms", "std_ms"), (int, float))}


def load(places: Iterable[str | Path]) -> list[Record]:
    """Reads the records of `experiments.bench --latency`.

    Args:
      places: files of records, and folders that have FILE.

    Raises:
      UserError: there is none, or a line is no such record.
    """
    found = []
    for place in places:
        file = Path(place) / FILE if Path(place).is_dir() else Path(place)
        for name, record in (read_lines(file) if file.is_file() else {}).items():
            if (record.get("config") or {}).get("experiment") != EXPERIMENT:
                continue
            if wrong := _fault(record):
                raise UserError(f"{file}: {name} is no record of experiments.bench --latency (see {wrong}); delete it")
            found.append(record)
    if not found:
        raise UserError(
            "--results has no record of experiments.bench --latency; run that first, or name the file of its --results"
        )
    return found


def _fault(record: Record) -> str | None:
    """The first field of another type than a measurement writes; None where there is none."""
    latency = record.get("latency")
    if not isinstance(latency, dict):
        return "latency"
    if not isinstance(record.get("labels"), dict):
        return "labels"
    if wrong := [name for name, kind in FIELDS.items() if not isinstance(latency.get(name), kind)]:
        return wrong[0]
    if not SIZE.fullmatch(latency["size"]):
        return "size"
    for one in latency["variants"]:
        fields = one if isinstance(one, dict) else {}
        if wrong := [name for name, kind in OF_VARIANT.items() if not isinstance(fields.get(name), kind)]:
            return f"variants' {wrong[0]}"
        if not (is_number(one["mean_ms"]) and 0 < one["mean_ms"] < math.inf):
            return "variants' mean_ms"
        if not is_number(one["std_ms"]):
            return "variants' std_ms"
        needed = bool(one["parameters"]) and record["labels"].get("setting") == TABLE
        if not isinstance(one.get("rank"), int if needed else int | None):
            return "variants' rank"
        if not isinstance(one.get("same"), str | None):
            return "variants' same"
    if not latency["variants"] or name_of(latency["variants"][0]) != "base":
        return "variants: the base comes first"
    environment = record.get("environment") or {}
    hardware, versions = environment.get("hardware"), environment.get("versions") or {}
    devices = (hardware.get("devices") or []) if isinstance(hardware, dict) else None
    if not isinstance(devices, list | dict) or not all(isinstance(one, str) for one in devices):
        return "environment's hardware"
    return None if isinstance(versions, dict) else "environment's versions"


def table(results: Sequence[Record], options: Any) -> Table:
    """Table 1 and the map of each base and device, and the paper's Table 1 below."""
    del options
    parts = [_table(group) for group in _groups(results, TABLE)] + [_map(group) for group in _groups(results, MAP)]
    if any(one["labels"].get("setting") == TABLE for one in results):
        parts.append(_papers())
    if not parts:
        raise UserError(f"--results has no record of {TABLE} or {MAP}; make one with experiments.bench --latency")
    return Table(parts[0].title, parts[0].lines, parts[0].captions, tuple(parts[1:]), data=results)


def name_of(variant: Mapping[str, Any]) -> str:
    """ "base", "LoRA", "LoRA merged"."""
    return " ".join([style.name_of(variant["method"]), *(["merged"] if variant["merged"] else [])])


def _groups(results: Sequence[Record], setting: str) -> list[list[Record]]:
    """The records of a setting, by base, dtype and device; of a cell's records that with the most passes."""
    found: dict[tuple, dict[str, Record]] = {}
    for one in results:
        if one["labels"].get("setting") == setting:
            cells = found.setdefault((*_base_of(one), _place(one)), {})
            other = cells.get(_column(one))
            if other is None or other["latency"]["passes"] <= one["latency"]["passes"]:
                cells[_column(one)] = one
    return [[*found[key].values()] for key in sorted(found)]


def _table(records: Sequence[Record]) -> Table:
    """A row a variant, a column a cell; the largest batch first, as in the paper."""
    records = sorted(records, key=lambda one: (-one["latency"]["batch"], -one["latency"]["length"]))
    names = list(dict.fromkeys(name_of(one) for record in records for one in record["latency"]["variants"]))
    lines = [["method", *map(_column, records)]]
    for name in names:
        found = [_variant(record, name) for record in records]
        lines.append([name, *(_cell(one, record) for one, record in zip(found, records, strict=True))])
    same = {one.get("same") for record in records for one in record["latency"]["variants"] if one["merged"]}
    what = "the operations, their order and the memory" if same == {"text"} else "the operations and the memory"
    merged = [f"Merged, the compiled program is the base's own: {what}."] if same and None not in same else []
    captions = [_passes(records), *merged, _ranks(records), _place(records[0])]
    return Table(f"LoRA Table 1 (forward latency), {_title(records[0])}", tuple(map(tuple, lines)), tuple(captions))


def _map(records: Sequence[Record]) -> Table:
    """A row a cell, with the slow-down of each adapter."""
    records = _in_order(records)
    names = [name_of(one) for one in records[0]["latency"]["variants"][1:]]
    lines = [("batch", "tokens", "r", "base, ms", *names)]
    for record in records:
        latency = record["latency"]
        slower = [_slower(_variant(record, name), record) for name in names]
        base = f"{latency['variants'][0]['mean_ms']:.2f}"
        lines.append((str(latency["batch"]), str(latency["length"]), latency["size"], base, *slower))
    what = "Slow-down of a forward pass against the base, by batch, length and bottleneck r; a heat map in the paper."
    title = f"LoRA Fig. 5 (slow-down by adapters), {_title(records[0])}"
    return Table(title, tuple(lines), (what, _passes(records), _place(records[0])))


def _papers() -> Table:
    header = ["method", *(_sizes(*cell.split("x")) for cell in paper.TABLE1)]
    lines = [header]
    for method, name in (("base", "FT or LoRA"), ("lin", "Adapter-L"), ("houlsby", "Adapter-H")):
        cells = []
        for row in paper.TABLE1.values():
            (mean, deviation), base = row[method], row["base"][0]
            cells.append(
                f"{mean:.1f}+-{deviation:.1f}" + ("" if method == "base" else f" ({100 * (mean / base - 1):+.1f}%)")
            )
        lines.append([name, *cells])
    title = f"The paper's Table 1: {paper.MODEL}, ms, {paper.PASSES} passes on a {paper.DEVICE}"
    return Table(title, tuple(map(tuple, lines)))


def _in_order(records: Sequence[Record]) -> list[Record]:
    return sorted(records, key=lambda one: (one["latency"]["length"], one["latency"]["batch"], _size(one)))


def _size(record: Record) -> float:
    text = record["latency"]["size"]
    return float(text.rstrip("kM")) * {"k": 1e3, "M": 1e6}.get(text[-1:], 1)


def _variant(record: Record, name: str) -> Mapping[str, Any] | None:
    return next((one for one in record["latency"]["variants"] if name_of(one) == name), None)


def _cell(variant: Mapping[str, Any] | None, record: Record) -> str:
    if variant is None:
        return "not run"
    shown = f"{variant['mean_ms']:.2f}+-{variant['std_ms']:.2f}"
    return shown if variant["method"] == "base" else f"{shown} ({_slower(variant, record)})"


def slow_down(variant: Mapping[str, Any], record: Record) -> float:
    """Per cent by which a variant's mean exceeds the base's."""
    return 100 * (variant["mean_ms"] / record["latency"]["variants"][0]["mean_ms"] - 1)


def _slower(variant: Mapping[str, Any] | None, record: Record) -> str:
    return "not run" if variant is None else f"{slow_down(variant, record):+.1f}%"


def _column(record: Record) -> str:
    latency = record["latency"]
    return _sizes(latency["batch"], latency["length"], latency["size"])


def _sizes(batch: Any, length: Any, size: Any) -> str:
    return f"{batch} x {length}, {size}"


def _ranks(records: Sequence[Record]) -> str:
    """Ranks and exact numbers of parameters, cell by cell."""
    words = []
    for record in records:
        own = [
            f"{style.name_of(one['method'])} r={one['rank']} {one['parameters']:,}"
            for one in {one["method"]: one for one in record["latency"]["variants"] if one["parameters"]}.values()
        ]
        words.append(f"{_column(record)}: {', '.join(own)}")
    return f"Parameters: {'; '.join(words)}."


def _passes(records: Sequence[Record]) -> str:
    counts = sorted({record["latency"]["passes"] for record in records})
    shown = " or ".join(map(str, counts))
    return f"Milliseconds, mean+-sample standard deviation over {shown} passes; all variants of a cell in turn."


def _base_of(record: Record) -> tuple[str, str, str]:
    """(name, dtype, how its layers run where that is said)."""
    base = (record.get("config") or {}).get("base") or {}
    ways = (("scan_unroll", 1), ("attention", "auto"))
    said = [f"{key}={base[key]}" for key, usual in ways if base.get(key, usual) != usual]
    return str(base.get("name")), str(base.get("dtype", "float32")), ", ".join(said)


def _title(record: Record) -> str:
    name, dtype, said = _base_of(record)
    return ", ".join(word for word in (f"{Path(name).name}'s shape", dtype, said) if word)


def _place(record: Record) -> str:
    environment = record["environment"]
    kinds = ", ".join(environment["hardware"].get("devices") or ["?"])
    versions = environment.get("versions") or {}
    return f"{kinds}: " + ", ".join(f"{name} {versions[name]}" for name in ("jax", "jaxlib") if name in versions) + "."


def figures(table: Table, folder: str | Path) -> list[Path]:
    """Draws a heat map for each base and device: a panel for each adapter and length, bottleneck against batch."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    drawn = []
    for number, group in enumerate(_groups(table.data, MAP)):
        more = f"_{number + 1}" if number else ""
        drawn.append(_draw(group, Path(folder) / f"latency_{Path(_base_of(group[0])[0]).name}{more}.png"))
    return drawn


def _draw(records: Sequence[Record], path: Path) -> Path:
    plots = pyplot()
    methods = [one for one in records[0]["latency"]["variants"][1:]]
    lengths = sorted({one["latency"]["length"] for one in records})
    batches = sorted({one["latency"]["batch"] for one in records})
    sizes = sorted({_size(one): one["latency"]["size"] for one in records}.items())
    values = {
        (name_of(one), record["latency"]["length"], record["latency"]["batch"], record["latency"]["size"]): slow_down(
            one, record
        )
        for record in records
        for one in record["latency"]["variants"][1:]
    }
    most = max(*values.values(), 1.0)
    shape = {"figsize": (2.9 * len(lengths) + 1, 2.3 * len(methods) + 0.5), "squeeze": False, "layout": "constrained"}
    figure, panels = plots.subplots(len(methods), len(lengths), **shape)
    for method, row in zip(methods, panels, strict=True):
        for length, axes in zip(lengths, row, strict=True):
            key = [[(name_of(method), length, batch, size) for batch in batches] for _, size in sizes]
            grid = [[values.get(one, float("nan")) for one in line] for line in key]
            shown = axes.imshow(grid, vmin=0, vmax=most, cmap="YlOrRd", origin="lower", aspect="auto")
            for down, line in enumerate(grid):
                for along, value in enumerate(line):
                    if value == value:  # a cell that was not measured stays empty
                        colour = "white" if value > 0.7 * most else "black"
                        axes.text(along, down, f"{value:.1f}", ha="center", va="center", fontsize=8, color=colour)
            axes.set_xticks(range(len(batches)), map(str, batches))
            axes.set_yticks(range(len(sizes)), [size for _, size in sizes])
            axes.set_title(f"{name_of(method)}, {length} tokens", fontsize=9)
            axes.set(xlabel="batch", ylabel="r")
    figure.colorbar(shown, ax=panels, label="slower than the base, %")
    save_small(figure, path)
    plots.close(figure)
    return path
