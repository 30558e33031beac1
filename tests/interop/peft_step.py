"""A LoRA step of HF PEFT on a local checkpoint, as one JSON line: the peer's side of configs/suites/cpu.py.

    python tests/interop/peft_step.py --weights=lowrank_jax/assets/pico-llama --batch=8 --seq=128

Needs the extra [parity]. Float32 on the CPU; the tokens are those of experiments.bench, AdamW on the adapters alone.
"""

import argparse
import json
import resource
import statistics
import time

import numpy as np
import torch
import transformers
from peft import LoraConfig, get_peft_model


def main() -> None:
    """Prints {"ms", "tokens_per_second", "peak_gib", "losses", ...}."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, help="folder of a causal model")
    for name, default in (("batch", 8), ("seq", 128), ("rank", 8), ("steps", 20), ("warmup", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    options = parser.parse_args()

    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_pretrained(options.weights, dtype=torch.float32, use_cache=False)
    adapter = LoraConfig(r=options.rank, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, adapter).train()
    if options.compile:
        model.forward = torch.compile(model.forward)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-4, fused=True)
    shape = options.batch, options.seq
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, base.config.vocab_size, shape, np.int32)).long()

    seconds, losses, began = [], [], time.perf_counter()
    for step in range(options.warmup + options.steps):
        begin = time.perf_counter()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if step >= options.warmup:
            seconds.append(time.perf_counter() - begin)
        elif step == options.warmup - 1:
            warmup_seconds = time.perf_counter() - began
    median = statistics.median(seconds)
    record = {
        **vars(options),
        "ms": round(median * 1e3, 3),
        "ms_min_max": [round(min(seconds) * 1e3, 3), round(max(seconds) * 1e3, 3)],
        "tokens_per_second": round(tokens.numel() / median),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
        "warmup_seconds": round(warmup_seconds, 2),
        "losses": [round(losses[0], 4), round(losses[-1], 4)],
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
