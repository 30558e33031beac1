"""MoRA's Table 7: continual pre-training on financial text, then exams; ours beside the paper's."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from experiments.papers import mora_finetune as paper
from experiments.tables.mora.exams import Exam
from experiments.tables.mora.rows import MODEL, rows
from experiments.tables.mora.sheet import ADAPTED, exam_table, loss_table, with_published
from experiments.tables.table import Table, no_figures

TASK = "finance"
EXAMS = (
    Exam("ConvFinQA", TASK, "convfinqa", right="exact_correct"),
    Exam("FiQA SA", TASK, "fiqa_sa", measure="weighted_f1"),
    Exam("Headline", TASK, "headline", measure="weighted_f1"),
    Exam("NER", TASK, "ner", measure="entity_f1"),
    Exam("FPB", TASK, "fpb", measure="weighted_f1", instead=Exam("FPB", TASK, "phrasebank")),
    Exam("Avg", TASK),
)
HOW = (
    f"All columns: {ADAPTED}. ConvFinQA: % of right numbers; the others: F1, its interval from 1,000 resamples.",
    "FPB, where AdaptLLM's rows were not asked: % of right answers, the likeliest of three words, for the sentences on "
    "which half of the judges or more agree.",
)
figures = no_figures


def table(results: Sequence[dict], options: Any) -> Table:
    """The table on the base options.model, and the held-out losses of its rows."""
    model = options.model or MODEL
    found = rows(results, model, (TASK,))
    title = f"MoRA Table 7, {model}"
    shown = exam_table(title, with_published(found, paper.TABLE7), EXAMS, paper.TABLE7, paper.TABLE7_COLUMNS, HOW)
    return dataclasses.replace(shown, parts=loss_table(found, TASK))
