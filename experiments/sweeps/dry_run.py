"""Prints each cell of a sweep with its state and its command, and runs nothing (--dry_run)."""

import shlex
from collections.abc import Sequence

from experiments.records import data_record
from experiments.sweeps.best import NotNeeded
from experiments.sweeps.engine import Sweep
from experiments.sweeps.grid import Cell


def show(sweep: Sweep, cells: Sequence[Cell]) -> None:
    """Prints each cell's state and command (--dry_run)."""
    settled: dict[str, dict | None] = {}  # as a sweep would find them, trials first
    for place, cell in enumerate(cells, 1):
        ready = None
        try:
            known = all(name in settled for name in cell.trials)
            ready = sweep.grid.resolve(cell, settled) if known else None
            result = sweep.known.recorded(ready) if ready else None
            state = result["status"] if result else "to run" if ready else f"waits for {len(cell.trials)} trials"
            if result:
                settled[cell.name] = result
        except data_record.DataChanged as error:
            state = f"refused: {error}"
        except NotNeeded as why:
            state = str(why)
            settled[cell.name] = None
        print(f"[{place}/{len(cells)}] {(ready or cell).name}: {state}")
        print("    " + shlex.join(sweep.command(ready or cell)))
