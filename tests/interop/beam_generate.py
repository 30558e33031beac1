"""Times transformers' beam search over a list of prompts: the peer of `experiments.decode --beams`, which starts it.

python tests/interop/beam_generate.py --base=FOLDER --prompts=prompts.json --out=out.json --beams=10 --new=64 ...

prompts.json is a list of lists of ids. Writes {"record": {"seconds", "compile_seconds", "peer_versions"}, "tokens"}:
the median time of all prompts, and the ids of each text up to its end.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
import transformers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("base", "prompts", "out", "dtype", "ends"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("beams", "no_repeat_ngram", "new", "batch", "repeats", "pad"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--length_penalty", type=float, required=True)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = transformers.AutoModelForCausalLM.from_pretrained(options.base, dtype=getattr(torch, options.dtype))
    model = model.eval().to(device)
    prompts = json.loads(Path(options.prompts).read_text())
    ends = [int(each) for each in options.ends.split(",") if each]

    def write() -> list[list[int]]:
        texts = []
        for start in range(0, len(prompts), options.batch):
            part = prompts[start : start + options.batch]
            width = max(map(len, part))
            ids = torch.tensor([[options.pad] * (width - len(one)) + one for one in part], device=device)
            mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in part], device=device)
            with torch.no_grad():
                out = model.generate(
                    input_ids=ids, attention_mask=mask, do_sample=False, num_beams=options.beams,
                    length_penalty=options.length_penalty, no_repeat_ngram_size=options.no_repeat_ngram,
                    max_new_tokens=options.new, early_stopping=False, eos_token_id=ends, pad_token_id=options.pad,
                )  # fmt: skip
            for row in out[:, width:].tolist():
                stop = next((place for place, token in enumerate(row) if token in ends), len(row))
                texts.append(row[:stop])
        return texts

    times, texts = [], []
    for _ in range(options.repeats + 1):
        began = time.perf_counter()
        texts = write()
        times.append(time.perf_counter() - began)
    seconds = statistics.median(times[1:])
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    record = {"seconds": round(seconds, 3), "compile_seconds": round(times[0] - seconds, 1), "peer_versions": versions}
    Path(options.out).write_text(json.dumps({"record": record, "tokens": texts}))


if __name__ == "__main__":
    main()
