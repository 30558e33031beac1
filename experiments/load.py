"""Measures time and peak host memory of reading a base, as one JSON line: `python -m experiments.load --base=FOLDER`.

    python -m experiments.load --make=/tmp/synthetic      # writes a random Llama of about 2 GB there first
    python -m experiments.load --base=/tmp/synthetic
    XLA_FLAGS=--xla_force_host_platform_device_count=4 python -m experiments.load --base=/tmp/synthetic --fsdp=4

`extra_over_shard` is what the load took beyond the params that stay on the host, over the largest leaf's shard.
"""

import json
from pathlib import Path

from absl import flags

from experiments.bench.load import append, make_base, measure
from experiments.cli import launch
from lowrank_jax.core.errors import UserError

flags.DEFINE_string("make", None, "Folder to write a random bfloat16 Llama of about 2 GB to; nothing is measured then.")
flags.DEFINE_string("base", None, "Base model to read, as in base.name.")
flags.DEFINE_string("dtype", "bfloat16", "Dtype of the leaves.")
flags.DEFINE_string("quantize", "none", "How the layers' kernels are stored, as in base.quantize.")
flags.DEFINE_integer("fsdp", 1, "Devices that share each leaf.", lower_bound=1)
flags.DEFINE_string("out", None, "JSON file whose list of records this one is added to.")
FLAGS = flags.FLAGS


def main(_) -> None:
    """Prints {"seconds", "params_gib", "largest_shard_gib", "extra_gib", "extra_over_shard", ...}."""
    if FLAGS.make:
        print(make_base(FLAGS.make))
        return
    if not FLAGS.base:
        raise UserError("give --base=FOLDER, or --make=FOLDER to write one")
    record = measure(FLAGS.base, FLAGS.dtype, FLAGS.quantize, FLAGS.fsdp)
    print(json.dumps(record))
    if FLAGS.out:
        append(Path(FLAGS.out), record)


if __name__ == "__main__":
    launch(main)
