"""Several runs of one config in one program: seeds, or a sweep's cells, as trials over one resident base.

python -m experiments.trials --config=configs/lora_glue.py:task=mrpc,model=minilm-l6,method=lora --seeds=0,1,2
"""

import time
from collections.abc import Sequence

from absl import flags

from experiments.cli import define_run_flags, launch, load_config, reads_config, start_devices
from experiments.config.arguments import in_its_words, spoken
from experiments.records import claims, leases
from experiments.session.together.cluster import refuse_several
from lowrank_jax.core.errors import INTERRUPTED, UserError

flags.DEFINE_string("seeds", None, "Seeds of the config, 0,1,2 or 0:5, each a run of its own.")
flags.DEFINE_string("cells", None, 'JSON file of the runs instead of --config: [{"name": ..., "config": {...}}].')
define_run_flags()
for _flag in ("workdir", "fresh"):
    flags.declare_key_flag(_flag)  # shown by --help
FLAGS = flags.FLAGS


@reads_config
@in_its_words
def main(_) -> int:
    """Trains what is not finished yet and prints every run's scores and their median; returns the exit status."""
    started = time.time()
    refuse_several("experiments.trials", "start one on each host, with its own share of the cells")
    named = wanted_runs()

    from experiments.config.vary import seeds_alone
    from experiments.records import run_folder, run_record
    from experiments.records.results import scores
    from experiments.tables import sweep

    def unfinished(those):
        return [
            (name, plain)
            for name, plain in those
            if run_folder.look(run_folder.run_folder(FLAGS.workdir, name), plain, FLAGS.fresh) != "finished"
        ]

    pending, status = unfinished(named), 0
    held = [leases.claim_of(run_folder.run_folder(FLAGS.workdir, name), "experiments.trials") for name, _ in pending]
    with claims.held(held):
        if pending := unfinished(pending):  # another program may have ended some meanwhile
            status = train(pending, started, held)
    results = [
        run_record.read_result(run_folder.run_folder(FLAGS.workdir, name) / run_folder.RESULT) for name, _ in named
    ]
    there = [result for result in results if result]
    print(scores(there), flush=True)
    if not seeds_alone([result["config"] for result in there]):
        print(f"\n{sweep.of(there).text()}", flush=True)
    return status


def wanted_runs() -> list[tuple[str, dict]]:
    """(name, plain config) of every run asked for."""
    from experiments.records import run_folder
    from experiments.sweeps.cells_file import read_cells
    from experiments.sweeps.compatible import check_alike, parse_seeds, with_seed

    if FLAGS.cells:
        named = read_cells(FLAGS.cells)
    elif FLAGS.seeds:
        _, plain = load_config()
        plains = [with_seed(plain, seed) for seed in parse_seeds(FLAGS.seeds)]
        named = [(run_folder.run_name(plain), plain) for plain in plains]
    else:
        raise UserError("give --config with --seeds=0,1,2, or --cells")
    check_alike([plain for _, plain in named])
    return named


def train(named: Sequence[tuple[str, dict]], started: float, held: Sequence[claims.Claim]) -> int:
    """Runs the trials to their end and writes each one's record; returns the exit status.

    Args:
      held: the claims of their runs.
    """
    start_devices()
    from experiments.config.schema import unpack_run
    from experiments.records import data_record, places, run_folder
    from experiments.session import fit
    from experiments.session.training import Run, Session
    from experiments.session.trial_group import TrialGroup
    from experiments.sweeps.cells_file import described

    names, plains = [name for name, _ in named], [plain for _, plain in named]
    claim_of = {claim.name: claim for claim in held}
    runs = [Run(name, plain, run_folder.run_folder(FLAGS.workdir, name), claim_of[name]) for name, plain in named]

    # ---- everything that can be checked on shapes ----
    stamps = [data_record.stamps(plain) for plain in plains]
    earlier = [run_folder.chosen_of(run.folder, FLAGS.fresh) for run in runs]
    group = TrialGroup([fit.fill(unpack_run(plain), kept) for plain, kept in zip(plains, earlier, strict=True)])
    chosen = [kept or one.chosen for kept, one in zip(earlier, group.each, strict=True)]
    fit.check_shared(names, chosen)
    print(group.lead.plan)
    told = fit.described(chosen[group.wide], group.lead.task, group.lead.config)
    for line in (told, *fit.remarks(unpack_run(plains[group.wide]), group.lead.task, group.lead.config)):
        if line:
            print(spoken(line))
    print(described(names, plains, [one.parameters["trainable"] for one in group.each], group.mesh.size))
    place = places.of_group(FLAGS.workdir, names)
    identity = {"configs": [run_folder.content_hash(plain) for plain in plains]}
    session = Session(group, runs, place, identity, started, more={"together": len(names)})
    session.compile()
    known = data_record.of_task(group.lead.task)
    data_record.check_shared(plains, names, group.wide, known)
    for plain, before in zip(plains, stamps, strict=True):
        data_record.check_still(plain, before)
    if FLAGS.fresh:
        session.remove_checkpoints()
    for run, values in zip(runs, chosen, strict=True):
        if not FLAGS.fresh:
            places.drop_void(run.folder, place)
        run_folder.open_run(run.folder, places.marked(run.plain, run.folder, place), FLAGS.fresh, known, values)

    # ---- weights, the loop, the records ----
    outcome, _ = session.train()
    return INTERRUPTED if "interrupted" in outcome.statuses else 0


if __name__ == "__main__":
    launch(main)
