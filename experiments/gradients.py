"""Prints how far a quantised base changes adapters' gradients and a run's loss, as one JSON line a seed.

    python -m experiments.gradients --config=configs/mora_uuid.py:scale=gpu,data=text,method=lora \
        --config.task.path=mine.jsonl --config.base.quantize=fp8 --config.train.steps=200 --seeds=0,1,2 \
        --record=FILE.jsonl

At the start and after the steps, on one batch: the cosine between the gradients with the quantised base and with the
unquantised one, and the leaves that differ most; and both runs' loss after the steps. Nothing is recorded as a run;
--record=FILE.jsonl adds a line a seed to a file that `experiments.tables codes` reads.

With --study=PATTERN, one JSON line for each of many ways to round whose description matches (".*" for all): one
operand, one kind of kernel, finer scales, kernels that stay as they are. With --record=FILE.jsonl the lines are added
to a file that `experiments.tables rounding` reads.
"""

import contextlib
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from absl import flags

from experiments.cli import launch, load_config, reads_config
from experiments.config.arguments import in_its_words

flags.DEFINE_list("seeds", ["0"], "Seeds of the run, one comparison each.")
flags.DEFINE_string("study", None, "Compare ways to round a float32 base instead: a pattern, .* for all.")
flags.DEFINE_string("record", None, "Also add the results to this file, as lines that a table reads.")
FLAGS = flags.FLAGS


@reads_config
@in_its_words
def main(_) -> None:
    """Prints {"seed", "quantize", "start", "end", "loss"} for each seed, or a line for each case of the study."""
    config, _plain = load_config()
    from experiments.bench.training.gradients import compare, recorded
    from lowrank_jax.core.errors import UserError

    if not all(seed.isdecimal() for seed in FLAGS.seeds):
        raise UserError(f"--seeds={','.join(FLAGS.seeds)} are no whole numbers, for example 0,1,2")
    with contextlib.ExitStack() as opened:
        file = opened.enter_context(Path(FLAGS.record).open("a")) if FLAGS.record else None
        for seed in map(int, FLAGS.seeds):
            one = dataclasses.replace(config, seed=seed)
            if FLAGS.study:
                _study(one, file)
            else:
                found = compare(one)
                print(json.dumps({"seed": seed, "quantize": config.base.quantize, **found}), flush=True)
                if file is not None:
                    print(json.dumps(recorded(one, found)), file=file, flush=True)


def _study(config: Any, file: Any) -> None:
    from experiments.bench.training.study import CASES, described, study
    from experiments.records.environment import environment_record
    from lowrank_jax.core.errors import UserError

    cases = tuple(case for case in CASES if re.fullmatch(FLAGS.study, case.what))
    if not cases:
        raise UserError(f"--study={FLAGS.study} matches no way to round, such as {CASES[1].what!r}; .* is all")
    run = {"seed": config.seed, **described(config), **environment_record()}
    for found in study(config, cases):
        print(json.dumps({"seed": config.seed, **found}), flush=True)
        if file is not None:
            print(json.dumps({**found, **run}), file=file, flush=True)


if __name__ == "__main__":
    launch(main)
