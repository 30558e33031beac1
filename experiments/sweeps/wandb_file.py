"""A grid as a W&B sweep file, whose agents run its cells."""

from collections.abc import Sequence

from experiments.sweeps.grid import Cell


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
