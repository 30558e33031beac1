"""Where a run's checkpoints are: in its folder, or in one that the runs of a program share.

A run has one file of records, which a program cuts to its own last checkpoint. The checkpoints of any other program
are void from then on: a run that went on from them would lack the records in between.
"""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from experiments.records import run_folder
from lowrank_jax.core.errors import UserError

PLACE = "place"  # in a run's config.json: the folder of the checkpoints that its records go with
OWN = "."  # that is the run's own folder, which may be copied or renamed; otherwise its name beside it


def of_group(workdir: str | Path, names: Sequence[str]) -> Path:
    """The folder of the checkpoints of several runs that share a program."""
    return Path(workdir) / f"together-{hashlib.sha256(' '.join(names).encode()).hexdigest()[:10]}"


def marked(plain: dict, folder: Path, place: Path) -> dict:
    """The plain config of the run in `folder` for its config.json, with the place of its checkpoints."""
    return {**plain, PLACE: _mark(folder, place)}


def _mark(folder: Path, place: Path) -> str:
    return OWN if place == folder else place.name


def drop_void(folder: Path, place: Path) -> None:
    """Removes a place's checkpoints where another program has written the records of the run in `folder` since.

    Call it before `run_folder.open_run`, with the run's claim.

    Raises:
      UserError: the checkpoints' folder is a link, or the run's config.json is damaged.
    """
    checkpoints = place / run_folder.CHECKPOINTS
    if _last(folder) in ("", _mark(folder, place)) or not checkpoints.exists():
        return
    run_folder.check_no_link(checkpoints, fresh=True)
    shutil.rmtree(checkpoints)
    print(f"{folder.name}: another program has written its records since; it starts at the first step", flush=True)


def going_on(workdir: Path, names: Sequence[str]) -> int:
    """How many of these runs, from the first, to train in one program: those that can go on together, otherwise all."""
    try:
        last = _last(workdir / names[0])
    except UserError:  # the run itself says it
        return len(names)
    for count in range(1, len(names) + 1):
        folder = workdir / names[0]
        place = folder if count == 1 else of_group(workdir, names[:count])
        if _mark(folder, place) == last and any((place / run_folder.CHECKPOINTS).glob("[0-9]*")):
            return count
    return len(names)


def _last(folder: Path) -> str:
    """The name of the place that the records of a run go with; "" where that is not known."""
    file = folder / run_folder.CONFIG
    there = run_folder.read_config(file, "start again with --fresh").get(PLACE) if file.is_file() else ""
    return there if isinstance(there, str) else ""
