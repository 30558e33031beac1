"""One LoRA step of pico-llama compared with HF PEFT on the same weights and the same cores, float32.

    python -m experiments.bench --suite=cpu --results=experiments/results/speed/cpu_suite.json

The two sides run in separate processes, alternately, with the same tokens: the losses of the first step must agree.
Rows as in configs/suites/h100.py. Transparent huge pages (`env`, for both sides) are set as in scripts/environment.sh.
Ours has remat=projections, which saves less: on a CPU, writing values costs more than recomputing them.
"""

PEER = "tests/interop/peft_step.py"  # needs the extra [parity]
PEER_NAME = "HF PEFT"
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
OURS = (
    "--config=configs/bench.py:shape=pico-llama,method=lora,rank=8,batch=8,seq=128,dtype=float32,remat=projections",
    "--config.base.random_init=False",
    "--steps=30",
)
THEIRS = ("--weights=lowrank_jax/assets/pico-llama", "--batch=8", "--seq=128", "--rank=8", "--steps=30")
WORK = "pico-llama (3.3M parameters), LoRA r=8, 8 x 128"

ROWS = (
    dict(
        name="pico-lora-8",
        work=WORK,
        words=OURS,
        peer=THEIRS,
        env=HUGE_PAGES,
        claims=(
            dict(what="speed", to="peer", least=1.3),
            dict(what="memory", to="peer"),
            dict(what="loss", to="peer", most=1e-3),
        ),
    ),
    dict(
        name="pico-lora-8-compiled-peer",
        work="the same, PEFT under torch.compile",
        words=OURS,
        peer=(*THEIRS, "--compile"),
        env=HUGE_PAGES,
        claims=(dict(what="speed", to="peer"), dict(what="memory", to="peer")),
    ),
)
