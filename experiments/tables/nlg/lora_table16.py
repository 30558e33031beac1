"""LoRA's Table 16: MNLI with few training rows, by GPT-3 (settings in Table 17); ours, and the paper's rows."""

from collections.abc import Sequence
from typing import Any

from experiments.papers import gpt3
from experiments.tables import style
from experiments.tables.nlg.rows import MODEL, Column, rows
from experiments.tables.nlg.sheet import MEAN, sheet
from experiments.tables.table import Table, no_figures

SCORE = "matched"


def _titled(count: int) -> str:
    return "all" if count == gpt3.FEW[-1] else f"{count:,}"


def _column(count: int) -> Column:
    few = None if count == gpt3.FEW[-1] else count
    return Column(
        _titled(count), SCORE, scale=100,
        of=lambda run: (run["config"].get("task") or {}).get("train_examples") in ((few,) if few else (None, 0)),
    )  # fmt: skip


COLUMNS = tuple(map(_column, gpt3.FEW))
figures = no_figures


def table(results: Sequence[dict], options: Any) -> Table:
    """The table of the runs on the base options.model, with the paper's rows."""
    model = options.model or MODEL
    found = rows(results, model, ("mnli",), COLUMNS, (*gpt3.TABLE16, "mora"), sampled=False)
    what = "MNLI matched, accuracy in %, by the number of training rows."
    shown = sheet("LoRA Table 16 (MNLI with few rows)", model, found, COLUMNS, (MEAN, what))
    lines = [["method", *map(_titled, gpt3.FEW)]]
    lines += [[style.name_of(name), *(f"{score:.1f}" for score in scores)] for name, scores in gpt3.TABLE16.items()]
    whose = "the same base model" if model == gpt3.MODEL else "ANOTHER base model"
    part = Table(f"The paper's Table 16, {whose}, {gpt3.MODEL}", tuple(lines), ("Seeds vary by 0.3.",))
    return Table(shown.title, shown.lines, shown.captions, (part,), shown.data)
