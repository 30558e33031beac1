"""MoRA's Table 7: continual pre-training on financial text, then exams; ours beside the paper's."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from experiments.papers import mora_finetune as paper
from experiments.tables.mora.exams import Exam
from experiments.tables.mora.rows import MODEL, rows
from experiments.tables.mora.sheet import OF_OTHERS, exam_table, loss_table, with_published
from experiments.tables.table import Table, no_figures

TASK = "finance"
EXAMS = (
    Exam("ConvFinQA", TASK),
    Exam("FiQA SA", TASK),
    Exam("Headline", TASK),
    Exam("NER", TASK),
    Exam("FPB", TASK, "phrasebank"),
    Exam("Avg", TASK),
)
HOW = "FPB: the sentences on which half of the judges or more agree, by the likeliest of three words."
figures = no_figures


def table(results: Sequence[dict], options: Any) -> Table:
    """The table on the base options.model, and the held-out losses of its rows."""
    model = options.model or MODEL
    found = rows(results, model, (TASK,))
    title = f"MoRA Table 7, {model}"
    shown = exam_table(
        title, with_published(found, paper.TABLE7), EXAMS, paper.TABLE7, paper.TABLE7_COLUMNS, (HOW,), OF_OTHERS
    )
    return dataclasses.replace(shown, parts=loss_table(found, TASK))
