"""LoRA and MoRA of equal size at three ranks, e.g. on your own text; as few programs as can be with --together=3.

    python -m experiments.sweep --config=configs/mora_uuid.py:data=text --config.task.path=mine.jsonl \\
        --grid=configs/sweeps/ranks.py --together=3 --results=ranks
    python -m experiments.tables sweep --results=ranks.jsonl
"""


def cells():
    """[cell]: method by method, rank by rank."""
    return [dict(arg=f"method={method},rank={rank}") for method in ("lora", "mora") for rank in (2, 4, 8)]
