"""LoRA's Table 14: GPT-2 on WebNLG, by categories that training saw or did not; ours, and the paper's rows."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from experiments.papers import nlg
from experiments.tables.nlg.rows import METHODS, MODEL, Column, rows
from experiments.tables.nlg.sheet import MEAN, papers_part, sheet
from experiments.tables.table import Table, no_figures

NAMES = {"bleu": ("BLEU", 1), "meteor": ("MET", 2), "ter": ("TER", 2)}
COLUMNS = tuple(
    Column(f"{NAMES[metric][0]} {split}", f"{split}/{metric}", NAMES[metric][1]) for metric, split in nlg.WEBNLG
)
figures = no_figures


def table(results: Sequence[dict], options: Any) -> Table:
    """The table of the runs on the base options.model, with the paper's rows."""
    model = options.model or MODEL
    found = rows(results, model, ("webnlg",), COLUMNS, METHODS)
    shown = sheet("LoRA Table 14 (WebNLG 2017 test)", model, found, COLUMNS, (MEAN,))
    return dataclasses.replace(shown, parts=papers_part("Table 14", nlg.TABLE14, COLUMNS, model))
