"""MoRA's Table 1: instruction tuning, mathematics and two domains by every method; ours beside the paper's."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from experiments.papers import mora_finetune as paper
from experiments.tables.mora.exams import Exam
from experiments.tables.mora.rows import MODEL, TuneRow, rows
from experiments.tables.mora.sheet import exam_table, loss_table, with_published
from experiments.tables.table import Table, no_figures

EXAMS = (
    Exam("mmlu 0-shot", "instruct", "mmlu", 0),
    Exam("mmlu 5-shot", "instruct", "mmlu", 5),
    Exam("gsm8k", "math", "gsm8k", None, "strict_correct"),
    Exam("math", "math", "math", None, "math_verify_correct"),
    Exam("biomed", "biomed"),
    Exam("finance", "finance"),
)
ELSEWHERE = {"biomed": "in mora_table6", "finance": "in mora_table7"}
TASKS = ("instruct", "math", "biomed", "finance")
ABLATED = ("truncation", "decoupling", "type2", "type3", "type4")  # compressions without a row here; Table 4 has them
HOW = (
    "GSM8K: the number after ####, as lm-eval's strict filter reads it; MATH: math-verify. The paper does not say how "
    "it scored them."
)
figures = no_figures


def table(results: Sequence[dict], options: Any) -> Table:
    """The table on the base options.model, and for each task the held-out losses."""
    model = options.model or MODEL
    found = [row for row in rows(results, model, TASKS) if not _ablation(row)]
    title = f"MoRA Table 1, {model}"
    shown = exam_table(
        title, with_published(found, paper.TABLE1), EXAMS, paper.TABLE1, paper.TABLE1_COLUMNS, (HOW,), ELSEWHERE
    )
    return dataclasses.replace(shown, parts=tuple(part for task in TASKS for part in loss_table(found, task)))


def _ablation(row: TuneRow) -> bool:
    return row.method == "mora" and any(word in ABLATED for word in row.variant.split())
