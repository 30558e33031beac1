"""LoRA and MoRA of equal size at three ranks, for example on your own text; --together=3 joins LoRA's in one program.

    python -m experiments.sweep --config=configs/finetune.py:data=mine.jsonl,validation=held.jsonl \\
        --grid=configs/sweeps/ranks.py --together=3 --results=ranks
    python -m experiments.tables sweep --results=ranks.jsonl
"""


def cells():
    """A cell for each method and rank."""
    return [dict(arg=f"method={method},rank={rank}") for method in ("lora", "mora") for rank in (2, 4, 8)]
