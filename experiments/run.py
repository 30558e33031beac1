"""One run of one config: `python -m experiments.run --config=configs/mora_uuid.py:method=lora`."""

import contextlib
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags, logging

from experiments.cli import define_run_flags, launch, load_config, start_devices
from experiments.records import claims
from lowrank_jax.core.errors import UserError

flags.DEFINE_string("name", None, "Name of the run, a folder below --workdir; by default made from its content.")
define_run_flags()
for _flag in ("workdir", "fresh"):
    flags.declare_key_flag(_flag)  # shown by --help
flags.DEFINE_bool("multihost", False, "One of several processes: start jax.distributed (a TPU pod, SLURM, ...).")
flags.DEFINE_string("profile_steps", None, "Trace these steps, e.g. 10:15, into the run's folder.")
FLAGS = flags.FLAGS
INTERRUPTED = 130  # exit status of a run that a signal stopped after it had saved; shells use it for Ctrl-C


def main(_) -> int:
    """Says that the run is finished, or claims it and trains; returns the exit status."""
    started = time.time()
    config, plain = load_config({"train.profile_steps": FLAGS.profile_steps})

    # Imported after the flags are parsed: --help and a wrong flag answer at once.
    import jax

    if not FLAGS.multihost:
        start_devices()
    from experiments.records import run_folder
    from lowrank_jax.train import tracking

    if FLAGS.multihost:
        jax.distributed.initialize()
    if jax.process_index() == 0:
        tracking.wandb_mode(config.tracking.wandb)  # refuses "online" without a key before any work

    # ---- an earlier run of this name: to be resumed, finished, or another's ----
    name = FLAGS.name or config.name or run_folder.run_name(plain)
    folder = run_folder.run_folder(FLAGS.workdir, name)
    claim = claims.claim_of(folder, "experiments.run")
    with contextlib.ExitStack() as held:

        def take() -> str:
            held.enter_context(claims.held([claim]))
            return look()  # another program may have ended it meanwhile

        def look() -> str:
            return run_folder.look(folder, plain, FLAGS.fresh)

        # A finished run is only read, which needs no claim.
        if decided(look, folder) == "finished" or decided(take, folder) == "finished":
            if jax.process_index() == 0:
                result = run_folder.read_result(folder / run_folder.RESULT)
                print(f"{name}: {result['status']} already; {run_folder.summary(result)} (--fresh runs it again)")
            return 0
        return train(name, folder, config, plain, claim, started)


def train(name: str, folder: Path, config: Any, plain: dict, claim: claims.Claim, started: float) -> int:
    """Trains the run of a claimed folder to its end and writes its record; returns the exit status."""
    import jax

    from experiments.records import data_record, run_folder
    from experiments.session import export
    from experiments.session.build import build
    from experiments.tables import figures
    from lowrank_jax.checkpoints.manager import Checkpoints
    from lowrank_jax.core.trees import nbytes
    from lowrank_jax.train import loop, memory, tracking

    chief = jax.process_index() == 0

    # ---- everything that can be checked on shapes ----
    stamps = data_record.stamps(plain)
    experiment = build(config)
    parameters = experiment.parameters
    if chief:
        print(experiment.plan)
        print(
            f"{name}: {parameters['trainable']:,} trainable and {parameters['frozen']:,} frozen parameters "
            f"({nbytes(experiment.abstract_frozen) / 2**20:,.1f} MiB) on {experiment.mesh.size} "
            f"{jax.devices()[0].device_kind} device(s)",
            flush=True,
        )
    compile_started = time.perf_counter()
    compiled = experiment.compile(ahead=True)
    compile_seconds = time.perf_counter() - compile_started
    memory.check_fits(compiled)
    known = data_record.of_task(experiment.task)
    check_alike(data_record.make(plain, known=known) if jax.process_count() > 1 else {})

    def open_run() -> str:
        data_record.check_still(plain, stamps)
        return run_folder.open_run(folder, plain, FLAGS.fresh, known)

    decided(open_run, folder)  # only now: a config that fails leaves no folder behind, and costs no earlier run

    # ---- weights, and where an earlier session stopped ----
    state, frozen, fingerprint = experiment.load()
    batches, train_seconds, resumed = experiment.batches(), 0.0, 0
    identity = {"base": fingerprint, "config": run_folder.content_hash(plain)}
    with Checkpoints(folder / run_folder.CHECKPOINTS, config.checkpoint.keep, identity) as checkpoints:
        if checkpoints.latest():
            rest = experiment.abstract_state._asdict()
            trainable, rest, cursor, resumed = checkpoints.restore(None, rest.pop("trainable"), rest)
            state = state._replace(trainable=trainable, **rest)
            batches.set_state(cursor["batches"])
            train_seconds = cursor["train_seconds"]
            logging.info("resumed %s at step %d", name, resumed)
        with tracking.Tracker(folder, name, plain, config.tracking, resumed_step=resumed) as tracker:
            job = loop.Job(
                state=state,
                frozen=frozen,
                step=experiment.stepper(compiled),
                batches=batches,
                place=experiment.place,
                evaluators=experiment.evaluators(),
                configs=[experiment.config.train],
                checkpoints=checkpoints,
                checkpoint_every=config.checkpoint.every,
                trackers=[tracker],
                profile_folder=str(folder / "profile"),
                first=resumed,
                train_seconds=train_seconds,
                renew=claim.renew,
            )
            outcome = loop.fit(job)
            (status,), (message,) = outcome.statuses, outcome.messages

            # ---- the record ----
            if status == "finished":
                export.export_run(folder, experiment, outcome.state, frozen, fingerprint)
            if chief:
                result = run_folder.finish_run(
                    folder, name, plain, status, parameters, started, outcome.train_seconds, message,
                    compile_seconds=compile_seconds, seq_len=experiment.task.seq_len,
                    base=experiment.base_record(fingerprint), trained=experiment.trained,
                    **experiment.remarks(), **run_folder.data_of(folder),
                )  # fmt: skip
                tracker.summary({"status": status, **run_folder.last_evaluation(result)})
                if result["losses"]:
                    tracker.image("curves", figures.draw_run(result, folder / "curves.png"))
                said = message or f"{run_folder.summary(result)}; records in {folder}"
                print(f"{name}: {status}; {said}")
    if status == "diverged":
        raise loop.Diverged(message)
    return INTERRUPTED if status == "interrupted" else 0


def decided(decide: Callable[[], str], folder: Path) -> str:
    """What `decide` says on process 0: every process learns of it and of a refusal, so that none waits for ever."""
    import jax

    verdicts, refusal = ("refused", "new", "resume", "finished"), UserError(f"process 0 cannot use {folder}")
    verdict = "refused"
    if jax.process_index() == 0:
        try:
            verdict = decide()
        except UserError as error:
            refusal = error
    verdict = verdicts[of_chief(verdicts.index(verdict))]
    if verdict == "refused":
        raise refusal
    return verdict


def check_alike(data: dict) -> None:
    """Makes sure that every process of the run reads the same data.

    Raises:
      UserError: on every process, where one of them reads other contents.
    """
    import jax

    if jax.process_count() == 1:
        return
    import numpy as np
    from jax.experimental.multihost_utils import process_allgather

    digests = " ".join(data[key]["sha256"] for key in sorted(data))
    seen = np.unique(process_allgather(np.uint32(zlib.crc32(digests.encode()))))
    if len(seen) > 1:
        raise UserError("the processes of this run read other data than each other; give every host the same files")


def of_chief(value: int) -> int:
    """Process 0's value, on every process."""
    import jax

    if jax.process_count() == 1:
        return value
    from jax.experimental.multihost_utils import broadcast_one_to_all

    return int(broadcast_one_to_all(value))


if __name__ == "__main__":
    launch(main)
