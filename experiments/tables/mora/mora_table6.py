"""MoRA's Table 6: continual pre-training on biomedical text, then exams; ours beside the paper's."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from experiments.papers import mora_finetune as paper
from experiments.tables.mora.exams import Exam
from experiments.tables.mora.rows import MODEL, rows
from experiments.tables.mora.sheet import ADAPTED, exam_table, loss_table, with_published
from experiments.tables.table import Table, no_figures

TASK = "biomed"
EXAMS = (
    Exam("PubMedQA", TASK, "pubmedqa"),
    Exam("USMLE", TASK, "medqa"),
    Exam("BioMMLU", TASK, "mmlu", subjects=True),
    Exam("RCT", TASK, "rct"),
    Exam("Avg", TASK),
)
HOW = (
    "Which subjects of MMLU are BioMMLU's is not said: ours are those that the runs name.",
    f"RCT: {ADAPTED}; PubMedQA and USMLE: the official test rows in lm-eval's prompts.",
)
figures = no_figures


def table(results: Sequence[dict], options: Any) -> Table:
    """The table on the base options.model, and the held-out losses of its rows."""
    model = options.model or MODEL
    found = rows(results, model, (TASK,))
    title = f"MoRA Table 6, {model}"
    shown = exam_table(title, with_published(found, paper.TABLE6), EXAMS, paper.TABLE6, paper.TABLE6_COLUMNS, HOW)
    return dataclasses.replace(shown, parts=loss_table(found, TASK))
