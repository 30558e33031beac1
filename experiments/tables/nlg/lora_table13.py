"""LoRA's Table 13: GPT-2 on DART; ours, and the paper's rows."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from experiments.papers import nlg
from experiments.tables.nlg.rows import METHODS, MODEL, Column, rows
from experiments.tables.nlg.sheet import MEAN, papers_part, sheet
from experiments.tables.table import Table, no_figures

COLUMNS = (Column("BLEU", "bleu"), Column("METEOR", "meteor", 2), Column("TER", "ter", 2))
WITHOUT_DATA = (
    "A run needs DART's official training file (dart-v1.1.1-full-train.json), which was not to be had where these "
    "tables were made; prompts and scores are tested on the official dev and test rows."
)
figures = no_figures


def table(results: Sequence[dict], options: Any) -> Table:
    """The table of the runs on the base options.model, with the paper's rows."""
    model = options.model or MODEL
    found = rows(results, model, ("dart",), COLUMNS, METHODS)
    captions = (MEAN,) if any(row.seeds for row in found) else (MEAN, WITHOUT_DATA)
    shown = sheet("LoRA Table 13 (DART test)", model, found, COLUMNS, captions)
    return dataclasses.replace(shown, parts=papers_part("Table 13", nlg.TABLE13, COLUMNS, model))
