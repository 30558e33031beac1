"""LoRA's Table 18: E2E by rank; ours beside the paper's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.papers import nlg
from experiments.records.text_table import number
from experiments.tables import style
from experiments.tables.nlg.lora_table3 import COLUMNS, LOSS
from experiments.tables.nlg.rows import MODEL, NOT_RUN, NlgRow, rows
from experiments.tables.nlg.sheet import MEAN, remarks
from experiments.tables.table import Table

RANKED = ("lora", "mora")
# METEOR and ROUGE-L stand in Table 18 as fractions, in Table 3 in %.
THEIRS = {column.title: i for i, column in enumerate((LOSS, *COLUMNS))}
IN_PERCENT = ("METEOR", "ROUGE-L")


def table(results: Sequence[dict], options: Any) -> Table:
    """The table of the runs on the base options.model, with the paper's rows."""
    model = options.model or MODEL
    columns = (LOSS, *COLUMNS)
    found = rows(results, model, ("e2e",), columns, RANKED, lambda run: run["labels"].get("method") in RANKED)
    have = {row.rank for row in found if row.method == "lora"}
    found = [row for row in found if row.seeds or row.rank is not None]
    found += [NlgRow("lora", rank, notes=NOT_RUN) for rank in nlg.TABLE18 if rank not in have]
    found.sort(key=lambda row: (RANKED.index(row.method), row.rank or 0))
    lines = [["method", "r", "trainable", *(f"{column.title}, ours | paper" for column in columns), "seeds"]]
    for row in found:
        theirs = nlg.TABLE18.get(row.rank or 0) if row.method == "lora" else None
        cells = []
        for column in columns:
            mine = row.cells[column.title].text(column.digits) if column.title in row.cells else "-"
            percent = 100 if column.title in IN_PERCENT else 1
            paper = None if theirs is None else percent * theirs[THEIRS[column.title]]
            cells.append(f"{mine} | {number(paper, '.4g')}")
        name = style.label(row.method, None, row.variant)
        lines.append([name, number(row.rank, "d"), number(row.parameters, ",d"), *cells, str(row.seeds or "-")])
    whose = "" if model == nlg.MEDIUM else f"The paper's base model is another, {nlg.MEDIUM}: compare the order."
    captions = (MEAN, "The paper's runs have 26,000 steps.", *([whose] if whose else []), *remarks(found, model))
    return Table(f"LoRA Table 18 (ranks on E2E), {model}", tuple(lines), captions, data=found)


def figures(table: Table, folder: str | Path) -> list[Path]:
    """Validation loss and BLEU against the rank, where there are runs of two ranks."""
    from experiments.tables.nlg.figure import draw

    path = draw(table.data, folder)
    return [path] if path else []
