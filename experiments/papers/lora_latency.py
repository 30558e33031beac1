"""LoRA (Hu et al., arXiv 2106.09685 v2): the published forward latencies of GPT-2 medium (Table 1), as data."""

MODEL, DEVICE, PASSES = "gpt2-medium", "Quadro RTX8000", 100
# Cell, as experiments.bench.latency.cells writes it -> method as our configs call it -> (mean, standard deviation), ms.
# "base" is the row "Fine-tune/LoRA": a merged LoRA runs as the base does.
TABLE1 = {
    "32x512x0.5M": {"base": (1449.4, 0.8), "lin": (1482.0, 1.0), "houlsby": (1492.2, 1.0)},
    "16x256x11M": {"base": (338.0, 0.6), "lin": (354.8, 0.5), "houlsby": (366.3, 0.5)},
    "1x128x11M": {"base": (19.8, 2.7), "lin": (23.9, 2.1), "houlsby": (25.8, 2.2)},
}
