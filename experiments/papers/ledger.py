"""Prints where the papers of MoRA and LoRA, their official code and PEFT's disagree, and which reading we take."""

from typing import Any

from experiments.papers.ledger_lora import LORA, LORA_NLG, PREFIX
from experiments.papers.ledger_mora import MORA, MORA_FINETUNE, MORA_PRETRAIN
from experiments.papers.ledger_peft import PEFT
from experiments.tables.table import Table, no_figures

LEDGERS = {
    "MoRA (Jiang et al.)": MORA,
    "MoRA's fine-tuning (Jiang et al.)": MORA_FINETUNE,
    "MoRA's pre-training (Jiang et al.)": MORA_PRETRAIN,
    "PEFT's comparison on MetaMathQA": PEFT,
    "LoRA on GLUE (Hu et al.)": LORA,
    "LoRA on GPT-2 and GPT-3 (Hu et al.)": LORA_NLG,
    "prefix methods (Hu et al.)": PREFIX,
}
LEDGER = MORA + MORA_FINETUNE + MORA_PRETRAIN + PEFT + LORA + LORA_NLG + PREFIX


def load(places: Any) -> None:
    """It reads no results."""


def table(results: Any, options: Any) -> Table:
    """The ledgers as text, one block a point."""
    blocks, number = [], 0
    for paper, points in LEDGERS.items():
        blocks.append(paper)
        for point in points:
            number += 1
            lines = [f"{number:2}. {point.name}"]
            lines += [f"    {field:7}{getattr(point, field)}" for field in point._fields[1:]]
            blocks.append("\n".join(lines))
    return Table("\n".join(blocks))


figures = no_figures
