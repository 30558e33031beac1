"""Training steps beside a frozen base of FP8 codes (`base.quantize=fp8`), compared with bfloat16's and with HF PEFT's.

    python -m experiments.bench --suite=fp8 --peer=FOLDER/peer_peft.py

On one GPU of compute capability 8.9 or more; rows and claims as in configs/suites/h100.py. The peers' side is bfloat16:
torch.compile of an FP8 base has no backward pass of FP8 products. The rows of 7B that end in a value of `base.fp8` have
nothing else of their own; "bound-fixed" reads no largest entry where none is needed; "bound-fixed-kept" transposes
nothing either, in memory that `remat=projections` frees; "weights" has a bfloat16 forward pass.
"""

from configs.suites.h100 import FAST, LONG, PEER_7B, PEER_8B, SEVEN_B, UNROLLED

PEER = None
PEER_NAME = "HF PEFT + torch.compile, bfloat16"

FP8 = "--config.base.quantize=fp8"
BOUND_FIXED = (FP8, "--config.base.fp8.activations=bound", "--config.base.fp8.gradients=fixed")
WEIGHTS = (FP8, "--config.base.fp8.forward=weights")
KEPT = "--config.base.fp8.transposed=kept"
LEAN = f"remat=projections,{UNROLLED},chunk_tokens=1024"


def _seven(method: str, rank: int, how: str = FAST) -> str:
    return f"{SEVEN_B},batch=8,seq=512,{method},rank={rank},{how}"


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
        for key, value in (
            ("transposed", "kept"),
            ("gradients", "e5m2"),
            ("gradients", "fixed"),
            ("activations", "row"),
            ("activations", "bound"),
        )
    ),
    *(
        dict(
            name=f"7b-lora-8-{name}",
            work=f"the same, FP8, base.fp8: {what}",
            words=(_seven("method=lora", 8, how), *words),
            peer=PEER_7B,
            claims=(
                dict(what="speed", to="peer", least=least),
                dict(what="time", to="7b-lora-8"),
                dict(what="memory", most=most),
            ),
        )
        # By the compiler's count 21.3, 24.6 and 33.3 GiB.
        for name, what, how, words, least, most in (
            ("bound-fixed", "bound, fixed", FAST, BOUND_FIXED, 1.6, 25.0),
            ("bound-fixed-kept", "bound, fixed, kept; remat=projections", LEAN, (*BOUND_FIXED, KEPT), 1.6, 25.0),
            ("weights", "forward=weights", FAST, WEIGHTS, 1.3, 36.0),
        )
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
            name=f"8b-lora-16{name}",
            work=f"Llama-3-8B shape, LoRA r=16, 2 x 4096, remat={remat}, {kind}",
            words=(_eight(remat), *words, *LONG),
            peer=PEER_8B,
            claims=(dict(what="speed", to="peer", least=least), dict(what="memory", to="peer", most=1.0)),
        )
        for name, kind, words, remat, least in (
            ("", "FP8", (FP8,), "activations", 2.0),
            ("-bound-fixed", "FP8: bound, fixed", BOUND_FIXED, "activations", 2.0),
            ("-bfloat16", "bfloat16", (), "activations", 1.35),
        )
    ),
)
