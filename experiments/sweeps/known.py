"""Which of a sweep's cells have ended or failed already: in its folder, in the recorded results, and at --root."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.config.faults import Faults
from experiments.records import claims, data_record, leases, offline_runs, run_folder, run_record
from experiments.records.failures import Failures
from experiments.records.lines import Recorded
from experiments.sweeps.grid import Cell


class Known:
    """Results and failures of cells: of the root, their run folders or the recorded results.

    Args:
      workdir: of the run folders.
      results: NAME or NAME.jsonl, to which each result is added.
      root: through which workers of several hosts share the cells.
      retry_failed: cells that had failed on another worker before are tried again.
      faults: of this sweep, to which those of other sweeps of the folder are added.
    """

    def __init__(
        self, workdir: Path, results: str | None, root: leases.Root | None, retry_failed: bool, faults: Faults
    ):
        self.workdir, self.root, self.retry_failed, self.faults = workdir, root, retry_failed, faults
        self.results = Recorded(results) if results else None
        self.failures = None if root else Failures(workdir, retry_failed)  # a root has those of all of its workers

    def recorded(self, cell: Cell, claim: claims.Claim | None = None) -> dict | None:
        """A cell's result, if it ended, which is added to the recorded results.

        Args:
          claim: on the cell, held. Without it a result that the root lacks does not count: another worker may be at it.

        Raises:
          DataChanged: it ended on data that differ from the present ones of the cell's config.
          Held: the claim was lost, and the cell has no result at the root yet.
        """
        result, place = self._found(cell)
        if not result or result["status"] not in run_folder.ENDED:
            return None
        check_data(cell, result, place)
        if self.root and result is not self.root.result(cell.name):
            if claim is None:
                return None
            try:
                claim.record(result)
            except claims.Held:
                if (result := self.root.result(cell.name)) is None:
                    raise
        if self.results:
            self.results.put(result)
        if self.failures and claim is not None:
            self.failures.drop(cell.name)
        return result

    def failure(self, cell: Cell) -> str:
        """Why a cell failed on another worker, where it is not to be tried again; "" otherwise."""
        if self.root:
            return self.root.failure(cell.name, self.retry_failed)
        found = self.failures.of(cell.name) if self.failures else {}
        if sections := found.get("sections"):
            self.faults.learn(cell.name, sections)
        return f"{found.get('why')} in process {found.get('by')}" if found else ""

    def fail(self, cell: Cell, why: str, sections: Mapping[str, Any] | None) -> None:
        """Tells the other sweeps of the folder that a cell failed, before its claim is released.

        Args:
          why: "" where another worker may try it again.
          sections: those of its config that alone cause the failure; see `Faults`. None: it may not fail elsewhere.
        """
        if self.failures and why and sections is not None:
            self.failures.tell(cell.name, why, sections)

    def begin(self) -> None:
        """Removes from the folder what killed sweeps have left half-written."""
        if self.failures:
            self.failures.tidy()

    def end(self) -> None:
        """Lets sweeps that start from now on try again what failed here."""
        if self.failures:
            self.failures.close()

    def share_offline(self, cell: Cell) -> None:
        """Copies W&B's offline runs of a cell below the root."""
        if self.root:
            offline_runs.put(self.root.store, run_folder.run_folder(self.workdir, cell.name))

    def _found(self, cell: Cell) -> tuple[dict | None, str]:
        """(a cell's result, where it is): the root's, its run folder's or a recorded one."""
        if self.root and (result := self.root.result(cell.name)):
            return result, f"{self.root.url}/{leases.RESULTS}/{cell.name}.json"
        file = run_folder.run_folder(self.workdir, cell.name) / run_folder.RESULT
        result = run_record.read_result(file)
        if (result and result["status"] in run_folder.ENDED) or not self.results:
            return result, str(file)
        return self.results.get(cell.name), self.results.place(cell.name)


def check_data(cell: Cell, result: dict, place: str) -> None:
    """Raises DataChanged where the cell's data have changed since its result, which is at `place`."""
    earlier = result.get(run_folder.DATA) or {}
    if earlier:
        remedy = f"use another --workdir (and --results), or remove {place} to train the cell again"
        now = data_record.make(cell.plain, earlier)
        data_record.check(cell.plain, earlier, now, True, place, remedy)
