"""Speed and memory of a config's training step on random tokens, as one JSON line; or a whole table of such rows.

python -m experiments.bench --config=configs/bench.py:shape=llama2-7b,method=lora,rank=8,batch=8,seq=512
python -m experiments.bench --config=configs/lora_glue.py:task=mrpc --seq_len=96
python -m experiments.bench --suite=h100 --peer=peer_peft.py    # configs/suites/h100.py, with a peer's script
python -m experiments.bench --suite=h200 --rows=8b-*,7b-nf4     # some rows of it, merged into its record
python -m experiments.bench --suite=h100 --table                # print the recorded table, run nothing
python -m experiments.bench --suite=h100 --join=a.json,b.json   # of two processes, a card and --results each
python -m experiments.bench --latency    # LoRA's Table 1 on GPT-2 medium's shape; --latency --map for its Fig. 5
"""

import json

from absl import flags

from experiments.cli import define_seq_len, launch, load_config, reads_config, start_devices, starts_early
from experiments.config.arguments import in_its_words
from lowrank_jax.core import interrupts
from lowrank_jax.core.errors import UserError

define_seq_len("Tokens a row; by default the config's (configs/bench.py), or the task's.")
flags.declare_key_flag("seq_len")  # shown by --help
flags.DEFINE_integer("steps", 20, "Timed steps, at least 10.", lower_bound=10)
flags.DEFINE_integer(
    "timings",
    1,
    "How often the steps are timed in the process, one time after the other; the record has the median.",
    lower_bound=1,
    upper_bound=1_000,
)
flags.DEFINE_integer("warmup", 3, "Steps before them.", lower_bound=1)
flags.DEFINE_integer(
    "trials", 1, "Trials in one program, which differ in their rates; see experiments.trials.", lower_bound=1
)
flags.DEFINE_string("trace", None, "Folder for a profile of three more steps.")
flags.DEFINE_string("suite", None, "Measure the rows of configs/suites/NAME.py, or of a FILE.py, and no --config.")
flags.DEFINE_bool(
    "latency", False, "Measure forward passes, of a base and with adapters, merged or not: LoRA's Table 1."
)
flags.DEFINE_bool("map", False, "Of --latency: Fig. 5's slow-down by batch, length and bottleneck instead.")
flags.DEFINE_list("cells", None, "Of --latency: batch x tokens x parameters or rank, e.g. 32x512x0.5M,1x128x100.")
flags.DEFINE_integer("passes", 100, "Of --latency: timed forward passes of each variant.", lower_bound=2)
flags.DEFINE_string(
    "results",
    None,
    "Of a suite, or of --latency: its record; by default experiments/results/speed/NAME_suite.json, or latency.jsonl.",
)
flags.DEFINE_string("peer", None, "Of a suite: the peer's script, whose last line is a JSON record.")
flags.DEFINE_list(
    "rows", None, "Of a suite: rows by name, * for any text, e.g. 8b-*; with those they are compared with."
)
flags.DEFINE_string("only", None, "Of a suite: rows whose name matches this regular expression.")
flags.DEFINE_integer(
    "repeats", None, "Of a suite: processes of each row; by default as the suite says, or 3.", lower_bound=1
)
flags.DEFINE_integer("seconds", None, "Of a suite: time after which no further process is started.", lower_bound=1)
flags.DEFINE_bool("again", False, "Of a suite, or of --latency: measure the chosen rows again instead of resuming.")
flags.DEFINE_list(
    "join", None, "Of a suite: records of other processes, one a card, to add to --results; runs nothing."
)
flags.DEFINE_bool("table", False, "Of a suite, or of --latency: print the recorded table, and run nothing.")
flags.DEFINE_enum("format", "text", ["text", "markdown"], "Of a suite, or of --latency: how the table is printed.")
FLAGS = flags.FLAGS


@starts_early(lambda words: not any(word.lstrip("-").startswith("suite") for word in words))
@reads_config
@in_its_words
def main(_) -> None:
    """Prints {"ms", "tokens_per_second", "peak_gib", "compile_seconds", ...}, or measures a suite."""
    if FLAGS.suite:
        from experiments.bench.suites.suite import suite_main

        with interrupts.tidied():  # a child, which ends with this process
            suite_main(FLAGS)
        return
    if FLAGS.latency:
        from experiments.bench.latency.measure import base_of, latency_main

        latency_main(FLAGS, *(load_config() if "config" in FLAGS else base_of()))
        return
    if FLAGS.map or FLAGS.cells:
        raise UserError(f"--{'map' if FLAGS.map else 'cells'} is a flag of --latency; add it")
    config, _plain = load_config()
    start_devices()
    from experiments.bench.training.step import measure

    record = measure(config, FLAGS.seq_len, FLAGS.steps, FLAGS.warmup, FLAGS.trials, FLAGS.trace, FLAGS.timings)
    if record is not None:
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    launch(main)
