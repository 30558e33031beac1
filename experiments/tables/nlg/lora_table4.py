"""LoRA's Tables 4 and 15: WikiSQL, MNLI and SAMSum by GPT-3; ours on another base, and the paper's rows."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from experiments.papers import gpt3
from experiments.tables.nlg.rows import MODEL, Column, rows
from experiments.tables.nlg.sheet import MEAN, sheet
from experiments.tables.table import Table, no_figures

METHODS = ("fft", "bitfit", "preembed", "prelayer", "houlsby", "lora", "mora")
TITLES = ("WikiSQL", "MNLI-m", "SAMSum R1", "SAMSum R2", "SAMSum RL")
SCALES = {"wikisql": 1, "samsum": 1}  # recorded in %; MNLI as a fraction
COLUMNS = tuple(
    Column(title, score, scale=SCALES.get(task, 100), of=lambda run, task=task: run["labels"].get("task") == task)
    for title, (task, score) in zip(TITLES, gpt3.COLUMNS, strict=True)
)
WHAT = (
    "In %: WikiSQL the logical form's accuracy on the validation set, MNLI on the matched one, SAMSum ROUGE-1, -2, -L "
    "on the test set."
)
FEW_ROWS = "MNLI with 100, 1,000 and 10,000 training rows is in lora_table16."
WITHOUT_DATA = "We could not obtain the full WikiSQL, SAMSum and most of MNLI's training rows; the notes name a sample."
figures = no_figures


def table(results: Sequence[dict], options: Any) -> Table:
    """The table on options.model; as parts Table 4 and Table 15 as printed."""
    model = options.model or MODEL
    found = rows(results, model, [task for task, _ in gpt3.COLUMNS], COLUMNS, METHODS, keep=_not_few)
    shown = sheet("LoRA Tables 4 and 15", model, found, COLUMNS, (MEAN, WHAT, WITHOUT_DATA, FEW_ROWS))
    return dataclasses.replace(shown, parts=_parts(model))


def _not_few(result: dict) -> bool:
    """Whether a run has none of the small training sets of Table 16."""
    return (result["config"].get("task") or {}).get("train_examples") not in gpt3.FEW[:-1]


def _parts(model: str) -> tuple[Table, ...]:
    whose = "the same base model" if model == gpt3.MODEL else "ANOTHER base model"
    spreads = ", ".join(f"{title} {spread}" for title, spread in zip(TITLES, gpt3.SPREADS, strict=True))
    parts = []
    for name, published, titles in (("Table 4", gpt3.TABLE4, TITLES), ("Table 15", gpt3.TABLE15, TITLES[:2])):
        lines = [["method", "setting", "trainable", *titles]]
        lines += [[r.name, r.setting or "-", r.parameters, *(f"{score:.1f}" for score in r.scores)] for r in published]
        captions = (f"Over seeds the numbers vary by {spreads}.",) if name == "Table 4" else ()
        if len({r.setting for r in published}) == 1:
            lines = [[line[0], *line[2:]] for line in lines]
        parts.append(Table(f"The paper's {name}, {whose}, {gpt3.MODEL}", tuple(lines), captions))
    return tuple(parts)
