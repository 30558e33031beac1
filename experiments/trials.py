"""Several runs of one config in one program: seeds, or a sweep's cells, as trials over one resident base.

python -m experiments.trials --config=configs/lora_glue.py:task=mrpc,model=minilm-l6,method=lora --seeds=0,1,2
"""

import hashlib
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments.cli import define_run_flags, launch, load_config, start_devices
from experiments.records import claims
from lowrank_jax.core.errors import UserError

flags.DEFINE_string("seeds", None, "Seeds of the config, 0,1,2 or 0:5, each a run of its own.")
flags.DEFINE_string("cells", None, 'JSON file of the runs instead of --config: [{"name": ..., "config": {...}}].')
define_run_flags()
for _flag in ("workdir", "fresh"):
    flags.declare_key_flag(_flag)  # shown by --help
FLAGS = flags.FLAGS
INTERRUPTED = 130


def main(_) -> int:
    """Trains what is not finished yet and prints every run's scores and their median; returns the exit status."""
    started = time.time()
    named = wanted_runs()

    from experiments.records import run_folder

    def unfinished(those):
        return [
            (name, plain)
            for name, plain in those
            if run_folder.look(run_folder.run_folder(FLAGS.workdir, name), plain, FLAGS.fresh) != "finished"
        ]

    pending, status = unfinished(named), 0
    held = [claims.claim_of(run_folder.run_folder(FLAGS.workdir, name), "experiments.trials") for name, _ in pending]
    with claims.held(held):
        if pending := unfinished(pending):  # another program may have ended some meanwhile
            status = train(pending, started, held)
    results = [
        run_folder.read_result(run_folder.run_folder(FLAGS.workdir, name) / run_folder.RESULT) for name, _ in named
    ]
    print(report([result for result in results if result]), flush=True)
    return status


def wanted_runs() -> list[tuple[str, dict]]:
    """(name, plain config) of every run asked for."""
    from experiments.records import run_folder
    from experiments.sweeps.compatible import check_alike, parse_seeds, with_seed

    if FLAGS.cells:
        listed = run_folder.read_json(FLAGS.cells, remedy="write it with experiments.sweep --together")
        named = [(cell["name"], cell["config"]) for cell in listed]
    elif FLAGS.seeds:
        _, plain = load_config()
        plains = [with_seed(plain, seed) for seed in parse_seeds(FLAGS.seeds)]
        named = [(run_folder.run_name(plain), plain) for plain in plains]
    else:
        raise UserError("give --config with --seeds=0,1,2, or --cells")
    check_alike([plain for _, plain in named])
    return named


def train(named: Sequence[tuple[str, dict]], started: float, held: Sequence[claims.Claim]) -> int:
    """Runs the trials to their end and writes each one's record.

    Args:
      held: the claims of their runs.
    """
    import jax

    start_devices()
    from experiments.config.schema import unpack_run
    from experiments.records import data_record, run_folder
    from experiments.session import export
    from experiments.session.trial_group import TrialGroup
    from experiments.tables import figures
    from lowrank_jax.checkpoints.manager import Checkpoints
    from lowrank_jax.train import loop, memory, tracking

    if jax.process_count() > 1:
        raise UserError(
            "experiments.trials runs in one process; start one on each host, with its own share of the cells"
        )
    names, plains = [name for name, _ in named], [plain for _, plain in named]

    # ---- everything that can be checked on shapes ----
    stamps = [data_record.stamps(plain) for plain in plains]
    group = TrialGroup([unpack_run(plain) for plain in plains])
    lead = group.lead
    print(lead.plan)
    print(
        f"{len(names)} trials of {lead.parameters['trainable']:,} trainable parameters over one base on "
        f"{group.mesh.size} device(s)"
    )
    compile_started = time.perf_counter()
    compiled = group.compile(ahead=True)
    compile_seconds = time.perf_counter() - compile_started
    memory.check_fits(compiled)
    folders = [run_folder.run_folder(FLAGS.workdir, name) for name in names]
    known = data_record.of_task(lead.task)
    check_data(plains, names, group.wide, known)
    for plain, before in zip(plains, stamps, strict=True):
        data_record.check_still(plain, before)
    for folder, plain in zip(folders, plains, strict=True):
        run_folder.open_run(folder, plain, FLAGS.fresh, known)

    # ---- weights, and where an earlier session stopped ----
    state, frozen, fingerprint = group.load()
    hashes = [run_folder.content_hash(plain) for plain in plains]
    place = Path(FLAGS.workdir) / f"together-{hashlib.sha256(' '.join(names).encode()).hexdigest()[:10]}"
    if FLAGS.fresh and place.exists():
        import shutil

        shutil.rmtree(place)
    first, train_seconds, batches = 0, 0.0, group.batches()
    checkpoint = lead.config.checkpoint
    with Checkpoints(
        place / run_folder.CHECKPOINTS, checkpoint.keep, {"base": fingerprint, "configs": hashes}
    ) as checkpoints:
        if checkpoints.latest():
            rest = group.abstract_state._asdict()
            trainable, rest, cursor, first = checkpoints.restore(None, rest.pop("trainable"), rest)
            state, train_seconds = state._replace(trainable=trainable, **rest), cursor["train_seconds"]
            batches.set_state(cursor.get("batches", {"batches": first}))
            print(f"resumed at step {first}")
        trackers = [
            tracking.Tracker(folder, name, plain, one.config.tracking, resumed_step=first)
            for folder, name, plain, one in zip(folders, names, plains, group.each, strict=True)
        ]
        try:
            outcome = loop.fit(
                loop.Job(
                    state=state,
                    frozen=frozen,
                    step=group.stepper(compiled),
                    batches=batches,
                    place=group.place,
                    evaluators=group.evaluators(),
                    configs=[one.config.train for one in group.each],
                    checkpoints=checkpoints,
                    checkpoint_every=checkpoint.every,
                    trackers=trackers,
                    first=first,
                    train_seconds=train_seconds,
                    renew=lambda: [claim.renew() for claim in held],
                )
            )
            # ---- the records ----
            for i, (folder, one) in enumerate(zip(folders, group.each, strict=True)):
                if outcome.statuses[i] == "finished":
                    export.export_run(folder, one, *group.trial(outcome.state, frozen, i), fingerprint)
                result = run_folder.finish_run(
                    folder, names[i], plains[i], outcome.statuses[i], one.parameters, started, outcome.train_seconds,
                    outcome.messages[i], compile_seconds=compile_seconds, seq_len=one.task.seq_len,
                    base=one.base_record(fingerprint), trained=one.trained, together=len(names),
                    **one.remarks(), **run_folder.data_of(folder),
                )  # fmt: skip
                trackers[i].summary({"status": outcome.statuses[i], **run_folder.last_evaluation(result)})
                if result["losses"]:
                    trackers[i].image("curves", figures.draw_run(result, folder / "curves.png"))
        finally:
            for tracker in trackers:
                tracker.close()
    return INTERRUPTED if "interrupted" in outcome.statuses else 0


def check_data(plains: Sequence[dict], names: Sequence[str], lead: int, known: dict) -> None:
    """Makes sure that the trials' configs name one set of data, by content, which the lead's task has read.

    Raises:
      UserError: names a trial that names other data.
    """
    from experiments.records import data_record

    first = data_record.make(plains[lead], known=known)
    for name, plain in zip(names, plains, strict=True):
        other = data_record.make(plain, earlier=first)
        if wrong := [key for key in first if other.get(key, first[key])["sha256"] != first[key]["sha256"]]:
            raise UserError(
                f"{name} and {names[lead]} cannot share a program: {wrong[0]} differs by content; run them apart"
            )


def report(results: Sequence[dict]) -> str:
    """One line a run, then last, best and median of each score over the runs that finished."""
    from experiments.records import run_folder

    lines = [
        f"{result['name']}: {result['status']}; {result.get('message') or run_folder.summary(result)}"
        for result in results
    ]
    done = [result for result in results if result["status"] == "finished" and result.get("evaluations")]
    names = [name for name in run_folder.last_evaluation(done[0]) if name not in ("nonfinite",)] if done else []
    for name in names:
        last = [run_folder.last_evaluation(result)[name] for result in done]
        best = [max(evaluation[name] for evaluation in result["evaluations"]) for result in done]
        shown = ", ".join(f"{value:.4f}" for value in last)
        lines.append(
            f"{name}: last {shown}; median {statistics.median(last):.4f} (last), {statistics.median(best):.4f} (best)"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    launch(main)
