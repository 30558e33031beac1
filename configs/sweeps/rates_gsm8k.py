"""The fair comparison on GSM8K's answers: 19 rows, each at its own rate, by the held-out loss of the test's answers.

    python -m experiments.sweep --config=configs/mora_finetune.py --grid=configs/sweeps/rates_gsm8k.py --together=36 \\
        --config.base.scan_unroll=30 --results=experiments/results/rates_gsm8k
    ... --grid=configs/sweeps/rates_gsm8k.py:model=gemma3-270m --config.base.scan_unroll=18
    ... --grid=configs/sweeps/rates_gsm8k.py:rates=13,per_decade=4,seeds=5    # rates as in the literature, more seeds

150 steps of 8 x 256 packed tokens, 0.3M tokens. Rates, seeds and LoRA's ranks share a program; --only=method=fft takes
one method, with another --together: full fine-tuning has moments of its own for each trial, and may be faster alone.

Data, below the folder that the command is run in: data/gsm8k/train.jsonl.gz and test.jsonl.gz; text to forget,
data/text/novels.jsonl and peps.jsonl. Stages and arguments: configs/hyperparameters/rates.py.
"""

from configs.common import Count, parse_arg
from configs.hyperparameters import rates

MODELS = ("smollm2-135m", "gemma3-270m")
DATA = "task=math,data=data/gsm8k/train.jsonl.gz,validation=data/gsm8k/test.jsonl.gz"


def stages(arg=None):
    """[(stage, cells)]: a geometric series of rates, more where the best is at an end, and seeds near the best."""
    return rates.answers(parse_arg(arg, model=MODELS, rates=9, per_decade=3, seeds=3, steps=Count), DATA)
