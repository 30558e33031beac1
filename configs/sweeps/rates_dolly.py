"""The fair comparison on Dolly-15k's answers: as rates_gsm8k.py, by the held-out loss of 500 other answers.

    python -m experiments.sweep --config=configs/mora_finetune.py --grid=configs/sweeps/rates_dolly.py --together=36 \\
        --config.base.scan_unroll=30 --results=experiments/results/rates_dolly

Data: data/dolly/train.jsonl and held.jsonl (docs/reproducing.md has the split); arguments, text to forget and Gemma as
there.
"""

from configs.common import Count, parse_arg
from configs.hyperparameters import rates

MODELS = ("smollm2-135m", "gemma3-270m")
DATA = "task=instruct,data=data/dolly/train.jsonl,validation=data/dolly/held.jsonl"


def stages(arg=None):
    """[(stage, cells)]: a geometric series of rates, more where the best is at an end, and seeds near the best."""
    return rates.answers(parse_arg(arg, model=MODELS, rates=9, per_decade=3, seeds=3, steps=Count), DATA)
