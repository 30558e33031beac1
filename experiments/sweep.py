"""Runs a grid of cells, each once and in a separate process; several sweeps may share one grid.

    python -m experiments.sweep --config=configs/mora_uuid.py --grid=configs/sweeps/uuid_table2.py

A grid file is plain data: `cells() -> [cell, ...]`, or `stages() -> [(stage name, [cell, ...]), ...]`. A cell is
`dict(arg="scale=gpu,method=lora,rank=8", overrides={"optimizer.learning_rate": 1e-3, "seed": 0})`. An override
"best:rates" takes the value from the cell of stage "rates" with the same arg that had the lowest training loss over its
last 20 steps (of equals, the larger value), and waits for those cells; "best:rates:loss" takes the lowest held-out
loss, "best:rates:loss:lower" and "higher" the values beside the best, "best:rates:loss:beyond" the value beyond a best
one that is the smallest or largest (otherwise the cell is not needed), "best:rates+wider" the best of two stages;
"best:rates:loss:beyond:mean" goes by the mean over seeds, of the values that have most of them. A
cell with once=True is left out where such an earlier cell is the same run. --grid=FILE:seeds=5,steps=300 gives a grid
file's function arguments in the syntax of config files. One sweep a GPU or a host: set CUDA_VISIBLE_DEVICES and share
--workdir. --config.KEY=VALUE sets a key of all cells (--config.task.path=mine.jsonl).

--together=8 trains up to 8 cells in one program, over one resident base, where they differ in nothing but seed, rate,
schedule, alpha, early stop and LoRA's rank (`experiments.trials`); each keeps its order of data and has a separate
record. --together=auto counts, on shapes, how many fit. Where a program needs more memory than there is, or fails
for an unknown cause, its cells are tried again in programs of half as many. --preview shows what the cells need and how
far they are.

--results=NAME (or NAME.jsonl) adds each result as a line to NAME.jsonl, which several sweeps may share. Cells that it
holds are done, and so are those of a folder NAME with a .json file a run, as it was recorded before
(scripts/convert_results.py makes such a folder a file).

--root=gs://BUCKET/PREFIX (s3://..., or a folder that all hosts see) shares the cells among workers of any number of
hosts: each starts the same command. No file lock is needed there: see experiments/records/leases.py.
"""

import json
import signal
import sys
from pathlib import Path
from typing import Any

from absl import flags

from experiments.cli import launch
from experiments.config.arguments import in_its_words
from experiments.records import leases
from experiments.records.lines import check_results, files_of
from experiments.session.together.cluster import refuse_several
from experiments.sweeps import summary
from experiments.sweeps.dry_run import show
from experiments.sweeps.engine import Sweep
from experiments.sweeps.grid import Grid, check_cells
from experiments.sweeps.preview import AUTO, parse_together, preview, tell, trials_that_fit
from experiments.sweeps.wandb_file import wandb_sweep, write_sweep
from lowrank_jax.core import interrupts
from lowrank_jax.core.errors import INTERRUPTED


def define_flags() -> None:
    """The program's flags; not defined at import, as another program's --config may be in the same process."""
    flags.DEFINE_string("config", None, "Config file, with an optional argument: configs/mora_uuid.py:scale=gpu")
    flags.DEFINE_string("grid", None, "Grid file, with an optional argument: configs/sweeps/rates_math.py:rates=13")
    flags.DEFINE_string("workdir", "runs", "Folder of the run folders and their locks; sweeps that share it share work")
    flags.DEFINE_string(
        "results", None, "NAME or NAME.jsonl: the file that each result is added to; cells recorded there are done"
    )
    flags.DEFINE_string("only", None, "Run only cells whose name or arg matches this regular expression")
    flags.DEFINE_string("cell", None, "Run only the cell of this name (for W&B agents), with the trials it needs")
    flags.DEFINE_multi_string(
        "set", [], "KEY=VALUE for the config of every cell, also written --config.KEY=VALUE; a cell's own overrides win"
    )
    flags.DEFINE_string(
        "root",
        None,
        "gs://BUCKET/PREFIX, s3://BUCKET/PREFIX or a folder, through which workers of any hosts share the cells",
    )
    flags.DEFINE_float(
        "lease_seconds", leases.LEASE_SECONDS, "A worker of --root that is silent for so long is dead", lower_bound=1.0
    )
    flags.DEFINE_bool(
        "retry_failed", False, "Try cells again that failed on a worker of --root, or in a sweep of --workdir that runs"
    )
    flags.DEFINE_string(
        "together",
        "1",
        "Cells trained in one program at most, where they can share it; auto: as many as fit",
    )
    flags.DEFINE_bool("preview", False, "Print the cells with parameters, memory, time and state, and run nothing")
    flags.DEFINE_bool("dry_run", False, "Print the cells, their state and their commands, and run nothing")
    flags.DEFINE_string("wandb_sweep", None, "Write a W&B sweep file for the same cells, and run nothing")
    flags.mark_flags_as_required(["config", "grid"])


def sweep_main(options: Any) -> int:
    """Runs the program for parsed flags; returns the exit status."""
    grid = Grid(options.config, options.grid, options.set)
    cells = grid.select(options.only, options.cell)
    check_cells(cells)
    say = lambda line: print(line, flush=True)  # noqa: E731
    if options.results:
        check_results(files_of(options.results)[0])  # before any training: --results=mine would add to mine.jsonl
    root = leases.Root(options.root, options.lease_seconds) if options.root else None
    group = grid.common.get("tracking.group") or Path(options.grid).stem
    told = tell if options.preview else say  # the preview's table is alone on stdout
    together, room = parse_together(options.together), trials_that_fit(told) if options.together == AUTO else None
    sweep = Sweep(
        grid, options.workdir, options.results, say, options.cell, together, root, options.retry_failed, room, group
    )
    if options.wandb_sweep:
        settings = {key: getattr(options, key) for key in ("config", "grid", "workdir", "results", "root")}
        text = json.dumps(wandb_sweep(cells, settings, options.set), indent=1) + "\n"
        write_sweep(Path(options.wandb_sweep), text)
        print(f"wrote {options.wandb_sweep}; start it with: wandb sweep {options.wandb_sweep}")
        return 0
    if options.preview:
        print(preview(sweep, cells))
        return 0
    if options.dry_run:
        show(sweep, cells)
        return 0
    refuse_several("experiments.sweep", "start one for each GPU or host, with the same --workdir: they share the grid")
    if root:
        root.store.probe()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    states = sweep.run(cells)
    if not options.cell:
        results = [result for _, result in (sweep.settled[name] for name in states) if result]
        if line := summary.show(group, results, options.workdir, cells[0].plain, root):
            print(line)
    wanted = {name: state for name, state in states.items() if not state.startswith("not needed")}
    for name, state in wanted.items():
        if state != "finished":
            print(f"{name}: {state}")
    print(f"{sum(state == 'finished' for state in wanted.values())} of {len(wanted)} cells finished")
    return int(any(state.startswith("failed") for state in states.values()))


@in_its_words
def main(_) -> int:
    """Returns the exit status: 0 all cells ended, 1 some failed, 2 the user can fix it, 130 interrupted."""
    try:
        with interrupts.tidied():  # the engine waits for its child to save
            return sweep_main(flags.FLAGS)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    define_flags()
    launch(main, own_config=True)
