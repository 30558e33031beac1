"""Training steps beside a frozen base of FP8 codes (`base.quantize=fp8`), compared with bfloat16's and with HF PEFT's.

    python -m experiments.bench --suite=fp8 --peer=FOLDER/peer_peft.py

On one GPU of compute capability 8.9 or more; rows and claims as in configs/suites/h100.py. The peers' side is bfloat16:
torch.compile of an FP8 base has no backward pass of FP8 products. The rows of 7B whose names end in "kept", "e5m2" and
"row" differ from the first in `base.fp8` alone.
"""

from configs.suites.h100 import FAST, LONG, PEER_7B, SEVEN_B, UNROLLED

PEER = None
PEER_NAME = "HF PEFT + torch.compile, bfloat16"

FP8 = "--config.base.quantize=fp8"
PEER_8B = ("--shape=8b", "--batch=2", "--seq=4096", "--rank=16", "--vocab=128256", "--remat", "--compile", "--steps=10")


def _seven(method: str, rank: int) -> str:
    return f"{SEVEN_B},batch=8,seq=512,{method},rank={rank},{FAST}"


def _eight(remat: str) -> str:
    how = f"remat={remat},{UNROLLED},chunk_tokens=1024"
    return f"--config=configs/bench.py:shape=llama3-8b,batch=2,seq=4096,method=lora,rank=16,{how}"


ROWS = (
    dict(
        name="7b-lora-8",
        work="LLaMA-2-7B shape, LoRA r=8, 8 x 512, FP8",
        words=(_seven("method=lora", 8), FP8),
        peer=PEER_7B,
        claims=(
            dict(what="speed", to="peer", least=1.6),
            dict(what="speed", to="7b-lora-8-bfloat16"),
            dict(what="memory", most=25.0),
        ),
    ),
    dict(name="7b-lora-8-bfloat16", work="the same, bfloat16", words=(_seven("method=lora", 8),), peer=PEER_7B),
    *(
        dict(
            name=f"7b-lora-8-{value}",
            work=f"the same, FP8, base.fp8.{key}={value}",
            words=(_seven("method=lora", 8), FP8, f"--config.base.fp8.{key}={value}"),
            claims=(dict(what="time", to="7b-lora-8"), dict(what="memory", to="7b-lora-8")),
        )
        for key, value in (("transposed", "kept"), ("gradients", "e5m2"), ("activations", "row"))
    ),
    *(
        dict(
            name=f"7b-{name}",
            work=f"LLaMA-2-7B shape, {work} r={rank}, 8 x 512, FP8",
            words=(_seven(method, rank), FP8),
            claims=(dict(what="time", to="7b-lora-8", most=most),),
        )
        for name, work, method, rank, most in (
            ("mora-sharing-8", "MoRA sharing", "method=mora,compression=sharing", 8, 1.0),
            ("mora-rotation-8", "MoRA rotation", "method=mora,compression=rotation", 8, 1.1),
            ("lora-256", "LoRA", "method=lora", 256, 1.25),
        )
    ),
    *(
        dict(
            name=f"8b-lora-16{'' if kind else '-bfloat16'}",
            work=f"Llama-3-8B shape, LoRA r=16, 2 x 4096, remat={remat}, {kind or 'bfloat16'}",
            words=(_eight(remat), *([FP8] if kind else []), *LONG),
            peer=PEER_8B,
            claims=(dict(what="speed", to="peer", least=least), dict(what="memory", to="peer", most=1.0)),
        )
        for kind, remat, least in (("FP8", "activations", 2.0), ("", "activations", 1.35))
    ),
)
