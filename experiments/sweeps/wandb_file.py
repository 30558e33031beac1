"""A grid as a W&B sweep file, whose agents run its cells."""

from collections.abc import Sequence
from pathlib import Path

from experiments.sweeps.grid import Cell
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.files import kind_of, read_bytes
from lowrank_jax.core.json_text import NotJson, parse


def wandb_sweep(cells: Sequence[Cell], settings: dict[str, str], keys: Sequence[str] = ()) -> dict:
    """The W&B sweep over the same cells: each agent runs `experiments.sweep --cell=NAME`.

    Args:
      cells: as from `Grid.select`, trials first.
      settings: flags to repeat for the agents (config, grid, workdir, results).
      keys: KEY=VALUE for every cell, to repeat as well.
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
    """Writes the file, replacing an earlier W&B sweep.

    Raises:
      UserError: there is something else, which may be a user's own; or it cannot be written.
    """
    if kind_of(path) is not None:
        try:
            earlier = parse(read_bytes(path))
        except (NotJson, UserError):
            earlier = None
        if not (isinstance(earlier, dict) and "program" in earlier):
            raise UserError(f"{path} exists and is no W&B sweep; name another file")
    try:
        path.write_text(text)
    except OSError as error:
        raise UserError(f"cannot write --wandb_sweep={path}: {error.strerror}") from error
