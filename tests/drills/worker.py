"""A worker of a sweep without jax: the real engine, claims and records over runs that only wait."""

import contextlib
import dataclasses
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from experiments.records import json_files, leases, run_folder, store
from experiments.sweeps import engine
from experiments.sweeps.grid import Cell
from lowrank_jax.core.errors import front_door

LOG = "log.jsonl"  # of a folder that all workers see: what the drill counts
TROUBLE = (
    "LOWRANK_JAX_DRILL"  # variable: {"failing": share of requests, "slow": most seconds of a read, "skew": seconds}
)
true_time = time.time


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


class Troubled:
    """The files of a root of which requests fail, before or after they were carried out, and reads are slow."""

    def __init__(self, files: Any, failing: float, slow: float):
        self.files, self.failing, self.slow = files, failing, slow

    def __getattr__(self, name: str) -> Any:
        action = getattr(self.files, name)

        def request(*arguments: Any) -> Any:
            with self._trouble(name):
                return action(*arguments)

        return request

    @contextlib.contextmanager
    def _trouble(self, name: str) -> Iterator[None]:
        if random.random() < self.failing / 2:
            raise ConnectionError("503 SlowDown")
        if name in ("read", "names"):
            time.sleep(random.uniform(0, self.slow))
        yield
        if random.random() < self.failing / 2:
            raise TimeoutError("no answer")


def make_trouble(failing: float = 0.0, slow: float = 0.0, skew: float = 0.0) -> None:
    """Of this process: a bad root, and a clock that is wrong by up to `skew` seconds."""
    files_of, wrong = store.files_of, random.uniform(-skew, skew)
    store.files_of = lambda url: Troubled(files_of(url), failing, slow)
    time.time = lambda: true_time() + wrong


def note(folder: Path, what: str, name: str) -> None:
    """Appends one line; lines under 4 kB are whole."""
    with open(folder / LOG, "a") as file:
        file.write(json.dumps({"what": what, "name": name, "time": true_time()}) + "\n")


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
    json_files.write_json(place / run_folder.RESULT, result)
    claim.record(result)
    note(folder, "recorded", name)
    claim.release()


if __name__ == "__main__":
    make_trouble(**json.loads(os.environ.get(TROUBLE, "{}")))
    kind, *rest = sys.argv[1:]
    if kind == "run":
        with front_door():
            run(Path(rest[0]), float(rest[1]), rest[2:])
    else:
        work(rest[0], Path(rest[1]), Path(rest[2]), int(rest[3]), float(rest[4]), float(rest[5]))
