"""Cost at equal rank: a step of each method of the grids configs/sweeps/rates_*.py, alone on one GPU, 8 x 256 tokens.

    python -m experiments.bench --suite=rates --results=experiments/results/speed/rates_suite.json

As in those grids: bfloat16 base, seven projections, all layers in one program without a loop, projections recomputed.
rsLoRA's step is LoRA's. `python -m experiments.tables rates` puts time and memory beside the losses.
"""

PEER = None
PEER_NAME = "none"
LAYERS = {"smollm2-135m": 30, "gemma3-270m": 18}
CHUNKS = {"smollm2-135m": 8_192, "gemma3-270m": 2_048}  # as in configs/mora_finetune.py
ADAPTERS = {"method=lora": (2, 8, 32, 128), "method=dora": (2, 8, 32, 128)}
ADAPTERS |= {f"method=mora,compression={name}": (2, 8, 32) for name in ("sharing", "rotation")}


def _words(shape: str, method: str) -> tuple[str, ...]:
    how = f"batch=8,seq=256,remat=projections,unroll={LAYERS[shape]},chunk_tokens={CHUNKS[shape]}"
    return (f"--config=configs/bench.py:shape={shape},{method},{how}",)


def _name(shape: str, method: str) -> str:
    return "-".join([shape, *(pair.partition("=")[2] for pair in method.split(","))])


METHODS = ("method=fft", *(f"{method},rank={rank}" for method, ranks in ADAPTERS.items() for rank in ranks))
ROWS = tuple(
    dict(
        name=_name(shape, method),
        work=f"{shape}, {method}, 8 x 256",
        words=_words(shape, method),
    )
    for shape in LAYERS
    for method in METHODS
)
