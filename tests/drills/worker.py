"""A worker of a sweep without jax: the real engine, claims and records over runs that only wait."""

import dataclasses
import json
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from experiments.records import leases, run_folder
from experiments.sweeps import engine
from experiments.sweeps.grid import Cell

LOG = "log.jsonl"  # of a folder that all workers see: what the drill counts


@dataclasses.dataclass
class Cells:
    """Stands for a `Grid` of cells that wait for no trials."""

    count: int
    config_path: str = "none"

    def __post_init__(self):
        names = [f"cell-{i}" for i in range(self.count)]
        self.cells = {name: Cell(name, "full", "", {}, {"train": {"steps": 1}}) for name in names}

    def resolve(self, cell, results):
        return cell

    def full_arg(self, arg):
        return arg


def note(folder: Path, what: str, name: str) -> None:
    """Appends one line; lines under 4 kB are whole."""
    with open(folder / LOG, "a") as file:
        file.write(json.dumps({"what": what, "name": name, "time": time.time()}) + "\n")


def work(root: str, folder: Path, workdir: Path, count: int, seconds: float, lease: float) -> None:
    """Sweeps over all cells, each a process of its own (see `run`)."""
    engine.RUN_PROGRAM = (sys.executable, __file__, "run", str(folder), str(seconds))
    engine.POLL_SECONDS = lease / leases.BEATS
    cells = Cells(count)
    shared = leases.Root(root, lease)
    sweep = engine.Sweep(cells, str(workdir), str(workdir / "kept"), print, root=shared)  # pyright: ignore
    states = sweep.run([*cells.cells.values()])
    assert set(states.values()) == {"finished"}, states


def run(folder: Path, seconds: float, words: list[str]) -> None:
    """What experiments.run does about claims and records, around a pause instead of a training."""
    flags = dict(word[2:].split("=", 1) for word in words)
    place, name = Path(flags["workdir"], flags["name"]), flags["name"]
    claim = leases.claim_of(place, "drill.run")
    if not claim.take():
        sys.exit(2)
    note(folder, "began", name)
    for _ in range(10):
        time.sleep(seconds / 10)
        claim.renew()
    result = {"name": name, "status": "finished", "losses": [[1, time.time()]], "wall_seconds": seconds}
    run_folder.write_json(place / run_folder.RESULT, result)
    claim.record(result)
    note(folder, "recorded", name)
    claim.release()


if __name__ == "__main__":
    kind, *rest = sys.argv[1:]
    if kind == "run":
        run(Path(rest[0]), float(rest[1]), [word for word in rest[2:]])
    else:
        work(rest[0], Path(rest[1]), Path(rest[2]), int(rest[3]), float(rest[4]), float(rest[5]))
