"""Prints how far a quantised base changes adapters' gradients and a run's loss, as one JSON line a seed.

    python -m experiments.gradients --config=configs/mora_uuid.py:scale=gpu,data=text,method=lora \
        --config.task.path=mine.jsonl --config.base.quantize=fp8 --config.train.steps=200 --seeds=0,1,2

At the start and after the steps, on one batch: the cosine between the gradients beside the codes and beside the
weights, and the leaves that differ most; and both runs' loss after the steps. Nothing is recorded as a run.
"""

import dataclasses
import json

from absl import flags

from experiments.cli import launch, load_config, reads_config

flags.DEFINE_list("seeds", ["0"], "Seeds of the run, one comparison each.")
FLAGS = flags.FLAGS


@reads_config
def main(_) -> None:
    """Prints {"seed", "quantize", "start", "end", "loss"} for each seed."""
    config, _plain = load_config()
    from experiments.bench.training.gradients import compare
    from lowrank_jax.core.errors import UserError

    if not all(seed.isdecimal() for seed in FLAGS.seeds):
        raise UserError(f"--seeds={','.join(FLAGS.seeds)} are no whole numbers, for example 0,1,2")
    for seed in map(int, FLAGS.seeds):
        found = compare(dataclasses.replace(config, seed=seed))
        print(json.dumps({"seed": seed, "quantize": config.base.quantize, **found}), flush=True)


if __name__ == "__main__":
    launch(main)
