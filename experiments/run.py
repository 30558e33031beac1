"""One run of one config: `python -m experiments.run --config=configs/mora_uuid.py:method=lora`."""

import contextlib
import sys
import time
from pathlib import Path
from typing import Any

from absl import flags

from experiments.cli import define_run_flags, launch, load_config, reads_config, start_devices, starts_early
from experiments.config.arguments import in_its_words, spoken
from experiments.records import claims, leases
from experiments.session.together import cluster

flags.DEFINE_string("name", None, "Name of the run, a folder below --workdir; by default made from its content.")
define_run_flags()
for _flag in ("workdir", "fresh"):
    flags.declare_key_flag(_flag)  # shown by --help
flags.DEFINE_bool("multihost", None, "One of several processes: start jax.distributed (a TPU pod, SLURM, ...).")
flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, of several processes ($JAX_COORDINATOR_ADDRESS).")
flags.DEFINE_integer("processes", None, "How many processes make the run ($JAX_NUM_PROCESSES).")
flags.DEFINE_integer("process", None, "Which of them this is, from 0 ($JAX_PROCESS_ID).")
flags.DEFINE_integer("heartbeat_seconds", 100, "A process that is silent for so long counts as dead.", lower_bound=1)
flags.DEFINE_integer("start_seconds", 300, "How long processes wait for each other to start.", lower_bound=1)
flags.DEFINE_string("profile_steps", None, "Trace these steps, e.g. 10:15, into the run's folder.")
FLAGS = flags.FLAGS


@starts_early(lambda words: not cluster.asked(words))
@reads_config
@in_its_words
def main(_) -> int:
    """Says that the run is finished, or claims it and trains; returns the exit status."""
    started = time.time()
    place = cluster.place(FLAGS.multihost, {name: FLAGS[name].value for name in cluster.VARIABLES})
    config, plain = load_config({"train.profile_steps": FLAGS.profile_steps})
    if place is None:
        start_devices()
    with cluster.start(place, FLAGS.heartbeat_seconds, FLAGS.start_seconds):
        return claim_and_train(config, plain, started)


def claim_and_train(config: Any, plain: dict, started: float) -> int:
    """Claims the run of a config and trains it, in this process or with others; returns the exit status."""
    # Imported after the flags are parsed: --help and a wrong flag answer at once.
    import jax

    from experiments.records import run_folder, run_record
    from experiments.session.together.agreement import decided
    from lowrank_jax.train import tracking

    if jax.process_index() == 0:
        tracking.mode_of(config.tracking)  # refuses "online" without a key before any work

    # ---- an earlier run of this name: to be resumed, finished, or another's ----
    name = FLAGS.name or config.name or run_folder.run_name(plain)
    folder = run_folder.run_folder(FLAGS.workdir, name)
    claim = leases.claim_of(folder, "experiments.run")
    with contextlib.ExitStack() as held:

        def take() -> str:
            held.enter_context(claims.held([claim]))
            return look()  # another program may have ended it meanwhile

        def look() -> str:
            return run_folder.look(folder, plain, FLAGS.fresh)

        # A finished run is only read, which needs no claim.
        if decided(look, folder) == "finished" or decided(take, folder) == "finished":
            result = run_record.read_result(folder / run_folder.RESULT)
            if jax.process_index() == 0 and result:
                print(f"{name}: {result['status']} already; {run_record.summary(result)} (--fresh runs it again)")
            return 0
        return train(name, folder, config, plain, claim, started)


def train(name: str, folder: Path, config: Any, plain: dict, claim: claims.Claim, started: float) -> int:
    """Trains the run of a claimed folder to its end and writes its record; returns the exit status."""
    import jax

    from experiments.records import data_record, places, run_folder, run_record
    from experiments.session.build import build
    from experiments.session.fit import check_kept, described, fill, remarks
    from experiments.session.together.agreement import check_alike, decided
    from experiments.session.training import Run, Session
    from lowrank_jax.core.errors import INTERRUPTED
    from lowrank_jax.core.trees import nbytes
    from lowrank_jax.train.loop import Diverged

    chief = jax.process_index() == 0

    # ---- everything that can be checked on shapes ----
    stamps = data_record.stamps(plain)
    before = run_folder.chosen_of(folder, FLAGS.fresh)
    check_kept(name, config, before)
    experiment = build(fill(config, before))
    chosen = before or experiment.chosen
    if chief:
        parameters = experiment.parameters
        print(experiment.plan)
        print(
            f"{name}: {parameters['trainable']:,} trainable and {parameters['frozen']:,} frozen parameters "
            f"({nbytes(experiment.abstract_frozen) / 2**20:,.1f} MiB) on {experiment.mesh.size} "
            f"{jax.devices()[0].device_kind} device(s)",
            flush=True,
        )
        told = [described(chosen, experiment.task, experiment.config)] if chosen else []
        for line in (*told, *remarks(config, experiment.task, experiment.config)):
            print(f"{name}: {spoken(line)}", flush=True)
    identity = {"config": run_folder.content_hash(plain)}
    runs = [Run(name, plain, folder, claim)]
    session = Session(experiment, runs, folder, identity, started)
    session.compile()
    known = data_record.of_task(experiment.task)
    check_alike(data_record.make(plain, known=known) if jax.process_count() > 1 else {})

    def open_run() -> str:
        data_record.check_still(plain, stamps)
        if not FLAGS.fresh:
            places.drop_void(folder, folder)
        return run_folder.open_run(folder, places.marked(plain, folder, folder), FLAGS.fresh, known, chosen)

    decided(open_run, folder)  # only now: a config that fails leaves no folder behind, and costs no earlier run

    # ---- weights, the loop, the record ----
    outcome, records = session.train()
    (status,), (message,) = outcome.statuses, outcome.messages
    for result in records:
        said = message or f"{run_record.summary(result)}; records in {folder}"
        print(f"{name}: {status}; {said}")
    if status == "diverged":
        raise Diverged(message)
    return INTERRUPTED if status == "interrupted" else 0


if __name__ == "__main__":
    cluster.quieten(sys.argv[1:])
    launch(main)
