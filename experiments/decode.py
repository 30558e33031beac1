"""Measures the speed of decoding: one JSON line for each batch size and way of reading the weights.

python -m experiments.decode --shape=smollm2-135m --batches=1,64,256 --out=experiments/results/speed/decoding.jsonl
python -m experiments.decode --shape=llama2-7b --batches=1 --weights=merged
python -m experiments.decode --shape=smollm2-135m --batches=1,64 --peers=dynamic,static    # transformers with PEFT
python -m experiments.decode --beams=10 --base=smollm2-135m --data_dir=FOLDER --peers=dynamic    # E2E's test inputs
"""

import json
from collections.abc import Iterator

from absl import flags

from experiments.cli import launch, start_devices
from experiments.generation import WEIGHTS
from lowrank_jax.core.errors import UserError

PEERS = ("dynamic", "static")
BATCH = 64  # prompts side by side in beam search, unless --batches says otherwise
GREEDY = ("shape", "weights", "rank", "prompt")  # flags that only greedy decoding reads
SEARCH = ("base", "data_dir", "partial", "length_penalty", "no_repeat_ngram")  # and that only beam search reads
flags.DEFINE_string("shape", "smollm2-135m", "Shape of the random base, a name of the model registry.")
flags.DEFINE_list("batches", ["1", "64"], f"Batch sizes: numbers of rows. --beams takes one, by default {BATCH}.")
flags.DEFINE_list("weights", list(WEIGHTS), f"Ways of reading the weights, of {', '.join(WEIGHTS)}.")
flags.DEFINE_list("peers", [], f"Caches of transformers to measure too, of {', '.join(PEERS)}.")
flags.DEFINE_integer("rank", 8, "Rank of LoRA, which is on all linear kernels.", lower_bound=1)
flags.DEFINE_integer("prompt", 64, "Tokens of each prompt.", lower_bound=1)
flags.DEFINE_integer("new", 64, "New tokens of each row.", lower_bound=2)
flags.DEFINE_string("dtype", "bfloat16", "Dtype of weights and computation.")
flags.DEFINE_integer("repeats", 5, "How often each time is measured; the median counts.", lower_bound=1)
flags.DEFINE_integer("beams", 0, "Beam search by so many beams over E2E's test inputs, on --base.", lower_bound=0)
flags.DEFINE_string("base", "smollm2-135m", "With --beams: the base, with its weights.")
flags.DEFINE_string("data_dir", None, "With --beams: folder of E2E's official files.")
flags.DEFINE_bool("partial", False, "With --beams: take incomplete files of E2E.")
flags.DEFINE_float("length_penalty", 0.9, "With --beams: p of a beam's score, log-likelihood / length^p.")
flags.DEFINE_integer("no_repeat_ngram", 4, "With --beams: no n tokens in a row twice; 0: no limit.", lower_bound=0)
flags.DEFINE_string("out", None, "File of JSON lines that the records are added to.")
FLAGS = flags.FLAGS


def main(_) -> None:
    """Prints JSON lines: {"weights", "batch", "ms", "first_ms", ...}, or with --beams {"program", "seconds", ...}."""
    batches = [int(each) if each.isdecimal() else 0 for each in FLAGS.batches]
    if not batches or min(batches) < 1:
        raise UserError(f"--batches={','.join(FLAGS.batches)}: give numbers of rows, such as 1,64")
    for flag, known in (("weights", WEIGHTS), ("peers", PEERS)):
        if wrong := [each for each in getattr(FLAGS, flag) if each not in known]:
            raise UserError(f"--{flag}: {wrong[0]!r} is none of {', '.join(known)}")
    _check_beams(batches)
    start_devices()
    for record in _searched(batches) if FLAGS.beams else _greedy(batches):
        line = json.dumps(record)
        print(line, flush=True)
        if FLAGS.out:
            with open(FLAGS.out, "a", encoding="utf-8") as file:
                file.write(line + "\n")


def _check_beams(batches: list[int]) -> None:
    """Refuses flags that are not read: those of greedy decoding with --beams, those of beam search without."""
    other = next((name for name in (GREEDY if FLAGS.beams else SEARCH) if FLAGS[name].present), None)
    if other and FLAGS.beams:
        raise UserError(f"--{other} is not read with --beams; leave one of them out")
    if other:
        raise UserError(f"--{other} is only read with --beams; add --beams=10, or leave it out")
    if FLAGS.beams and FLAGS["batches"].present and len(batches) > 1:
        raise UserError(f"--batches={','.join(FLAGS.batches)}: with --beams give one number of rows")
    if FLAGS.beams and "static" in FLAGS.peers:
        raise UserError("--peers=static: with --beams transformers has a dynamic cache alone; give --peers=dynamic")


def _greedy(batches: list[int]) -> Iterator[dict]:
    from experiments.bench.decoding import rows

    sizes = {"rank": FLAGS.rank, "prompt": FLAGS.prompt, "new": FLAGS.new, "repeats": FLAGS.repeats}
    return rows(FLAGS.shape, FLAGS.weights, batches, dtype=FLAGS.dtype, peers=FLAGS.peers, **sizes)


def _searched(batches: list[int]) -> Iterator[dict]:
    from experiments.bench.beams import rows

    search = {name: getattr(FLAGS, name) for name in ("beams", "length_penalty", "no_repeat_ngram", "new", "repeats")}
    options = {**search, "dtype": FLAGS.dtype, "peer": bool(FLAGS.peers), "partial": FLAGS.partial}
    return rows(FLAGS.base, FLAGS.data_dir, batch=batches[0] if FLAGS["batches"].present else BATCH, **options)


if __name__ == "__main__":
    launch(main)
