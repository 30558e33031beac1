"""Training steps on two GPUs of one host compared with the same steps on one of them.

    python -m experiments.bench --suite=two_cards

Rows on one card see only the first card (CUDA_VISIBLE_DEVICES). LoRA r=8 on all seven projections, bfloat16, random
weights. `speed` is the ratio of tokens/s to those of the row named, `memory` the ratio of the most GiB on a card. Rows
named "-full" save only each layer's input (remat=full): then a card holds mostly weights, which fsdp divides.
"""

from configs.suites.h100 import FAST, LONG, SEVEN_B, SMALL, TRIALS

PEER = None
PEER_NAME = "no peer"

ONE = {"CUDA_VISIBLE_DEVICES": "0"}
DATA, FSDP = ("--config.mesh.data=2",), ("--config.mesh.data=1", "--config.mesh.fsdp=2")
# A scan, not unrolled layers: with those XLA's scheduler recomputes early, to hide the gathering of weights, and keeps
# the results (by the compiler's count 17.0 GiB beside the arguments; a scan 2.1).
FULL = "remat=full,fused=True,chunk_tokens=256"


def _seven(batch: int, how: str = FAST) -> str:
    return f"{SEVEN_B},batch={batch},seq=512,method=lora,rank=8,{how}"


ROWS = (
    dict(name="7b-one", work="LLaMA-2-7B shape, 8 x 512, one card", words=(_seven(8),), env=ONE),
    dict(
        name="7b-data",
        work="LLaMA-2-7B shape, 16 x 512, data=2",
        words=(_seven(16), *DATA),
        claims=(dict(what="speed", to="7b-one", least=1.9), dict(what="memory", to="7b-one")),
    ),
    dict(
        name="7b-fsdp",
        work="LLaMA-2-7B shape, 16 x 512, fsdp=2",
        words=(_seven(16), *FSDP),
        claims=(dict(what="speed", to="7b-one", least=1.9), dict(what="memory", to="7b-one")),
    ),
    dict(name="7b-one-full", work="LLaMA-2-7B shape, 8 x 512, remat=full, one card", words=(_seven(8, FULL),), env=ONE),
    dict(
        name="7b-fsdp-full",
        work="LLaMA-2-7B shape, 16 x 512, remat=full, fsdp=2",
        words=(_seven(16, FULL), *FSDP),
        claims=(dict(what="speed", to="7b-one-full", least=1.9), dict(what="memory", to="7b-one-full", most=0.6)),
    ),
    dict(
        name="7b-fsdp-same-batch",
        work="LLaMA-2-7B shape, 8 x 512 over both cards, fsdp=2",
        words=(_seven(8), *FSDP),
        claims=(dict(what="speed", to="7b-one"), dict(what="memory", to="7b-one", most=0.6)),
    ),
    dict(
        name="13b-fsdp",
        work="LLaMA-2-13B shape, 16 x 1024, remat=full, fsdp=2",
        words=(
            "--config=configs/bench.py:shape=llama2-13b,batch=16,seq=1024,method=lora,rank=8,remat=full,fused=True,"
            "chunk_tokens=512",
            *FSDP,
            *LONG,
        ),
    ),
    dict(
        name="smollm2-8-trials-one",
        work="SmolLM2-135M shape, 8 trials of 16 x 64, one card",
        words=(f"{SMALL},batch=16,seq=64,{TRIALS}", "--trials=8", "--steps=30"),
        env=ONE,
    ),
    dict(
        name="smollm2-16-trials",
        work="SmolLM2-135M shape, 16 trials of 16 x 64 over two cards",
        words=(f"{SMALL},batch=16,seq=64,{TRIALS}", "--trials=16", "--steps=30"),
        claims=(dict(what="speed", to="smollm2-8-trials-one", least=1.9),),
    ),
)
