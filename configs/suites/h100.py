"""Training steps on one GPU compared with HF PEFT's: bfloat16 base of random weights, seven adapted projections, AdamW.

    python -m experiments.bench --suite=h100 --peer=FOLDER/peer_peft.py

A row is one configuration, measured in separate processes: `words` are arguments of experiments.bench, `peer` of the
peer's script (None: the peer has no such configuration), `env` is set for ours. A claim compares medians:

* speed (tokens/s), time (ms), memory (most GiB) of ours over those of `to`: "peer", or another row's ours; memory over
  `times` of them where that many processes would run at once; without `to`, memory in GiB;
* loss: the difference of the first step's losses, where both sides have the same weights and tokens;
* start (seconds from the command to the end of the first step, nothing cached) and warm (how many times faster with the
  first start's compilation cache) of a row with `start`.

`least` and `most` are the aims (docs/performance.md). MoRA's aims are LoRA's time at equal parameters; the table also
has its FLOPs over LoRA's: 1.00 for sharing, 1.06 (r=8) and 1.25 (r=256) for rotation.
"""

PEER = None  # its script comes with --peer: the package imports no torch
PEER_NAME = "HF PEFT + torch.compile"

SEVEN_B = "--config=configs/bench.py:shape=llama2-7b"
SMALL = "--config=configs/bench.py:shape=smollm2-135m"
LONG = ("--steps=10", "--warmup=2")  # steps of a second and more
PEER_7B = ("--shape=7b", "--batch=8", "--seq=512", "--rank=8", "--compile", "--steps=20")
PEER_LONG = ("--shape=7b", "--batch=16", "--seq=1024", "--rank=8", "--remat", "--compile", "--steps=10")
# Fastest without --remat (gradient checkpointing): 12,097 tokens/s in 60.6 GiB on one H200; with it 9,439 in 23.6.
PEER_8B = ("--shape=8b", "--batch=2", "--seq=4096", "--rank=16", "--vocab=128256", "--compile", "--steps=10")
PEER_SMALL = ("--shape=135m", "--vocab=49152", "--batch=64", "--seq=64", "--rank=8", "--compile", "--steps=30")
# By the compiler's count 27.2 GiB of 8 x 512 tokens; with the activation recomputed and 256 tokens' logits at a time
# 24.5; as a scan with whole logits 25.0.
SCAN = "remat=projections,fused=True"
UNROLLED = "fused=True,unroll=32"
FAST, LOW_MEMORY = (
    f"remat=activations,{UNROLLED},chunk_tokens=1024",
    f"remat=projections,{UNROLLED},chunk_tokens=256",
)
SMALL_UNROLLED = "method=lora,rank=8,fused=True,unroll=30"
# By the compiler's count 3.4 GiB of eight trials, where a single run has 1.06.
TRIALS = f"{SMALL_UNROLLED},remat=projections,chunk_tokens=48"
TRIALS_LOW = f"{SMALL_UNROLLED},remat=attention,chunk_tokens=32"
NO_TRITON = "--xla_gpu_enable_triton_gemm=false"  # most of a short compilation: docs/performance_log.md
AHEAD = (dict(what="speed", to="peer", least=1.15), dict(what="memory", to="peer", most=1.0))


def _adapter(method: str, rank: int, how: str = FAST) -> str:
    return f"{SEVEN_B},batch=8,seq=512,{method},rank={rank},{how}"


ROWS = (
    dict(
        name="7b-lora-8",
        work="LLaMA-2-7B shape, LoRA r=8, 8 x 512",
        words=(_adapter("method=lora", 8),),
        peer=PEER_7B,
        claims=AHEAD,
    ),
    dict(
        name="7b-lora-8-scan",
        work="LLaMA-2-7B shape, LoRA r=8, 8 x 512, a scan over the layers",
        words=(_adapter("method=lora", 8, SCAN),),
        peer=PEER_7B,
        claims=AHEAD,
    ),
    dict(
        name="7b-lora-8-low-memory",
        work="LLaMA-2-7B shape, LoRA r=8, 8 x 512, low memory",
        words=(_adapter("method=lora", 8, LOW_MEMORY),),
        peer=PEER_7B,
        claims=(dict(what="speed", to="peer", least=1.0), dict(what="memory", to="peer", most=0.8)),
    ),
    dict(
        name="7b-lora-8-long",
        work="LLaMA-2-7B shape, LoRA r=8, 16 x 1024, remat=full",
        words=(f"{SEVEN_B},batch=16,seq=1024,method=lora,rank=8,remat=full,{UNROLLED}", *LONG),
        peer=PEER_LONG,
        claims=(dict(what="speed", to="peer"), dict(what="memory", to="peer", most=1.0)),
    ),
    dict(
        name="7b-lora-8-long-fast",  # 59.6 GiB by the compiler's count
        work="LLaMA-2-7B shape, LoRA r=8, 16 x 1024, remat=projections",
        words=(f"{SEVEN_B},batch=16,seq=1024,method=lora,rank=8,remat=projections,chunk_tokens=512,{UNROLLED}", *LONG),
        peer=PEER_LONG,
        env={"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"},  # of 80 GB; jax takes 0.75 by itself
        claims=(dict(what="speed", to="peer", least=1.25), dict(what="memory", to="peer")),
    ),
    *(
        dict(
            name=f"7b-{method.lower().replace(' ', '-')}-{rank}",
            work=f"LLaMA-2-7B shape, {method} r={rank}, 8 x 512",
            words=(_adapter(f"method={method.lower().replace(' ', ',compression=')}", rank),),
            claims=(dict(what="time", to=f"7b-lora-{beside}", most=most),),
        )
        for method, rank, beside, most in (
            ("LoRA", 256, 8, 1.2),
            ("MoRA sharing", 8, 8, 1.0),
            ("MoRA rotation", 8, 8, 1.1),
            ("MoRA sharing", 256, 256, 1.0),
            ("MoRA rotation", 256, 256, 1.35),
        )
    ),
    dict(
        name="smollm2-64x64",
        work="SmolLM2-135M shape, LoRA r=8, 64 x 64",
        words=(f"{SMALL},batch=64,seq=64,{SMALL_UNROLLED}", "--steps=30"),
        peer=PEER_SMALL,
        claims=(dict(what="speed", to="peer", least=5.0), dict(what="memory", to="peer")),
    ),
    dict(
        name="smollm2-64x64-scan",
        work="the same, a scan over the layers",
        words=(f"{SMALL},batch=64,seq=64,method=lora,rank=8", "--steps=30"),
        claims=(dict(what="time", to="smollm2-64x64"),),
    ),
    dict(
        name="smollm2-16x64",
        work="SmolLM2-135M shape, LoRA r=8, 16 x 64: one run",
        words=(f"{SMALL},batch=16,seq=64,{SMALL_UNROLLED}", "--steps=30"),
    ),
    dict(
        name="smollm2-16x64-scan",
        work="the same, a scan over the layers (the configs' default)",
        words=(f"{SMALL},batch=16,seq=64,method=lora,rank=8", "--steps=30"),
    ),
    *(
        dict(
            name=name,
            work=f"SmolLM2-135M shape, 8 trials of 16 x 64 in one program{how}",
            words=(f"{SMALL},batch=16,seq=64,{words}", "--trials=8", "--steps=30"),
            claims=(
                dict(what="speed", to=beside, least=3.0),
                dict(what="memory", to=beside, times=8, most=0.4),
                *(dict(what="speed", to=other) for other in ("smollm2-16x64-scan",) if other != beside),
            ),
        )
        for name, how, words, beside in (
            ("smollm2-8-trials", "", TRIALS, "smollm2-16x64"),
            ("smollm2-8-trials-low-memory", ", low memory", TRIALS_LOW, "smollm2-16x64"),
            ("smollm2-8-trials-scan", ", a scan over the layers", "method=lora,rank=8", "smollm2-16x64-scan"),
        )
    ),
    *(
        dict(
            name=f"7b-{kind}",
            work=f"LLaMA-2-7B shape, {kind} base, LoRA r=8, 4 x 512",
            words=(
                f"{SEVEN_B},batch=4,seq=512,method=lora,rank=8,remat={remat},chunk_tokens=256",
                f"--config.base.quantize={kind}",
            ),
            claims=(dict(what="memory", most=12.0),),
        )
        # By the compiler's count 8.2 and 10.0 GiB; int8 with remat=projections 12.9.
        for kind, remat in (("int8", "attention"), ("nf4", "projections"))
    ),
    *(
        dict(
            name=f"{name}-start",
            work=f"{what}: from the command to the first step",
            words=(words, "--steps=10", "--warmup=1"),
            env=env,
            start=True,
            claims=(dict(what="start", most=seconds), dict(what="warm", least=3.0)),
        )
        for name, what, words, env, seconds in (
            ("7b", "LLaMA-2-7B shape, 8 x 512", _adapter("method=lora", 8), {}, 45.0),
            ("7b-scan", "LLaMA-2-7B shape, 8 x 512, a scan", _adapter("method=lora", 8, SCAN), {}, 45.0),
            ("smollm2", "SmolLM2-135M shape, 64 x 64", f"{SMALL},batch=64,seq=64,{SMALL_UNROLLED}", {}, 15.0),
            (
                "smollm2-scan",
                "SmolLM2-135M shape, 64 x 64, a scan without Triton products",
                f"{SMALL},batch=64,seq=64,method=lora,rank=8,fused=True",
                {"XLA_FLAGS": NO_TRITON},
                15.0,
            ),
        )
    ),
)
