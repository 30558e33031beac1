"""MoRA's Table 2: digits recalled of random UUID pairs, by method and step, ours next to the paper's."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.papers import mora
from experiments.records.text_table import clock, number
from experiments.tables import style
from experiments.tables.table import Table
from experiments.tables.uuid.rows import Setting, UuidRow, settings


def table(results: Sequence[dict], options: Any) -> Table:
    """The table at options.scale; further settings below the first."""
    first, *others = map(shown, settings(results, options.scale))
    return dataclasses.replace(first, parts=tuple(others))


def figures(table: Table, folder: str | Path) -> list[Path]:
    """Every figure that the settings have data for."""
    from experiments.tables.uuid.figure import draw

    found = []
    for number_, part in enumerate((table, *table.parts), 1):
        stem = f"{part.data.scale}_" if number_ == 1 else f"{part.data.scale}{number_}_"
        found += draw(part.data, folder, stem)
    return found


def shown(setting: Setting) -> Table:
    """A setting's lines and captions."""
    header = ["method", "r", "trainable", "lr (tried)", *(f"step {step}" for step in setting.steps)]
    header += [] if setting.same_steps else [f"paper {step}" for step in mora.TABLE2_STEPS]
    header += ["exact", "wall", "seeds", "note"]
    lines = [header, *(_cells(row, setting) for row in setting.rows)]
    # A column that no row fills is left out, notes first of all.
    keep = [i for i in range(len(header)) if i < 4 or any(line[i].strip("-| ") for line in lines[1:])]
    what = "accuracy %, ours | paper" if setting.same_steps else "accuracy %, ours, then the paper's"
    title = f"MoRA Table 2, {setting.scale} scale" + (f", {setting.base}" if setting.base else "")
    lines = tuple([line[i] for i in keep] for line in lines)
    return Table(f"{title}{setting.name}: {what}", lines, _captions(setting), data=setting)


def _cells(row: UuidRow, setting: Setting) -> list[str]:
    paper = mora.TABLE2.get((row.method, row.rank)) if not row.variant else None
    theirs = dict(zip(mora.TABLE2_STEPS, paper or (), strict=bool(paper)))
    method = style.label(row.method, None, row.variant)
    cells = [method, number(row.rank, "d"), number(row.parameters, ",d"), _rates(row)]
    for step in setting.steps:
        mine = number(row.accuracy.get(step), ".1f")
        cells.append(f"{mine} | {number(theirs.get(step), '.1f')}" if step in mora.TABLE2_STEPS else mine)
    if not setting.same_steps:
        cells += [number(theirs.get(step), ".1f") for step in mora.TABLE2_STEPS]
    wall = "-" if row.wall_seconds is None else clock(row.wall_seconds)
    return [*cells, number(row.exact, ".1f"), wall, str(row.seeds) if row.seeds else "-", row.note]


def _rates(row: UuidRow) -> str:
    if row.rate is None:
        return "-"
    return f"{row.rate:g}" + (f" ({', '.join(f'{rate:g}' for rate in row.tried)})" if len(row.tried) > 1 else "")


def _captions(setting: Setting) -> tuple[str, ...]:
    first = (
        f"Accuracy: % of the 32 hexadecimal digits by greedy decoding (chance {mora.CHANCE}); exact: % of whole values "
        "at the last evaluation; median over seeds."
    )
    whose = f"{mora.BASE_MODEL}, {mora.PAIRS:,} pairs, {mora.STEPS:,} steps"
    if not setting.same_steps:
        return first, (
            f"The paper's columns are another base model and step scale ({whose}): compare the order of the methods, "
            "not the numbers."
        )
    return (first, f"The paper's base model is another ({whose}).") if setting.scale != "paper" else (first,)
