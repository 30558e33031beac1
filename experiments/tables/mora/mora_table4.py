"""MoRA's Table 4: GSM8K by compression, at r=8 and r=256; ours beside the paper's."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from experiments.papers import mora_finetune as paper
from experiments.records.text_table import number
from experiments.tables.mora.mora_table1 import EXAMS
from experiments.tables.mora.rows import MODEL, TuneRow, rows
from experiments.tables.mora.sheet import HOW, cell, loss_table
from experiments.tables.table import Table, no_figures

(GSM8K,) = (exam for exam in EXAMS if exam.title == "gsm8k")
figures = no_figures


def table(results: Sequence[dict], options: Any) -> Table:
    """The table on the base options.model, and the held-out losses of its rows."""
    model = options.model or MODEL
    found = {
        (row.variant or "sharing", row.rank): row for row in rows(results, model, ("math",)) if row.method == "mora"
    }
    ranks = sorted({*paper.TABLE4_RANKS, *(rank for _, rank in found if rank)})
    lines = [["compression", *(f"r={rank}, ours | paper" for rank in ranks)]]
    for name in [*paper.TABLE4, *sorted({kind for kind, _ in found} - paper.TABLE4.keys())]:
        cells = []
        for rank in ranks:
            row = found.get((name, rank), TuneRow("mora", rank, name))
            at = paper.TABLE4_RANKS.index(rank) if rank in paper.TABLE4_RANKS and name in paper.TABLE4 else None
            theirs = None if at is None else paper.TABLE4[name][at]
            cells.append(f"{cell(row, GSM8K)} | {number(theirs, '.1f')}")
        lines.append([name, *cells])
    base = f"The paper's base is {paper.BASE_MODEL}."
    shown = Table(f"MoRA Table 4 (GSM8K by compression), {model}", tuple(lines), (HOW, base))
    return dataclasses.replace(shown, parts=loss_table(list(found.values()), "math"))
