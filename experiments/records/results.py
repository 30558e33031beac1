"""Recorded results: found below folders, and what every table asks of one."""

import os
from collections.abc import Iterable
from pathlib import Path

from experiments.records import run_folder
from lowrank_jax.core.errors import UserError


def load_results(folders: Iterable[str | Path]) -> list[dict]:
    """Every record below the folders: result.json of run folders, and recorded NAME.json files; one per name.

    Raises:
      UserError: a folder does not exist.
    """
    found: dict[str, dict] = {}
    for folder in folders:
        if not Path(folder).is_dir():
            raise UserError(f"--results: there is no folder {str(folder)!r}")
        for place, subfolders, files in os.walk(folder):
            subfolders.sort()
            if run_folder.CONFIG in files or run_folder.RESULT in files:
                files, subfolders[:] = [name for name in files if name == run_folder.RESULT], []  # not into checkpoints
            for name in sorted(files):
                result = run_folder.read_result(Path(place, name)) if name.endswith(".json") else None
                if result and isinstance(result.get("labels"), dict) and "name" in result:
                    found.setdefault(result["name"], result)
    return list(found.values())


def stage_of(result: dict) -> str:
    """labels.stage; a run by hand is a full one."""
    return result["labels"].get("stage") or "full"


def rate_of(result: dict) -> float | None:
    """The peak learning rate."""
    return (result["config"].get("optimizer") or {}).get("learning_rate")


def at_step(result: dict) -> str:
    """ " at step 480", the last that the run recorded a loss of."""
    return f" at step {result['losses'][-1][0]}" if result.get("losses") else ""
