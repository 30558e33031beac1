"""Training steps on one H200 beside the peers' own recipes: long rows, FP8 and 4-bit bases, many trials, starts.

    python -m experiments.bench --suite=h200 --peer=FOLDER/peer_peft.py
    python -m experiments.bench --suite=h200 --peer=FOLDER/peer_peft.py --rows='8b-*' --seconds=480

Rows, claims and the peer's words as in configs/suites/h100.py; claims without `to` are of the row's own tokens/s or
GiB, `second` of the seconds of a start with a filled compilation cache. `--rows` runs some rows and those that they are
compared with; all calls share one record, and a ratio is of one call. Rows of the 7B and 8B shapes take two processes,
which time their steps three times and once; the small shapes three processes.

The peer is HF PEFT + torch.compile, for MoRA the authors' layer in PyTorch (peer_mora.py, in the same folder). That one
is not compiled: torch.compile had not finished after 200 s. Figures
that others published are of other cards: they stand beside ours without a ratio.
"""

from configs.suites.h100 import LONG, NO_TRITON, PEER_7B, PEER_8B, PEER_SMALL, SEVEN_B, SMALL, SMALL_UNROLLED

PEER = None
PEER_NAME = "HF PEFT + torch.compile, bfloat16"
RECORD = "h200_recipes"  # h200_suite.json is of the suite h100, measured on an H200

FP8 = "--config.base.quantize=fp8"
UNROLLED = "fused=True,unroll=32"
LARGE = (3, 1)  # timings of the processes of a row
KINDS = (("", "bfloat16", ()), ("-fp8", "FP8", (FP8,)))  # ending of a row's name, text, words
# FP8's fastest settings; they need remat=projections. gradients=fixed has the defaults' loss in
# experiments/results/speed/rounding.jsonl; activations=bound is not measured there, and transposed=kept rounds nothing.
FASTEST = (FP8, *(f"--config.base.fp8.{key}" for key in ("activations=bound", "gradients=fixed", "transposed=kept")))
ACCURATE = (FP8, "--config.base.fp8.forward=weights")  # the gradients' cosine with the unquantised base's is above 0.99

EIGHT_B = "--config=configs/bench.py:shape=llama3-8b,method=lora,rank=16"
PEER_8B_LOW = (*PEER_8B, "--remat")  # beside our low-memory rows
EAGER = " (the peer: the authors' layer in PyTorch, not compiled)"
PEER_MORA = ("peer_mora.py", "--batch=8", "--seq=512", "--steps=10")
FAST = f"remat=activations,{UNROLLED},chunk_tokens=1024"
LOW = f"remat=projections,{UNROLLED},chunk_tokens=1024"
DOCUMENTS = 8  # a packed row of 4,096 tokens has so many, of 512 tokens on average


def _eight(how: str, documents: int = 0) -> str:
    return f"{EIGHT_B},batch=2,seq=4096,{how}" + (f",documents={documents}" if documents else "")


def _seven(method: str, how: str = FAST, size: str = "batch=8,seq=512") -> str:
    return f"{SEVEN_B},{size},{method},{how}"


def _compared(what: str, to: str, **aim: float) -> dict:
    return dict(what=what, to=to, **aim)


# 8B: bfloat16 17,500 tokens/s, FP8 24,000, which is twice the peer's 12,097 of the record before this suite.
EIGHTS = (
    *(
        dict(
            name=f"8b-lora-16{end}{low}",
            work=f"Llama-3-8B shape, LoRA r=16, 2 x 4096, {kind}, remat={'projections' if low else 'activations'}",
            words=(_eight(LOW if low else FAST), *words, *LONG),
            peer=PEER_8B_LOW if low else PEER_8B,
            claims=(
                dict(what="speed", least=24_000 if end else 17_500),
                _compared("speed", "peer", least=2.0 if end else 1.35),
                _compared("memory", "peer", **({} if low else {"most": 1.0})),
            ),
            timings=LARGE,
        )
        for end, kind, words in KINDS
        for low in ("", "-low-memory")
    ),
    dict(
        name="8b-lora-16-fp8-fastest",
        work="the same, FP8, remat=projections, activations=bound, gradients=fixed, transposed=kept",
        words=(_eight(LOW), *FASTEST, *LONG),
        peer=PEER_8B,
        claims=(dict(what="speed", least=24_000), _compared("speed", "peer", least=2.0), _compared("memory", "peer")),
        timings=LARGE,
    ),
    *(
        dict(
            name=f"8b-packed{end}",
            work=f"the same, {kind}, remat=activations, {DOCUMENTS} documents packed into a row",
            words=(_eight(FAST, DOCUMENTS), *words, *LONG),
            claims=(_compared("speed", f"8b-lora-16{end}", least=1.0), _compared("memory", f"8b-lora-16{end}")),
            timings=LARGE,
        )
        for end, kind, words in KINDS
    ),
    *(
        dict(
            name=f"8b-{name}",
            work=f"Llama-3-8B shape, LoRA, bfloat16, beside what {who} publishes",
            words=(_eight(FAST), *LONG),
            published=f"{who}: {figure} tok/s on one H100",
            timings=LARGE,
        )
        for name, who, figure in (("nemo", "NeMo AutoModel", "12,473"), ("lorafusion", "LoRAFusion", "14,875"))
    ),
    dict(
        name="8b-nf4",
        work="Llama-3-8B shape, nf4 base, LoRA r=16, 1 x 4096",
        words=(
            f"{EIGHT_B},batch=1,seq=4096,remat=attention,chunk_tokens=512",
            "--config.base.quantize=nf4",
            *LONG,
        ),
        claims=(dict(what="memory", most=12.0),),
        timings=LARGE,
    ),
)

# 7B. MoRA's aims are LoRA's time at equal parameters, r=256's that of r=8.
SEVENS = (
    *(
        dict(
            name=f"7b-lora-8{end}",
            work=f"LLaMA-2-7B shape, LoRA r=8, 8 x 512, {kind}",
            words=(_seven("method=lora,rank=8"), *words),
            peer=PEER_7B,
            claims=(
                _compared("speed", "peer", least=1.9 if end else 1.25),
                dict(what="memory", most=25.0) if end else _compared("memory", "peer", most=1.0),
                *([_compared("speed", "7b-lora-8")] if end else []),
            ),
            timings=LARGE,
        )
        for end, kind, words in KINDS
    ),
    *(
        dict(
            name=f"7b-lora-8-fp8-{name}",
            work=f"the same, FP8, {text}",
            words=(_seven("method=lora,rank=8", how), *words),
            peer=PEER_7B,
            claims=(
                _compared("speed", "peer", **aim),
                dict(what="memory", **({"most": 25.0} if aim else {})),
                _compared("speed", "7b-lora-8"),
            ),
            timings=LARGE,
        )
        for name, text, how, words, aim in (
            (
                "fastest",
                "remat=projections, activations=bound, gradients=fixed, transposed=kept",
                LOW,
                FASTEST,
                {"least": 1.9},
            ),
            ("accurate", "forward=weights", FAST, ACCURATE, {}),
        )
    ),
    *(
        dict(
            name=f"7b-mora-{name}-{rank}{end}",
            work=f"LLaMA-2-7B shape, MoRA {name} r={rank}, 8 x 512, {kind}" + (EAGER if rank == 8 else ""),
            words=(_seven(f"method=mora,compression={name},rank={rank}"), *words),
            peer=(*PEER_MORA, f"--kind={name}", f"--rank={rank}") if rank == 8 else None,
            claims=(
                _compared("time", f"7b-lora-{rank}{end}", most=most),
                *([_compared("speed", "peer")] if rank == 8 else [_compared("time", f"7b-mora-{name}-8{end}")]),
            ),
            timings=LARGE,
        )
        for end, kind, words in KINDS
        for name, rank, most in (
            ("sharing", 8, 1.0),
            ("rotation", 8, 1.05),
            ("sharing", 256, 1.0),
            ("rotation", 256, 1.25),
        )
    ),
    *(
        dict(
            name=f"7b-lora-256{end}",
            work=f"LLaMA-2-7B shape, LoRA r=256, 8 x 512, {kind}",
            words=(_seven("method=lora,rank=256"), *words),
            claims=(_compared("time", f"7b-lora-8{end}", most=1.25 if end else 1.2),),
            timings=LARGE,
        )
        for end, kind, words in KINDS
    ),
    dict(
        name="7b-packed-fp8",
        work="LLaMA-2-7B shape, LoRA r=8, 2 x 4096 packed, FP8, beside what NeMo publishes of FP8",
        words=(_seven("method=lora,rank=8", f"{FAST},documents={DOCUMENTS}", "batch=2,seq=4096"), FP8, *LONG),
        published="NeMo, packed 4096: 24,824 tok/s a GPU on 8 GPUs",
        timings=LARGE,
    ),
    dict(
        name="7b-nf4",
        work="LLaMA-2-7B shape, nf4 base, LoRA r=8, 4 x 512",
        words=(
            _seven("method=lora,rank=8", "remat=attention_projections,chunk_tokens=256", "batch=4,seq=512"),
            "--config.base.quantize=nf4",
        ),
        claims=(dict(what="memory", most=8.0), dict(what="speed", least=12_000)),
        timings=LARGE,
    ),
)


def _trials(
    name: str,
    work: str,
    alone: str,
    how: str,
    steps: str,
    counts: tuple[int, ...],
    timings: tuple[int, ...] = (1, 1, 1),
) -> list[dict]:
    """Rows of 1, 2, ... trials in one program beside as many single runs in turn, whose tokens/s are one run's.

    Args:
      alone: the words of a single run, as fast as it is.
      how: what is added for several trials, which save memory.
    """
    one = f"trials-{name}-1"
    rows: list[dict] = [dict(name=one, work=f"{work}: one run", words=(alone, steps), timings=timings)]
    for count in counts:
        aim = {"least": 3.0} if name == "16x64" and count == 8 else {}
        rows.append(
            dict(
                name=f"trials-{name}-{count}",
                work=f"{work}: {count} trials in one program",
                words=(f"{alone}{how}", steps, f"--trials={count}"),
                claims=(_compared("speed", one, **aim), _compared("memory", one, times=count)),
                timings=timings,
            )
        )
    return rows


NARROW = ",remat=projections,chunk_tokens=48"
SMOLLM2 = f"{SMALL},{SMALL_UNROLLED}"
GEMMA = "--config=configs/bench.py:shape=gemma-3-270m,method=lora,rank=8,fused=True,unroll=18"
SHORT = "--steps=30"
TRIALS = (
    *_trials("16x64", "SmolLM2-135M shape, 16 x 64", f"{SMOLLM2},batch=16,seq=64", NARROW, SHORT, (2, 8, 16, 64)),
    *_trials("4x256", "SmolLM2-135M shape, 4 x 256", f"{SMOLLM2},batch=4,seq=256", NARROW, SHORT, (2, 8, 16)),
    *_trials("gemma", "Gemma-3-270M's shape, 16 x 64", f"{GEMMA},batch=16,seq=64", NARROW, SHORT, (2, 8, 16)),
    *_trials("7b", "LLaMA-2-7B shape, 8 x 512", _seven("method=lora,rank=8"), "", "--steps=20", (2, 4), LARGE),
)

STARTS = (
    dict(
        name="smollm2-64x64",
        work="SmolLM2-135M shape, LoRA r=8, 64 x 64",
        words=(f"{SMALL},batch=64,seq=64,{SMALL_UNROLLED}", "--steps=30"),
        peer=PEER_SMALL,
        claims=(_compared("speed", "peer", least=5.0), _compared("memory", "peer")),
    ),
    dict(
        name="start-smollm2",
        work="SmolLM2-135M shape, 64 x 64: from the command to the first step",
        words=(f"{SMALL},batch=64,seq=64,{SMALL_UNROLLED}", "--steps=10", "--warmup=1"),
        start=True,
        claims=(dict(what="start", most=12.0), dict(what="second")),
    ),
    dict(
        name="start-smollm2-scan",
        work="SmolLM2-135M shape, 64 x 64, a scan without Triton products: from the command to the first step",
        words=(f"{SMALL},batch=64,seq=64,method=lora,rank=8,fused=True", "--steps=10", "--warmup=1"),
        env={"XLA_FLAGS": NO_TRITON},
        start=True,
        claims=(dict(what="start", most=12.0), dict(what="second")),
    ),
    dict(
        name="start-7b",
        work="LLaMA-2-7B shape, 8 x 512: from the command to the first step",
        words=(_seven("method=lora,rank=8"), "--steps=10", "--warmup=1"),
        start=True,
        claims=(dict(what="start"), dict(what="second", most=6.0)),
        timings=(1, 1),
    ),
)

ROWS = (*EIGHTS, *SEVENS, *TRIALS, *STARTS)
