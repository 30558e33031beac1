"""Shapes for experiments.bench: random weights of a registered shape, adapters on all seven projections, random tokens.

    python -m experiments.bench --config=configs/bench.py:shape=llama2-7b,batch=8,seq=512,remat=projections
    python -m experiments.bench --config=configs/bench.py:shape=smollm2-135m,batch=64,seq=64
    python -m experiments.bench --config=configs/bench.py:shape=pico-llama,batch=64,seq=72,dtype=float32    # a CPU
    python -m experiments.bench --config=configs/bench.py:shape=llama2-7b,batch=4,seq=512,remat=attention \
        --config.base.quantize=nf4    # or int8: for a card of 12 GiB
    python -m experiments.bench --config=configs/bench.py:shape=smollm2-135m,batch=8,seq=512,documents=8   # packed rows

The peers' figures for the same work (HF PEFT, one H100, bfloat16, LoRA r=8): LLaMA-2-7B shape 8 x 512 16,500
tokens/s and 30.8 GiB with torch.compile; SmolLM2-135M shape 64 x 64 51,782 tokens/s.
"""

from ml_collections import ConfigDict

from configs.common import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    """The step to be measured."""
    choice = parse_arg(
        arg,
        shape="llama2-7b",
        method=("lora", "mora", "fft", "dora"),
        compression="sharing",
        rank=8,
        batch=8,
        seq=512,
        remat="none",
        unroll=1,
        fused=False,
        chunk_tokens=0,
        attention="auto",
        dtype=("bfloat16", "float32"),
        documents=0,
    )
    config = ConfigDict()
    config.experiment = "bench"
    config.name = None
    config.seed = 0
    config.labels = {
        "shape": choice.shape,
        "method": choice.method if choice.method != "mora" else f"mora {choice.compression}",
        "rank": choice.rank,
        "seq_len": choice.seq,
    }
    config.trainable = "full" if choice.method == "fft" else "adapters"
    config.base = {
        "name": choice.shape,
        "dtype": choice.dtype,
        "random_init": True,
        "remat": choice.remat,
        "scan_unroll": choice.unroll,
        "fused": choice.fused,
        "attention": choice.attention,
    }
    config.adapter = {
        "method": "none" if choice.method == "fft" else choice.method,
        "rank": choice.rank,
        "targets": ("all-linear",),
        "mora": {"compression": choice.compression},
    }
    config.task = {"name": "uuid"}
    if choice.documents:  # packed rows, as of task.documents=separate; their lengths are drawn by the benchmark
        config.labels["documents"] = choice.documents
        config.task = {"name": "text", "path": "random tokens", "packed": True, "documents": "separate"}
    config.optimizer = {"learning_rate": 3e-4, "clip_norm": 0.0}  # the peer's step does not clip
    config.schedule = {"kind": "constant"}
    config.train = {"steps": 1_000, "batch_size": choice.batch, "chunk_tokens": choice.chunk_tokens}
    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1}
    return config
