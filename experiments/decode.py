"""Measures the speed of decoding: one JSON line for each batch size and way of reading the weights.

python -m experiments.decode --shape=smollm2-135m --batches=1,64,256 --out=experiments/results/speed/decoding.jsonl
python -m experiments.decode --shape=llama2-7b --batches=1 --weights=merged
python -m experiments.decode --shape=smollm2-135m --batches=1,64 --peers=dynamic,static    # transformers with PEFT
"""

import json

from absl import flags

from experiments.cli import launch, start_devices
from experiments.generation import WEIGHTS
from lowrank_jax.core.errors import UserError

PEERS = ("dynamic", "static")
flags.DEFINE_string("shape", "smollm2-135m", "Shape of the random base, a name of the model registry.")
flags.DEFINE_list("batches", ["1", "64"], "Batch sizes: numbers of rows.")
flags.DEFINE_list("weights", list(WEIGHTS), f"Ways of reading the weights, of {', '.join(WEIGHTS)}.")
flags.DEFINE_list("peers", [], f"Caches of transformers to measure too, of {', '.join(PEERS)}.")
flags.DEFINE_integer("rank", 8, "Rank of LoRA, which is on all linear kernels.", lower_bound=1)
flags.DEFINE_integer("prompt", 64, "Tokens of each prompt.", lower_bound=1)
flags.DEFINE_integer("new", 64, "New tokens of each row.", lower_bound=2)
flags.DEFINE_string("dtype", "bfloat16", "Dtype of weights and computation.")
flags.DEFINE_integer("repeats", 5, "How often each time is measured; the median counts.", lower_bound=1)
flags.DEFINE_string("out", None, "File of JSON lines that the records are added to.")
FLAGS = flags.FLAGS


def main(_) -> None:
    """Prints {"weights", "batch", "ms", "first_ms", "tokens_per_second", "weights_gib", ...} lines."""
    batches = [int(each) if each.isdecimal() else 0 for each in FLAGS.batches]
    if not batches or min(batches) < 1:
        raise UserError(f"--batches={','.join(FLAGS.batches)}: give numbers of rows, such as 1,64")
    for flag, known in (("weights", WEIGHTS), ("peers", PEERS)):
        if wrong := [each for each in getattr(FLAGS, flag) if each not in known]:
            raise UserError(f"--{flag}: {wrong[0]!r} is none of {', '.join(known)}")
    start_devices()
    from experiments.bench.decoding import rows

    sizes = {"rank": FLAGS.rank, "prompt": FLAGS.prompt, "new": FLAGS.new, "repeats": FLAGS.repeats}
    for record in rows(FLAGS.shape, FLAGS.weights, batches, dtype=FLAGS.dtype, peers=FLAGS.peers, **sizes):
        line = json.dumps(record)
        print(line, flush=True)
        if FLAGS.out:
            with open(FLAGS.out, "a", encoding="utf-8") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    launch(main)
