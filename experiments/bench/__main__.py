"""Speed and memory of a config's training step on random tokens, as one JSON line; or a whole table of such rows.

python -m experiments.bench --config=configs/bench.py:shape=llama2-7b,method=lora,rank=8,batch=8,seq=512
python -m experiments.bench --config=configs/lora_glue.py:task=mrpc --seq_len=96
python -m experiments.bench --suite=h100 --peer=peer_peft.py    # configs/suites/h100.py, with a peer's script beside
python -m experiments.bench --suite=h100 --table                # what is recorded, and nothing run
python -m experiments.bench --suite=h100 --join=a.json,b.json   # of two processes, a card and --results each
"""

import dataclasses
import json
import math
import statistics
import time

from absl import flags

from experiments.cli import launch, load_config, start_devices

flags.DEFINE_integer(
    "seq_len", None, "Tokens a row; by default the config's (configs/bench.py), or the task's.", lower_bound=1
)
flags.DEFINE_integer("steps", 20, "Timed steps, at least 10.", lower_bound=10)
flags.DEFINE_integer("warmup", 3, "Steps before them.", lower_bound=1)
flags.DEFINE_integer(
    "trials", 1, "Trials in one program, which differ in their rates; see experiments.trials.", lower_bound=1
)
flags.DEFINE_string("trace", None, "Folder for a profile of three more steps.")
flags.DEFINE_string("suite", None, "Measure the rows of configs/suites/NAME.py, or of a FILE.py, and no --config.")
flags.DEFINE_string("results", None, "Of a suite: its record; by default experiments/results/speed/NAME_suite.json.")
flags.DEFINE_string("peer", None, "Of a suite: the peer's script, whose last line is a JSON record.")
flags.DEFINE_string("only", None, "Of a suite: rows whose name matches this regular expression.")
flags.DEFINE_integer("repeats", 3, "Of a suite: processes of each row; the table has their medians.", lower_bound=1)
flags.DEFINE_integer("seconds", None, "Of a suite: time after which no further process is started.", lower_bound=1)
flags.DEFINE_bool("again", False, "Of a suite: measure the chosen rows again instead of going on.")
flags.DEFINE_list(
    "join", None, "Of a suite: records of other processes, one a card, to take into --results; runs nothing."
)
flags.DEFINE_bool("table", False, "Of a suite: print what is recorded, and run nothing.")
flags.DEFINE_enum("format", "text", ["text", "markdown"], "Of a suite: how the table is printed.")
FLAGS = flags.FLAGS


def main(_) -> None:
    """Prints {"ms", "tokens_per_second", "peak_gib", "compile_seconds", ...}, or measures a suite."""
    if FLAGS.suite:
        from experiments.bench.suite import suite_main

        suite_main(FLAGS)
    else:
        bench()


def bench() -> None:
    """Prints the record of one step."""
    config, _plain = load_config()
    start_devices()
    import jax
    import jax.numpy as jnp
    import numpy as np

    from experiments.bench.work import random_batch, step_flops
    from experiments.records.run_folder import environment_record
    from experiments.session.build import build
    from experiments.session.trial_group import TrialGroup
    from lowrank_jax.forms.registry import form_of
    from lowrank_jax.train import memory

    started = time.perf_counter()
    # A labelled task's length is in its config; that of other tasks may be in their data.
    seq_len = (
        FLAGS.seq_len
        or config.labels.get("seq_len")
        or (config.task.seq_len if form_of(config.task).bucketed else None)
    )
    count = FLAGS.trials
    if count > 1:
        rates = [config.optimizer.learning_rate * (trial + 1) / count for trial in range(count)]
        optimizers = [dataclasses.replace(config.optimizer, learning_rate=rate) for rate in rates]
        group = TrialGroup([dataclasses.replace(config, optimizer=one) for one in optimizers], seq_len)
        experiment = group.lead
    else:
        group = experiment = build(config, seq_len=seq_len)
    compile_started = time.perf_counter()
    compiled = group.compile(ahead=True)
    compile_seconds = time.perf_counter() - compile_started
    needed = memory.check_fits(compiled)
    compiled = group.stepper(compiled)
    state, frozen, _fingerprint = group.load()

    local = random_batch(experiment, count)
    shape = local["tokens"].shape
    tokens = math.prod(shape[-2:])  # of one trial
    rows = len(local["tokens"]) // jax.process_count()
    batch = group.place({name: x[jax.process_index() * rows :][:rows] for name, x in local.items()})

    seconds, losses = [], []
    for step in range(FLAGS.warmup + FLAGS.steps):
        begin = time.perf_counter()
        state, metrics = compiled(state, frozen, batch)
        jax.block_until_ready(metrics["loss"])  # as the peer's script waits; the copy to the host is not timed there
        taken = time.perf_counter() - begin
        if step == 0:
            first_step, first_step_at = time.perf_counter() - started, time.time()
        if step >= FLAGS.warmup:
            seconds.append(taken)
        losses.append(float(np.mean(metrics["loss"])))
    if FLAGS.trace:
        with jax.profiler.trace(FLAGS.trace):
            for _ in range(3):
                state, metrics = compiled(state, frozen, batch)
            jax.block_until_ready(metrics["loss"])
    median = statistics.median(seconds)
    device = jax.local_devices()[0]
    record = {
        "labels": dict(config.labels),
        "trainable": experiment.parameters["trainable"],
        "frozen": experiment.parameters["frozen"],
        "batch": list(shape[-2:]),
        "trials": count,
        "ms": round(median * 1e3, 3),
        "ms_min_max": [round(min(seconds) * 1e3, 3), round(max(seconds) * 1e3, 3)],
        "steps": len(seconds),
        "tokens_per_second": round(math.prod(shape) / median),
        "flops_per_token": round(step_flops(experiment, tokens) / tokens),
        "peak_gib": round(memory.peak_bytes(device) / 2**30, 3) if memory.peak_bytes(device) else None,
        "step_gib": round(needed.needed / 2**30, 3) if needed else None,
        "compile_seconds": round(compile_seconds, 2),
        "first_step_seconds": round(first_step, 2),
        "first_step_at": round(first_step_at, 2),  # since the epoch: whoever started this process knows when that was
        "losses": [round(losses[0], 4), round(losses[-1], 4)],
        "remat": config.base.remat,
        "scan_unroll": config.base.scan_unroll,
        "fused": config.base.fused,
        "dtype": jnp.dtype(config.base.dtype).name,
        "quantize": config.base.quantize,
        **environment_record(),
    }
    if jax.process_index() == 0:
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    launch(main)
