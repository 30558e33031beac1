"""Where MoRA's paper and its official code (kongds/MoRA, commit de5df31) disagree, and which reading we take."""

from typing import NamedTuple


class Disagreement(NamedTuple):
    """One point: the paper's reading, the code's, ours, and the config key that switches."""

    name: str
    paper: str
    code: str
    ours: str
    switch: str


LEDGER = (
    Disagreement(
        "size of the square",
        "floor(sqrt((d + k) r))",
        "rounded half up; rotation then rounds down to an even size",
        "code",
        "adapter.mora.rounding = half_up | floor",
    ),
    Disagreement(
        "rotated pairs",
        "neighbours (2j, 2j+1); Eq. 9 numbers its blocks 1 to n-1",
        "(j, j + size/2); block 0 is not rotated",
        "code (the two differ by a permutation of the square)",
        "adapter.mora.layout = half | pairs",
    ),
    Disagreement(
        "padding of the input",
        "says that it is padded, not with what",
        "its own first entries again (a zero-pad line is commented out)",
        "code",
        "adapter.mora.padding = wrap | zero",
    ),
    Disagreement(
        "compression for UUID",
        "names Eq. 8 (decoupling) but describes sharing, Eq. 6",
        "no UUID script; default is type 1, sharing by stride",
        "sharing (type 1)",
        "adapter.mora.compression = sharing | decoupling | ...",
    ),
    Disagreement(
        "truncation and decoupling",
        "Eqs. 4, 5 and 8",
        "absent: types 1, 2, 3, 4 and 6 only",
        "both are written from the equations",
        "adapter.mora.compression = truncation | decoupling",
    ),
    Disagreement(
        "alpha",
        "no scale in MoRA's equations",
        "lora_alpha is accepted and ignored (scale 1)",
        "both: MoRA ignores alpha",
        "none",
    ),
    Disagreement(
        "batch and pairs a step",
        "1,000",
        "1,024 by the author's script (8 GPUs x 128)",
        "paper: 1,000 pairs, 1,000 steps are 100 epochs",
        "train.batch_size",
    ),
    Disagreement(
        "loss",
        "not said",
        "all tokens, the unpredictable key too (the author's answer)",
        "config by config: see config.task.loss_on",
        "task.loss_on = all | value",
    ),
    Disagreement(
        "base weights",
        "not said",
        "8-bit, since the script gives no 16-bit flag",
        "bfloat16 on accelerators, float32 on CPU",
        "base.dtype",
    ),
    Disagreement(
        "accuracy",
        "'character-level', not defined",
        "no evaluation code; 9.9% at the start fits the 32 digits without hyphens (chance 9.77%; with them 19.8%)",
        "the 32 digits, greedy decoding of the value",
        "none",
    ),
    Disagreement(
        "LoRA's dropout",
        "not said",
        "train.py's default 0.05, seed 42",
        "0",
        "adapter.dropout",
    ),
)


def render() -> str:
    """The ledger as text, one block a point."""
    blocks = []
    for number, point in enumerate(LEDGER, 1):
        lines = [f"{number:2}. {point.name}"]
        lines += [f"    {field:7}{getattr(point, field)}" for field in point._fields[1:]]
        blocks.append("\n".join(lines))
    return "\n".join(blocks)
