"""A grid as a W&B sweep file, whose agents run its cells."""

import json
from collections.abc import Sequence
from pathlib import Path

from experiments.sweeps.grid import Cell
from lowrank_jax.core.errors import UserError


def wandb_sweep(cells: Sequence[Cell], settings: dict[str, str], keys: Sequence[str] = ()) -> dict:
    """The W&B sweep over the same cells: each agent runs `experiments.sweep --cell=NAME`.

    Args:
      cells: as from `Grid.select`, trials first.
      settings: flags to repeat for the agents (config, grid, workdir, results).
      keys: KEY=VALUE of every cell, the same.
    """
    repeated = [f"--{key}={value}" for key, value in settings.items() if value]
    repeated += [f"--config.{pair}" for pair in keys]
    return {
        "program": "experiments/sweep.py",
        "method": "grid",
        "parameters": {"cell": {"values": [cell.name for cell in cells]}},
        "command": ["${interpreter}", "-m", "experiments.sweep", *repeated, "${args}"],
    }


def write_sweep(path: Path, text: str) -> None:
    """Writes the file, over an earlier one.

    Raises:
      UserError: there is another kind of file, which may be a user's.
    """
    if path.exists():
        try:
            earlier = json.loads(path.read_text())
        except (OSError, ValueError):
            earlier = None
        if not (isinstance(earlier, dict) and "program" in earlier):
            raise UserError(f"{path} exists and is no W&B sweep; name another file")
    try:
        path.write_text(text)
    except OSError as error:
        raise UserError(f"cannot write --wandb_sweep={path}: {error.strerror}") from error
