"""LoRA's Table 3: GPT-2 on E2E, the official scripts' five metrics; ours, and the paper's rows."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from experiments.papers import nlg
from experiments.tables.nlg.rows import LORA_RANK, METHODS, MODEL, Column, rows
from experiments.tables.nlg.sheet import MEAN, papers_part, sheet
from experiments.tables.table import Table, no_figures

COLUMNS = (
    Column("BLEU", "bleu_python"),
    Column("NIST", "nist_python", 2),
    Column("METEOR", "meteor"),
    Column("ROUGE-L", "rouge_l"),
    Column("CIDEr", "cider", 2),
)
LOSS = Column("val. loss", "loss", 3)
PERL = Column("NIST v13a", "nist", 2)
HOW = (
    "BLEU and NIST as `measure_scores.py -p` counts them, which LoRA's authors ran; NIST v13a: as the Perl program "
    "does, with another length of the references."
)
USERS = "Users of the official code report BLEU 68.65 to 68.87 with the published recipe, not 70.4."
figures = no_figures


def table(results: Sequence[dict], options: Any) -> Table:
    """The table on options.model; further ranks of LoRA and MoRA are Table 18's."""
    model = options.model or MODEL
    columns = (*COLUMNS, PERL, LOSS)
    found = rows(results, model, ("e2e",), columns, METHODS, _of_table3)
    shown = sheet("LoRA Table 3 (E2E test)", model, found, columns, (MEAN, HOW, USERS))
    return dataclasses.replace(shown, parts=papers_part("Table 3", nlg.TABLE3, COLUMNS, model))


def _of_table3(result: dict) -> bool:
    labels = result["labels"]
    return labels.get("method") not in ("lora", "mora") or labels.get("rank") == LORA_RANK
