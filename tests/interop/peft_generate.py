"""Times transformers' generate with PEFT's LoRA: the peer of `experiments.decode`, which starts it.

python tests/interop/peft_generate.py --base=FOLDER --adapter=FOLDER --prompts=prompts.npz --new=64 --cache=dynamic

prompts.npz has an array int64 [rows, tokens] for each batch. Writes what was generated to --out, an array of the same
name each, and prints a JSON line each: {"batch", "ms", "first_ms", "compile_seconds", "peer_versions"}.
"""

import argparse
import json
import statistics
import time

import numpy as np
import peft
import torch
import transformers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("base", "adapter", "prompts", "out", "dtype"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--cache", choices=("dynamic", "static"), required=True)
    parser.add_argument("--new", type=int, required=True)
    parser.add_argument("--repeats", type=int, required=True)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base = transformers.AutoModelForCausalLM.from_pretrained(options.base, dtype=getattr(torch, options.dtype))
    model = peft.PeftModel.from_pretrained(base, options.adapter).eval().to(device)
    kept = {"cache_implementation": "static"} if options.cache == "static" else {}  # which it compiles for
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    written = {}
    for name, prompts in np.load(options.prompts).items():
        ids = torch.tensor(prompts, device=device)

        def write(count: int, ids: torch.Tensor = ids) -> np.ndarray:
            with torch.no_grad():
                out = model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=count,
                    max_new_tokens=count, pad_token_id=0, eos_token_id=None, **kept,
                )  # fmt: skip
            return out[:, ids.shape[1] :].cpu().numpy()

        def median(count: int, write=write) -> float:
            write(count)
            times = []
            for _ in range(options.repeats):
                began = time.perf_counter()
                write(count)
                times.append(time.perf_counter() - began)
            return statistics.median(times)

        began = time.perf_counter()
        written[name] = write(options.new)
        first = time.perf_counter() - began
        one, all_ = median(1), median(options.new)
        record = {
            "batch": len(prompts),
            "ms": round((all_ - one) / (options.new - 1) * 1e3, 4),
            "first_ms": round(one * 1e3, 3),
            "compile_seconds": round(first - all_, 1),
            "peer_versions": versions,
        }
        print(json.dumps(record), flush=True)
    np.savez(options.out, **written)


if __name__ == "__main__":
    main()
