"""Which cells of a sweep will share a program (--together), from the grid alone and before anything is run."""

from collections.abc import Callable, Mapping, Sequence

from experiments.sweeps.compatible import group_key
from experiments.sweeps.grid import Cell
from lowrank_jax.core.errors import UserError


def programs(
    cells: Sequence[Cell],
    plains: Mapping[str, dict],
    together: int = 1,
    room: Callable[[Sequence[tuple[str, dict]]], int] | None = None,
) -> list[list[str]]:
    """The names of each program's cells, where one sweep trains the whole grid.

    Args:
      cells: in the grid's order, in which trials come before the cells that wait for them.
      plains: {name: plain config}.
      together: how many cells share a program at most.
      room: how many of some (name, plain config) pairs fit in one program; where given, it decides, not `together`.
    """
    if together == 1 and room is None:
        return [[cell.name] for cell in cells]
    rounds: dict[str, int] = {}  # cells that wait for trials are joined with others that wait as long
    groups: dict[tuple[int, str], list[str]] = {}
    for cell in cells:
        rounds[cell.name] = max((rounds.get(trial, 0) + 1 for trial in cell.trials), default=0)
        groups.setdefault((rounds[cell.name], group_key(plains[cell.name])), []).append(cell.name)
    found = []
    for names in groups.values():
        size = together
        if room is not None and len(names) > 1:
            try:
                size = max(1, room([(name, plains[name]) for name in names]))
            except UserError:  # the sweep then trains them one by one
                size = 1
        found += [names[place : place + size] for place in range(0, len(names), size)]
    return found
